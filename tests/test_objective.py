"""The objective and its gradient as a metric: by hand, by autograd over all nodes, and however samples are cut."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tools import classification, quadratics
from torch.nn.functional import cross_entropy

from fedsim.base.keys import fold
from fedsim.data.shift import Facts, bind
from fedsim.data.shift_kinds import SwapLabels
from fedsim.metrics.objective import GradientNorm
from fedsim.metrics.view import View
from fedsim.settings.choice import Choice
from fedsim.settings.values import Population
from fedsim.task.loss import Logistic
from fedsim.task.task import Drawn
from fedsim.world import LabelFlip, Liars


def test_by_hand() -> None:
    """F_i = a_i/2 (w - b_i)^2 with a = (1, 3), b = (2, -2) at 0: loss (2 + 6)/2, slope (-2 + 6)/2; by samples (2 + 18)/4, 16/4."""
    task = quadratics([2.0, -2.0], [1.0, 3.0], [1, 3])
    view = View(task, task.init[None])
    assert GradientNorm(weights="uniform").measure(view) == {"train/loss": 4.0, "train/gradient_norm": 2.0}
    assert GradientNorm().measure(view) == {"train/loss": 5.0, "train/gradient_norm": 4.0}


def test_peers_count_by_their_mean() -> None:
    """At 0 and at 4: slopes 2 and (2 + 18)/2 = 10."""
    task = quadratics([2.0, -2.0], [1.0, 3.0])
    assert GradientNorm().measure(View(task, torch.tensor([[0.0], [4.0]]).double()))["train/gradient_norm"] == 6


@pytest.mark.parametrize("slab", [1, 4, 4096])
def test_it_is_the_gradient_of_the_mean_loss(slab: int) -> None:
    task = classification([3, 8, 5])
    x = task.init.clone().requires_grad_()
    losses = cross_entropy(task.inputs @ x[:18].view(3, 6).T + x[18:], task.targets, reduction="none")
    for weights, loss in (("samples", losses.mean()), ("uniform", torch.stack([part.mean() for part in losses.split([3, 8, 5])]).mean())):
        found = GradientNorm(weights=weights).measure(View(task, task.init[None], slab=slab))  # type: ignore[arg-type]
        assert found["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
        assert found["train/gradient_norm"] == pytest.approx(float(torch.autograd.grad(loss, x, retain_graph=True)[0].norm()), rel=1e-5)


def test_attackers_who_flip_labels_train_on_the_flipped_ones() -> None:
    task = classification([20])
    liars = Liars(LabelFlip(nodes=Choice("all")), np.array([True]), fold(0))
    found = [
        GradientNorm().measure(View(one, one.init[None])) for one in (liars.poisoned(task), replace(task, targets=2 - task.targets), task)
    ]
    assert found[0] == found[1] != found[2]


def test_penalties_count_once() -> None:
    """At x = 0 samples of opposite classes cancel; the slope of the penalty at x_j = 1 is 0.1 x 2/4 and 0.1 x 1."""
    task = quadratics([[1.0, 1.0]])
    at = View(task, torch.tensor([[1.0, 1.0]]).double())

    class Flat(Logistic):
        def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return 0 * outputs

    for penalty, loss, slope in (("nonconvex", 0.1, 0.05), ("l2", 0.1, 0.1)):
        at.task = replace(task, loss=Flat(penalty=penalty))  # type: ignore[arg-type]
        assert GradientNorm().measure(at) == pytest.approx({"train/loss": loss, "train/gradient_norm": slope * 2**0.5})


def test_samples_are_as_their_nodes_have_them() -> None:
    """Labels 0 and 1 swapped on all nodes are the labels swapped; and nodes may draw their samples."""
    task = classification([3, 8, 5])
    people = Population(3, {})
    swapped = replace(task, shifts=bind((SwapLabels(pair=(0, 1)),), Facts((6,), True, 3), people, fold(0, "shift")))
    other = replace(task, targets=torch.tensor([1, 0, 2])[task.targets])
    assert GradientNorm().measure(View(swapped, task.init[None])) == GradientNorm().measure(View(other, task.init[None]))
    drawn = replace(task, samples=Drawn(fold(0, "drawn"), 16))
    node = torch.arange(3).repeat_interleave(task.counts)
    place = torch.cat([torch.arange(int(count)) for count in task.counts])
    plain = replace(task, samples=drawn.sample(node, place))
    assert GradientNorm().measure(View(drawn, task.init[None])) == GradientNorm().measure(View(plain, task.init[None]))
