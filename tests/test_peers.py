"""Methods of peers on quadratics F_i = a_i/2 |x - b_i|^2: their recursions, their fixed points, and what they keep."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tools import durations, inbox, models, quadratics, steps
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.codecs import Ef21, Identity, TopK
from fedsim.method.strategy import Strategy
from fedsim.schedule import Gossip, Pairwise
from fedsim.settings.values import PerNode
from fedsim.topology import Complete, Ring, Topology
from fedsim.topology.changing import Alone, Epidemic, OnePeerExponential, RandomPulls
from fedsim.topology.graphs import DirectedRing, Exponential, Line, Star
from fedsim.world import Faults, World
from strategies.adpsgd import AdPsgd
from strategies.choco import Choco, theory
from strategies.d2 import D2
from strategies.dsgd import Dsgd
from strategies.epidemic import EpidemicLearning
from strategies.gradient_tracking import GradientTracking
from strategies.sgp import Sgp

B = torch.tensor([[1.0, 0], [-2, 3], [4, 1], [0.5, -5], [2, 2]]).double()
A = torch.tensor([1.0, 2, 1, 0.5, 3]).double()
BEST = (A[:, None] * B).sum(0) / A.sum()


def weights(topology: Topology, step: int = 0) -> torch.Tensor:
    return torch.from_numpy(topology.mixing(5, step, fold(0, "topology")).weights.toarray())


def method(kind: type[Strategy], topology: Topology, lr: float = 0.1, count: int = 1, **settings: Any) -> Strategy:
    return kind(train=steps(count, lr), schedule=Gossip(topology), **settings)


@dataclass(frozen=True)
class Crooked(Topology):
    """A directed graph whose nodes hear unequally many: 0 sends to all, all others to the next."""

    def matrix(self, nodes: int, step: int, key: torch.Tensor) -> Any:
        heard = np.eye(nodes)
        heard[:, 0] = 1
        for node in range(1, nodes):
            heard[(node + 1) % nodes, node] = 1
        return heard / heard.sum(0)


# SGP


def test_push_sum_by_its_recursion() -> None:
    fed = run(quadratics(B, A), method(Sgp, Crooked()), 7)
    p, x, w = weights(Crooked()), torch.zeros(5, 2).double(), torch.ones(5, 1).double()
    for _ in range(7):
        z = x / w
        x, w = p @ (x - 0.1 * A[:, None] * (z - B)), p @ w
    torch.testing.assert_close(fed.strategy.model(fed.state), x / w, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(fed.state["mass"], w, rtol=1e-13, atol=0)
    assert float(fed.state["mass"].sum()) == pytest.approx(5, rel=1e-13)
    assert fed.state["mass"].std() > 0.1


def test_push_sum_goes_to_the_optimum_where_averaging_would_favour_some() -> None:
    x = run(quadratics(B, 1.0), method(Sgp, Crooked(), lr=0.0095), 900)
    assert (x.strategy.model(x.state) - B.mean(0)).abs().max() < 0.05  # 0.36 for averages


@pytest.mark.parametrize("topology", [Exponential(), DirectedRing(), Ring(), OnePeerExponential()], ids=str)
def test_push_sum_on_doubly_stochastic_weights_is_dsgd(topology: Topology) -> None:
    ours, plain = (run(quadratics(B, A), method(kind, topology), 6) for kind in (Sgp, Dsgd))
    torch.testing.assert_close(ours.strategy.model(ours.state), plain.state["model"], rtol=1e-12, atol=1e-13)


def test_push_sum_keeps_sums_where_messages_get_lost() -> None:
    fed = run(quadratics(B, A), method(Sgp, Exponential(), lr=0.0), 25, World(faults=Faults(lost=PerNode(0.5))))
    assert float(fed.state["mass"].sum()) == pytest.approx(5, rel=1e-12)
    plain = run(quadratics(B, 1.0), method(Sgp, Exponential(), lr=0.02), 600, World(faults=Faults(lost=PerNode(0.3))))
    assert (plain.strategy.model(plain.state).mean(0) - B.mean(0)).abs().max() < 0.2


# Gradient tracking and D2


@pytest.mark.parametrize("order", ["adapt_then_combine", "combine_then_adapt"])
@pytest.mark.parametrize("topology", [Ring(), Line(), Complete()], ids=str)
def test_gradient_tracking_by_its_recursion(order: str, topology: Topology) -> None:
    fed = run(quadratics(B, A), method(GradientTracking, topology, 0.05, order=order), 9)
    w, x = weights(topology), torch.zeros(5, 2).double()
    g = A[:, None] * (x - B)
    y = g.clone()
    for k in range(9):
        x = w @ (x - 0.05 * y) if order == "adapt_then_combine" else w @ x - 0.05 * y
        torch.testing.assert_close(models(fed)[k + 1], x, rtol=1e-11, atol=1e-12)
        new = A[:, None] * (x - B)
        y, g = (w @ (y + new - g) if order == "adapt_then_combine" else w @ y + new - g), new
        torch.testing.assert_close(y.mean(0), g.mean(0), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", [GradientTracking, D2])
def test_trackers_reach_the_optimum_beside_which_dsgd_stops(kind: type[Strategy]) -> None:
    topology = Ring("lazy")
    fed, plain = (run(quadratics(B, A), method(one, topology, 0.1), 500) for one in (kind, Dsgd))
    assert (fed.state["model"] - BEST).abs().max() < 1e-6
    assert (plain.state["model"] - BEST).abs().max() > 0.1


def test_the_mean_tracker_is_the_mean_update_also_with_local_steps_and_absent_peers() -> None:
    fed = run(quadratics(B, A), method(GradientTracking, Ring(), 0.05, 3), 12, World(faults=Faults(crash=PerNode(0.3))))
    torch.testing.assert_close(fed.state["tracker"].mean(0), fed.state["last"].mean(0), rtol=1e-10, atol=1e-12)


def test_d2_by_its_recursion() -> None:
    fed, w = run(quadratics(B, A), method(D2, Ring()), 6), weights(Ring())
    last = torch.zeros(5, 2).double()
    g_last = A[:, None] * (last - B)
    x = w @ (last - 0.1 * g_last)
    for k in range(2, 7):
        g = A[:, None] * (x - B)
        x, last, g_last = w @ (2 * x - last - 0.1 * (g - g_last)), x, g
        torch.testing.assert_close(models(fed)[k], x, rtol=1e-11, atol=1e-12)


# CHOCO


def test_choco_by_its_recursion() -> None:
    fed = run(quadratics(B, A), method(Choco, Ring(), step=0.4, crosslink=Ef21(TopK(count=1))), 8)
    w, x, known = weights(Ring()), torch.zeros(5, 2).double(), torch.zeros(5, 2).double()
    for _ in range(8):
        y = x - 0.1 * A[:, None] * (x - B)
        gap = y - known
        at = gap.abs().argmax(1, keepdim=True)  # of equal ones the first
        known = known + torch.zeros_like(gap).scatter(1, at, gap.gather(1, at))
        x = y + 0.4 * (w @ known - known)
    torch.testing.assert_close(fed.state["model"], x, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(x.mean(0), models(fed)[-1].mean(0))


def test_choco_that_sends_all_with_step_one_is_dsgd() -> None:
    ours = run(quadratics(B, A), method(Choco, Ring(), step=1.0, crosslink=Identity()), 6)
    torch.testing.assert_close(ours.state["model"], run(quadratics(B, A), method(Dsgd, Ring()), 6).state["model"], rtol=1e-12, atol=1e-13)


def test_choco_keeps_the_mean_and_comes_together() -> None:
    fed = run(quadratics(B, 1.0), method(Choco, Ring(), 0.02, step=0.3, crosslink=Ef21(TopK(count=1))), 800)
    assert (fed.state["model"].mean(0) - B.mean(0)).abs().max() < 1e-4
    assert (fed.state["model"] - B.mean(0)).abs().max() < 0.5
    mixing = Ring().mixing(5, 0, fold(0))
    assert theory(1.0, 1.0, 1.0) == pytest.approx(1 / 15)
    assert 0 < theory(0.5, mixing.gap(), 4 / 3) < 0.1


# Named schedules


def test_named_methods_are_dsgd_under_their_schedules() -> None:
    world = durations(1, 1.25, 2.5, 1.75, 3.0)
    ours, plain = (run(quadratics(B, A), one(train=steps(1, 0.1), schedule=Pairwise(Complete())), 3, world) for one in (AdPsgd, Dsgd))
    assert torch.equal(ours.state["model"], plain.state["model"])
    assert isinstance(AdPsgd().schedule, Pairwise) and EpidemicLearning().schedule == Gossip(Epidemic())
    fed = run(quadratics(B, A), EpidemicLearning(train=steps(1, 0.1)), 4)
    x = torch.zeros(5, 2).double()
    for step in range(4):
        x = weights(Epidemic(), step) @ (x - 0.1 * A[:, None] * (x - B))
    torch.testing.assert_close(fed.state["model"], x, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (lambda: Sgp(schedule=Gossip(RandomPulls())), "columns that sum to 1"),
        (lambda: Dsgd(schedule=Gossip(Crooked())), "push-sum"),
        (lambda: GradientTracking(schedule=Pairwise()), "rounds of all peers"),
        (lambda: D2(schedule=Pairwise()), "rounds of all peers"),
    ],
)
def test_what_has_no_meaning_is_refused(strategy: Any, message: str) -> None:
    with pytest.raises((ValueError, SettingError), match=message):
        run(quadratics(B), strategy(), 1, durations(1, 1, 1, 1, 1))


def test_reached_says_who_got_a_message() -> None:
    assert inbox([1, 1, 1], update=torch.ones(3, 2)).reached.tolist() == [[True]]
    fed = run(quadratics(B), method(D2, Alone()), 2, World(faults=Faults(crash=PerNode((1.0, 0.0, 0.0, 0.0, 0.0)))))
    assert (fed.state["model"][0] == 0).all() and (fed.state["model"][1:] != 0).any(1).all()


def test_a_star_of_push_sum_weighs_its_centre_no_more() -> None:
    fed = run(quadratics(B, 1.0), method(Sgp, Star("metropolis"), lr=0.1), 150)
    assert (fed.strategy.model(fed.state).mean(0) - B.mean(0)).abs().max() < 1e-5
