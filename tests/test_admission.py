"""Bounded staleness: no update misses more merges than allowed, whatever the times, and nothing that came is thrown away."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import resumed, same, simulate
from test_resume import killed
from tools import classification, durations, events, federation, merges, models, quadratics, run, steps

from fedsim.base.errors import SettingError
from fedsim.federation.federation import Federation
from fedsim.schedule import Buffered, Rounds
from fedsim.schedule.admission import Admission
from fedsim.settings.values import Count, PerNode
from fedsim.world import Bernoulli, Compute, Faults, World
from fedsim.world.compute import ParetoJitter
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix


def bounded(size, limit, busy=None, restart="arrival"):
    return FedBuff(train=steps(), schedule=Buffered(size, Count() if busy is None else Count(busy), restart, limit))


def ages(fed):
    return [age for _, who in merges(fed) for _, age in who]


def test_capacity_by_hand():
    """min(Q - r, (eta + v + 1) B - (a + r)) with eta = 1, B = 2; a counts the 2 v merged ones and those that wait."""
    rule = Admission(size=2, limit=1)
    for version, accepted, running, capacity in [
        (0, 0, 0, 4),
        (0, 1, 3, 0),
        (1, 2, 2, 2),
        (1, 3, 1, 2),
        (1, 3, 3, 0),
        (5, 10, 0, 4),
        (5, 13, 1, 0),
    ]:
        assert (1 + version + 1) * 2 - (accepted + running) == capacity
        assert rule.room(accepted - 2 * version, running) == capacity


def test_those_at_work_must_fit_into_the_merges_to_come():
    """At version 5 with eta = 2 and B = 2: of version 3 or older none may stay at work, of 4 or older two, of 5 or older four."""
    rule = Admission(size=2, limit=2)
    for working, fits in [([], 1), ([3], 0), ([4], 1), ([4, 4], 1), ([4, 4, 4], 0), ([5, 4, 5, 4], 1), ([5, 4, 5, 4, 5], 0), ([5] * 5, 0)]:
        assert rule.complete(5, np.array(working, dtype=np.int64)) == bool(fits)


def test_the_oldest_are_merged_first_and_else_who_came_first():
    merged, left = Admission(size=3, limit=2).oldest(np.array([4, 3, 4, 5, 3]))
    assert (merged.tolist(), left.tolist()) == ([0, 1, 4], [2, 3])


def test_a_run_by_hand():
    # clients of 1 s and 5 s, merges of one, eta = 1: at most two jobs are unmerged
    fed = run(quadratics([1.0, 2.0]), bounded(1, 1), world=durations(1, 5), seconds=11)
    # node 0 at 1, starts again; it is back at 2, but its merge would leave node 1 (of version 0) too old: it waits until
    # 5, where node 1 goes first and node 0 at once after it; one starts between the two merges (node 1, by lot), one after both
    assert merges(fed) == [(1, [(0, 0)]), (5, [(1, 1)]), (5, [(0, 1)]), (10, [(1, 1)]), (10, [(0, 1)])]
    starts = events(fed, "dispatch")
    assert list(zip(starts["time"], starts["node"], starts["version"], strict=True))[:5] == [
        (0, 0, 0), (0, 1, 0), (1, 0, 1), (5, 1, 2), (5, 0, 3)
    ]  # fmt: skip


TIMES = st.lists(st.sampled_from([Fraction(1, 3), Fraction(1), Fraction(3, 2), Fraction(7), Fraction(40)]), min_size=2, max_size=8)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_no_update_misses_more_merges_than_allowed(data: st.DataObject) -> None:
    """Random speeds that differ from job to job by a heavy tail, clients that come and go, work that fails: the bound holds at every
    merge, all merges are whole, all that came is merged or waits, and no more is ever begun than the rule admits."""
    seconds = data.draw(TIMES)
    n, busy = len(seconds), data.draw(st.integers(1, len(seconds)))
    restart = data.draw(st.sampled_from(["arrival", "merge"]))
    size, limit = data.draw(st.integers(1, busy if restart == "merge" else 2 * n)), data.draw(st.integers(0, 4))
    risk = PerNode(data.draw(st.sampled_from([0.0, 0.3])))
    world = World(
        compute=Compute(job=PerNode(tuple(seconds)), jitter=ParetoJitter(1.5)),
        faults=Faults(crash=risk, lost=risk),
        availability=Bernoulli(PerNode(data.draw(st.sampled_from([1.0, 0.6])))),
    )
    fed = run(quadratics(torch.zeros(n)), bounded(size, limit, busy, restart), 12, world, seed=data.draw(st.integers(0, 99)), plan="looped")
    assert max(ages(fed), default=0) <= limit
    table = events(fed)
    kind, version = table["kind"], table["version"]
    conserved = (kind == "dispatch").sum() - (kind == "drop").sum() - len(ages(fed))
    assert conserved == fed.in_flight + len(fed.waiting.node) <= (limit + 1) * size
    change = (kind == "dispatch").astype(int) - (kind == "drop") - ((kind == "merge") & (table["job"] >= 0))
    open_jobs, flying = change.cumsum(), ((kind == "dispatch").astype(int) - np.isin(kind, ("arrival", "drop"))).cumsum()
    assert open_jobs.max() <= (limit + 1) * size and flying.max() <= busy
    if world.faults == Faults() and fed.nature.everyone is not None:
        assert np.unique(version[kind == "merge"], return_counts=True)[1].tolist() == [size] * fed.version


@pytest.mark.parametrize("restart", ["arrival", "merge"])
@pytest.mark.parametrize("busy", [3, 5])
def test_without_end_it_is_fedbuff_in_bits(restart, busy):
    task, world = classification([4, 4, 8, 16, 5]), durations(1, "1.5", 2, "0.4", 9)
    free, wide = (run(task, bounded(2, limit, busy, restart), 30, world) for limit in (None, 10**6))
    assert torch.equal(models(free), models(wide))
    assert merges(free) == merges(wide) and max(ages(free)) >= 5
    rows = [sorted(zip(*(column.tolist() for column in fed.ledger.columns().values()), strict=True)) for fed in (free, wide)]
    assert rows[0] == rows[1]


def test_zero_gives_synchronous_rounds_of_all():
    task, world, train = classification([4, 4, 8, 16, 5]), durations(1, "1.5", 2, "0.4", 9), steps(3, 0.2, batch=4)
    fed = run(task, FedBuff(train=train, schedule=Buffered(5, max_staleness=0)), 6, world)
    rounds = run(task, FedAvg(train=train, schedule=Rounds(Count()), weights="uniform"), 6, world)
    assert merges(fed) == merges(rounds)
    assert torch.allclose(models(fed), models(rounds), atol=1e-6)


def test_zero_gives_synchronous_rounds_of_a_cohort():
    seconds = [1, 2, 3, 5, 8, 13]
    fed = run(quadratics(torch.arange(6)), bounded(2, 0), 30, durations(*seconds))
    end = 0
    for time, who in merges(fed):
        assert len({node for node, _ in who}) == 2 and all(age == 0 for _, age in who)
        assert time - end == max(seconds[node] for node, _ in who)
        end = time
    assert {node for _, who in merges(fed) for node, _ in who} == set(range(6))


def test_a_failed_job_frees_its_place_at_once():
    """Rounds of two of which one fails: another begins in its place, and no round ends with less."""
    world = World(compute=Compute(job=PerNode(Fraction(1))), faults=Faults(lost=PerNode((1.0, 0.0, 0.0, 0.0))))
    fed = run(quadratics(torch.zeros(4)), bounded(2, 0), 20, world)
    drops, starts = events(fed, "drop"), events(fed, "dispatch")
    assert len(drops["time"]) >= 3 and set(drops["node"]) == {0}
    for time in drops["time"]:
        assert (starts["time"] == time).sum() >= 1
    assert all(len(who) == 2 for _, who in merges(fed)) and max(ages(fed)) == 0


def test_less_staleness_takes_more_time():
    """More merges in the same time the older updates may be; the age of the slowest is as old as may be."""
    world = durations(1, 1, 1, 1, 1, 20)
    done = [run(quadratics(torch.zeros(6)), bounded(2, limit), world=world, seconds=200) for limit in (0, 1, 4, 16, None)]
    counts = [fed.version for fed in done]
    assert counts == sorted(counts) and counts[1] < counts[2] < counts[3] < counts[4]
    assert [max(ages(fed)) for fed in done[:4]] == [0, 1, 4, 16] and max(ages(done[4])) > 16


def test_at_most_so_many_are_at_work():
    assert Buffered(2, max_staleness=1).concurrency_limit(100) == 4
    assert Buffered(2, Count(3), max_staleness=1).concurrency_limit(100) == 3


@pytest.mark.parametrize("limit", [0, 2])
def test_resumed_is_uninterrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Killed while updates wait for a later merge; what is accepted follows from the state, and the bound holds after it."""
    faults = ("world.faults={crash: 20 %, lost: 20 %}", "world.compute={job: {name: linear, from: 9 s, to: 1 s}}")
    schedule = f"schedule={{name: buffered, size: 3, max_staleness: {limit}}}"
    given = ("strategy=fedbuff", schedule, "stop.rounds=14", "engine.plan=looped", "checkpoint=1 rounds", *faults)
    whole = simulate(folder, *given, "checkpoint=none", into="whole")
    for events_done in (30, 45):
        same(whole, resumed(killed(folder, given, events_done, monkeypatch)))
        (folder / "killed").rename(folder / f"killed{events_done}")
    assert whole.info["max_staleness"] == limit and whole.columns["staleness"].max() == limit


def test_frequencies_are_not_known_beforehand_where_work_waits():
    with pytest.raises(SettingError, match="none waits"):
        federation(quadratics([0.0, 1.0]), FedFix(train=steps(), schedule=Buffered(1, max_staleness=1)), 1, world=durations(1, 5))


def test_federation_asks_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting the rule is not even asked."""
    monkeypatch.setattr(Federation, "room", None)
    monkeypatch.setattr(Federation, "_complete", None)
    assert run(quadratics([0.0, 1.0]), bounded(1, None), 5, durations(1, 5)).version == 5
