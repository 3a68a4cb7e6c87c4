"""Runs of peers over topologies: lost messages, the last merge, times and bytes by each node's own neighbours, and what is refused."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tools import durations, events, models, quadratics, same, steps
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Rows
from fedsim.schedule import Gossip, Pairwise
from fedsim.settings.values import Constant, Every, PerNode
from fedsim.task.task import Task
from fedsim.topology import Complete, Mixing, Ring, Topology
from fedsim.topology.changing import Alone, Epidemic, FinalMerge, Matchings, OnePeerExponential, RandomPulls, Sequence
from fedsim.topology.graphs import DirectedRing, Exponential, Star
from fedsim.world import Faults, Network, World
from strategies.dsgd import Dsgd

B = torch.tensor([[1.0, 0], [-2, 3], [4, 1], [0.5, -5], [2, 2]]).double()
LOSSY = World(faults=Faults(lost=PerNode(0.4)))


@dataclass(frozen=True)
class Apart(Dsgd):
    """Peers that begin at B and learn nothing."""

    def start(self, x: torch.Tensor, task: Task) -> Rows:
        return {"model": B.to(x)}


def still(topology: Topology, **settings: Any) -> Apart:
    return Apart(train=steps(1, 0.0), schedule=Gossip(topology), **settings)


@pytest.mark.parametrize("topology", [Ring(), Complete(), Star(), Matchings(), OnePeerExponential(), Epidemic(2, oracle=True)], ids=str)
def test_a_round_is_the_matrix_of_its_step(topology: Topology) -> None:
    x = models(run(quadratics(torch.zeros(5, 2).double()), still(topology), 4))
    for step in range(4):
        w = torch.from_numpy(topology.mixing(5, step, fold(0, "topology")).weights.toarray())
        torch.testing.assert_close(x[step + 1], w @ x[step], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("topology", [Ring(), Complete(), Star(), Matchings()], ids=str)
def test_lost_messages_keep_the_mean_of_undirected_graphs(topology: Topology) -> None:
    fed, whole = (run(quadratics(torch.zeros(5, 2).double()), still(topology), 60, world) for world in (LOSSY, World()))
    x = models(fed)
    assert torch.allclose(x.mean(1), B.mean(0).expand(61, -1), rtol=1e-12, atol=1e-13)
    assert not torch.equal(x[1:], models(whole)[1:])
    assert (x[-1] - B.mean(0)).abs().max() < 0.1
    assert fed.ledger.bytes_cross == whole.ledger.bytes_cross  # what gets lost was sent


@pytest.mark.parametrize("topology", [Exponential(), Alone()], ids=str)
def test_a_peer_that_hears_nothing_keeps_its_own(topology: Topology) -> None:
    x = models(run(quadratics(torch.zeros(5, 2).double()), still(topology), 3, World(faults=Faults(lost=PerNode(1.0)))))
    assert torch.equal(x[-1], B)


def test_pairs_can_miss_each_other() -> None:
    strategy = Apart(train=steps(1, 0.0), schedule=Pairwise(Complete()))
    world = World(compute=durations(1, 1, 1, 1, 1).compute, faults=LOSSY.faults)
    fed = run(quadratics(torch.zeros(5, 2).double()), strategy, 8, world)
    assert torch.allclose(models(fed).mean(1), B.mean(0).expand(41, -1), rtol=1e-12)
    assert (models(fed).diff(dim=0) == 0).all(2).all(1).sum() > 5  # both ways get through with 0.36


@pytest.mark.parametrize("schedule", [Gossip, Pairwise])
def test_the_last_merge_comes_when_the_run_ends_whatever_ends_it(schedule: Any) -> None:
    for rounds, seconds in ((3, None), (None, Fraction(5, 2))):
        strategy = Apart(train=steps(1, 0.0), schedule=schedule(FinalMerge(Alone())))
        fed = run(quadratics(torch.zeros(5, 2).double()), strategy, rounds, durations(1, 1, 1, 1, 1), seconds=seconds)
        assert torch.allclose(fed.state["model"], B.mean(0).expand(5, -1), rtol=1e-14)
        assert (fed.state["model"] == fed.state["model"][0]).all()
        assert len(events(fed, "mix")["node"]) == 5 + 5 * (schedule is Gossip) * (fed.version)
        assert fed.ledger.bytes_cross == 20 * fed.flight.peer_bytes


def test_each_waits_for_its_own_neighbours() -> None:
    """The centre of a star sends and hears four models, the others one: latency, then out, then in."""
    world = World(network=Network(up=same(1000), down=same(500), latency=same(1)))
    fed = run(quadratics(B), Dsgd(train=steps(), schedule=Gossip(Star())), 1, world)
    size, parts = fed.flight.peer_bytes, events(fed, "dispatch")["up"]
    assert parts.tolist() == pytest.approx([1 + 4 * size * (1 / 1000 + 1 / 500)] + [1 + size * (1 / 1000 + 1 / 500)] * 4, rel=1e-12)
    switched = Sequence(parts=(Alone(), Complete()), switch=(Every(rounds=1),))
    parts = events(run(quadratics(B), Dsgd(train=steps(), schedule=Gossip(switched)), 2, world), "dispatch")["up"]
    assert (parts[:5] == 0).all() and (parts[5:] > 1).all()


@dataclass(frozen=True)
class Uneven(Topology):
    """0 hears 1, 2 hears 0; columns sum to 1, rows don't."""

    def matrix(self, nodes: int, step: int, key: torch.Tensor) -> Any:
        return np.array([[0.5, 0.5, 0], [0, 0.5, 0], [0.5, 0, 1]])


@dataclass(frozen=True)
class Neither(Topology):
    def matrix(self, nodes: int, step: int, key: torch.Tensor) -> Any:
        return np.eye(nodes) * 0.5


@dataclass(frozen=True)
class PushSum(Dsgd):
    stochastic = "columns"


@pytest.mark.parametrize(
    ("kind", "topology", "message"),
    [
        (Dsgd, Uneven(), "push-sum"),
        (Dsgd, Neither(), "neither the rows nor the columns"),
        (PushSum, RandomPulls(Constant(1.0)), "columns that sum to 1"),
        (PushSum, Neither(), "neither"),
    ],
)
def test_weights_that_a_method_can_not_use(kind: type[Dsgd], topology: Topology, message: str) -> None:
    for schedule in (Gossip(topology), Pairwise(topology)):
        with pytest.raises(SettingError, match=message) as error:
            run(quadratics(B[:3]), kind(train=steps(), schedule=schedule), 1, durations(1, 1, 1))
        assert error.value.key == "schedule.topology"
    assert isinstance(DirectedRing().mixing(3, 0, fold(0)), Mixing)
    run(quadratics(B[:3]), kind(train=steps(), schedule=Gossip(DirectedRing())), 1)
