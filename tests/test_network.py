"""Jitter, bursts and packet loss against their closed forms."""

from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from tools import durations, events, quadratics, same, steps
from tools import quick as run

from fedsim.base.keys import fold, interior
from fedsim.schedule import Rounds, Ticks
from fedsim.settings.values import Count, PerNode, Population
from fedsim.world import (
    Compute,
    GilbertElliottBursts,
    GilbertElliottLoss,
    Independent,
    Nature,
    Network,
    World,
)
from fedsim.world.chain import bad
from fedsim.world.compute import ExponentialJitter, Jitter, LogNormalJitter, ParetoJitter, UniformJitter
from fedsim.world.network import again
from strategies.fedavg import FedAvg

CERTAIN = 4.5  # standard deviations
ALL = Rounds(cohort=Count())
NANO = 10**9


def nature(world: World, nodes: int = 1) -> Nature:
    return Nature(world, Population(nodes), 0, NANO)


def works(jitter: Jitter | None = None, bursts: Any = None, jobs: int = 20_000) -> np.ndarray[Any, Any]:
    """How many times as long as without each of a node's jobs takes."""
    of = nature(World(Compute(job=same(1), jitter=jitter, bursts=bursts)))
    node, turn = np.zeros(jobs, dtype=np.int64), np.arange(1, jobs + 1)
    found = of.work(node, node, node, turn) / NANO
    assert np.array_equal(found[70:90], of.work(node[:20], node[:20], node[:20], turn[70:90]) / NANO)
    return found


# Jitter and bursts


def test_jitter_has_the_mean_and_deviation_of_its_distribution() -> None:
    for jitter, mean, deviation in (
        (LogNormalJitter(0.2), np.exp(0.02), np.exp(0.02) * sqrt(np.exp(0.04) - 1)),
        (UniformJitter(0.5, 2.0), 1.25, 1.5 / sqrt(12)),
        (ExponentialJitter(0.5), 1.5, 0.5),
        (ParetoJitter(5.0), 1.25, sqrt(5 / 16 / 3)),
    ):
        found = works(jitter)
        assert abs(found.mean() - mean) < CERTAIN * deviation / sqrt(len(found))
        assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < CERTAIN / sqrt(len(found))
    assert abs(np.median(works(LogNormalJitter(0.5))) - 1) < 0.03
    assert works(ExponentialJitter(0.5)).min() >= 1
    assert np.isfinite(works(ParetoJitter(0.001), jobs=100)).all()


@pytest.mark.parametrize(
    ("enter", "leave"), [(0.04, 0.6), (0.3, 0.2), (0.9, 0.7), (1.0, 1.0), (0.0, 0.5), (0.5, 0.0), (0.0, 0.0), (0.002, 0.01)]
)
def test_a_chain_has_its_share_and_its_steps(enter: float, leave: float) -> None:
    """Over many nodes at once and over many turns of one: the share in the bad state, and the chances of a step."""
    nodes, turn = np.arange(4000), 137
    chances = np.full(4000, enter), np.full(4000, leave)
    now, then = (bad(fold(0, "x"), nodes, np.full(4000, at), *chances) for at in (turn, turn + 1))
    share = enter / (enter + leave) if enter + leave else 0.0
    assert abs(now.mean() - share) <= CERTAIN * sqrt(share * (1 - share) / 4000)
    for before, chance in ((~now, enter), (now, 1 - leave)):
        if before.any():
            assert abs(then[before].mean() - chance) <= CERTAIN * sqrt(chance * (1 - chance) / before.sum()) + 1e-12


def test_a_chain_does_not_depend_on_who_else_is_asked() -> None:
    """Going forward step by step with the same numbers gives the same states."""
    rng = np.random.default_rng(0)
    enter, leave = rng.random(50), rng.random(50)
    nodes, turns = np.repeat(np.arange(50), 60), np.tile(np.arange(60), 50)
    states = bad(fold(0, "x"), nodes, turns, enter, leave).reshape(50, 60)
    for at in (0, 13, 59):
        assert np.array_equal(bad(fold(0, "x"), np.arange(50), np.full(50, at), enter, leave), states[:, at])
    u = interior(fold(fold(0, "x"), torch.arange(50)[:, None], torch.arange(60)), 1)[..., 0].numpy()
    state = u[:, 0] < enter / (enter + leave)
    for at in range(1, 60):
        assert np.array_equal(states[:, at - 1], state)
        state = np.where(state, u[:, at] < 1 - leave, u[:, at] < enter)


def test_bursts_make_a_share_of_the_jobs_slower_in_runs() -> None:
    """Enter 4 %, leave 60 %: 1 / 16 of the jobs, in runs of 1 / 0.6 on average."""
    slow = works(bursts=GilbertElliottBursts(PerNode(0.04), PerNode(0.6), PerNode(5.0)))
    assert set(slow.tolist()) == {1.0, 5.0}
    share, jobs = 1 / 16, len(slow)
    spread = sqrt(share * (1 - share) * (1 + 0.36) / (1 - 0.36) / jobs)  # correlation 1 - 0.04 - 0.6 from job to job
    assert abs((slow == 5).mean() - share) < CERTAIN * spread
    starts = int(((slow[1:] == 5) & (slow[:-1] == 1)).sum())
    assert abs((slow == 5).sum() / starts - 1 / 0.6) < CERTAIN * sqrt(0.4) / 0.6 / sqrt(starts)


def test_two_methods_at_one_seed_meet_the_same_jitter() -> None:
    world = World(Compute(job=same(1), jitter=LogNormalJitter(0.5)))
    works_of = [
        events(run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=schedule), 6, world), "dispatch")["work"].tolist()
        for schedule in (ALL, Ticks(Fraction(9)))
    ]
    assert works_of[0] == works_of[1]
    assert len(set(works_of[0])) == 12


# Loss


@pytest.mark.parametrize(("packets", "chance"), [(1, 0.3), (4, 0.05), (50, 0.5), (70_000, 0.01), (3, 0.95)])
def test_packets_sent_again_are_negative_binomial(packets: int, chance: float) -> None:
    draws = 20_000
    found = again(fold(0, "x", torch.arange(draws)), np.full(draws, packets), np.full(draws, chance))
    mean, variance = packets * chance / (1 - chance), packets * chance / (1 - chance) ** 2
    assert abs(found.mean() - mean) < CERTAIN * sqrt(variance / draws)
    fourth = 3 + (6 + (1 - chance) ** 2 / chance) / packets  # kurtosis
    assert abs(found.var() / variance - 1) < CERTAIN * sqrt((fourth - 1) / draws)
    none = (1 - chance) ** packets
    assert abs((found == 0).mean() - none) <= CERTAIN * sqrt(none * (1 - none) / draws)


def test_nothing_is_sent_again_without_loss() -> None:
    keys = fold(0, "x", torch.arange(3))
    assert again(keys, np.array([5, 0, 10**9]), np.array([0.0, 0.5, 0.0])).tolist() == [0, 0, 0]


def test_lost_packets_cost_bytes_and_time_both_ways() -> None:
    """With one packet a message, bytes are whole multiples of the message; time and ledger agree with them."""
    network = Network(up=same(1000), down=same(2000), latency=same("0.01"), loss=Independent(PerNode(0.4)))
    fed = run(quadratics([1.0] * 40), FedAvg(train=steps(), schedule=ALL), 30, World(durations(*[1] * 40).compute, network))
    sent, ends = events(fed, "dispatch"), events(fed, "arrival")
    for size, found in ((fed.down_bytes, sent["bytes_down"]), (fed.flight.up_bytes, ends["bytes_up"])):
        times = found / size
        assert (times == times.round()).all()
        assert abs(times.mean() - 1 / 0.6) < CERTAIN * sqrt(0.4) / 0.6 / sqrt(len(times))
    assert sent["down"] == pytest.approx(0.01 + sent["bytes_down"] / 2000)
    up = dict(zip(sent["job"].tolist(), sent["up"].tolist(), strict=True))
    assert [up[job] for job in ends["job"].tolist()] == pytest.approx((0.01 + ends["bytes_up"] / 1000).tolist())
    assert fed.ledger.bytes_down == sent["bytes_down"].sum()
    assert fed.ledger.bytes_up == ends["bytes_up"].sum()


def test_a_gilbert_elliott_link_loses_by_its_state() -> None:
    loss = GilbertElliottLoss(PerNode(0.1), PerNode(0.3), bad=PerNode(0.5), good=PerNode(0.01))
    of = nature(World(network=Network(loss=loss, packet=100)))
    turns = np.arange(1, 4001)
    node = np.zeros(4000, dtype=np.int64)
    sizes = {way: of.bytes(node, node + 10_000, turns, way) for way in ("down", "up")}
    lossy = bad(fold(of.key, "link"), node, turns, np.array([0.1]), np.array([0.3]))
    for found in sizes.values():
        assert (found % 100 == 0).all()
        for state, chance in ((lossy, 0.5), (~lossy, 0.01)):
            assert abs(found[state].mean() - 10_000 / (1 - chance)) < CERTAIN * 100 * sqrt(100 * chance) / (1 - chance) / sqrt(state.sum())
    assert not np.array_equal(*sizes.values())
