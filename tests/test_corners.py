"""Losses with corners, by hand, and D-SGD on them: weights I - beta_k L that fall, and the optimum that subgradients reach."""

import numpy as np
import pytest
import torch
from test_dsgd import Apart, dsgd
from tools import models, quadratics, steps
from tools import quick as run
from torch import nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Layout
from fedsim.method.train import Train
from fedsim.schedule import Gossip
from fedsim.settings.values import Constant, PowerLaw, Ramp
from fedsim.task.losses import AbsoluteError, Hinge
from fedsim.task.task import Task
from fedsim.topology import Complete, Ring
from fedsim.topology.changing import FinalMerge, Laplacian, OnePeerExponential
from fedsim.topology.graphs import DirectedRing, Line, Star

KEY = fold(0, "topology")
HALVES = Laplacian(inner=Line(), beta=PowerLaw(0.5))  # 1/2, 1/4, 1/6, ...


def test_weights_that_fall_on_three_nodes() -> None:
    """L of a line is [1 -1 0; -1 2 -1; 0 -1 1]."""
    first, second = (HALVES.mixing(3, step, KEY).weights.toarray().tolist() for step in range(2))
    assert first == [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    assert second == [[0.75, 0.25, 0], [0.25, 0.5, 0.25], [0, 0.25, 0.75]]
    start = (4.0, 0.0, -8.0)  # also the centres: the first gradients are 0
    strategy = dsgd(HALVES, "combine_then_adapt", lr=0.5, first=tuple((x,) for x in start))
    assert models(run(quadratics(list(start)), strategy, 2))[1:, :, 0].tolist() == [[2, -2, -4], [2, -0.5, -5.5]]


@pytest.mark.parametrize("graph", [Ring(), Complete(), Star(), Line()])
def test_a_constant_weight_is_that_of_the_largest_degree(graph) -> None:
    most = 1 + graph.mixing(6, 0, KEY).heard.max()
    one = Laplacian(inner=graph, beta=Constant(1 / most))
    assert not one.changes
    found, known = (t.mixing(6, 0, KEY).weights.toarray() for t in (one, type(graph)("max_degree")))
    assert found == pytest.approx(known, abs=1e-15)


@pytest.mark.parametrize(
    ("topology", "said"),
    [
        (
            Laplacian(inner=Star(), beta=PowerLaw(0.5)),
            "`beta` is 0.5 in round 1, and a node with 3 neighbours can take at most 1/3 of each",
        ),
        (Laplacian(beta=Ramp(0.1, 0.9, 50)), "`beta` is 0.9 in round 51"),
        (Laplacian(inner=DirectedRing(), beta=Constant(0.1)), "`directed_ring` is directed"),
        (Laplacian(inner=OnePeerExponential(), beta=Constant(0.1)), "a graph that stays, not `one_peer_exponential`"),
        (Laplacian(inner=FinalMerge(), beta=Constant(0.1)), "a graph that stays, not `final_merge`"),
    ],
)
def test_weights_that_are_none(topology, said) -> None:
    with pytest.raises(SettingError, match=r"schedule\.topology") as caught:
        run(quadratics(torch.zeros(4)), dsgd(topology), 1)
    assert said in caught.value.message


def test_losses_and_their_subgradients_by_hand() -> None:
    outputs = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    loss = AbsoluteError()(outputs, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert loss.tolist() == [3, 3.5]
    [slope] = torch.autograd.grad(loss.sum(), outputs)
    assert slope.tolist() == [[0, -1], [1, -1]]
    outputs = torch.tensor([[2.0, 0.5, 1.5], [0.0, 0.0, 0.0], [3.0, 1.0, 2.0]], requires_grad=True)
    loss = Hinge()(outputs, torch.tensor([0, 1, 0]))
    assert loss.tolist() == [0.5, 1, 0]  # 1 + 1.5 - 2; of three level ones; at the corner
    [slope] = torch.autograd.grad(loss.sum(), outputs)
    assert slope.tolist() == [[-1, 0, 1], [0.5, -1, 0.5], [0, 0, 0]]
    assert Hinge()(torch.zeros(1, 3, 2), torch.tensor([[1, 0, -1]])).tolist() == [1]


def absolute(centres: list[float]) -> Task:
    """Node i has F_i(w) = |w - b_i|."""
    n, model = len(centres), nn.Linear(1, 1, bias=False).double()
    x, y = torch.ones(n, 1).double(), torch.tensor(centres).double()
    start = torch.zeros(1).double()
    return Task(x, y, torch.arange(n), torch.arange(n + 1), x, y, None, model, Layout.of(model), start, AbsoluteError(), 0)


def test_subgradients_lead_peers_to_a_minimum() -> None:
    """That of a sum of distances is the median, 1, not the mean of the centres, 7: with alpha_k / beta_k going to 0 all peers come to it,
    with constant ones they stay apart."""
    task = absolute([0.0, 1.0, 20.0])
    falling = Apart(
        train=Train(steps=1, batch="all", lr=PowerLaw(1.0, 1.0, 2)),
        schedule=Gossip(Laplacian(inner=Line(), beta=PowerLaw(0.4, 0.2))),
        order="combine_then_adapt",
    )
    ends = run(task, falling, 200).state["model"][:, 0]
    assert (ends - 1).abs().max() < 0.1
    still = Apart(train=steps(1, 0.5), schedule=Gossip(Laplacian(inner=Line(), beta=Constant(0.4))), order="combine_then_adapt")
    assert (run(task, still, 30).state["model"][:, 0] - 1).abs().max() > 0.5
    assert np.isclose(falling.schedule.topology.mixing(3, 9, KEY).weights[0, 1], 0.4 * 10**-0.2)
