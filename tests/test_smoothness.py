"""Smoothness constants: by hand, against Hessians, and the order of their means."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from tools import classification
from torch import nn

from fedsim.base.keys import fold
from fedsim.base.rows import Layout
from fedsim.data.shift import Drift, Facts, bind
from fedsim.data.shift_kinds import Scale
from fedsim.settings.values import PerNode, Population
from fedsim.task.loss import CrossEntropy, Logistic, Loss, SquaredError
from fedsim.task.smoothness import Smoothness, smoothness
from fedsim.task.task import Task


def linear(rows: Any, counts: list[int], loss: Loss, bias: bool = False) -> Task:
    """One linear output on samples [N, p], all targets 0."""
    x = torch.as_tensor(rows, dtype=torch.float64)
    n, model = torch.tensor(counts), nn.Linear(x.shape[1], 1, bias=bias, dtype=torch.float64)
    y = torch.zeros(len(x), dtype=torch.int64 if loss.classes else torch.float64)
    starts, layout = torch.cat([n.new_zeros(1), n.cumsum(0)]), Layout.of(model)
    first = torch.zeros(layout.size, dtype=torch.float64)
    return Task(x, y, torch.arange(len(x)), starts, x, y, None, model, layout, first, loss, 2 if loss.classes else 0)


def test_the_example_of_the_paper() -> None:
    """L = (1, 1, 1, 100): L_AM = 103/4 = 25.75, L_QM = sqrt(10003/4) = 50.01, and the new step may be 1.94 times the old one."""
    found = smoothness(linear([[0.5**0.5], [0.5**0.5], [0.5**0.5], [50**0.5]], [1, 1, 1, 1], SquaredError()))
    assert found.each.tolist() == pytest.approx([1, 1, 1, 100]) and found.whole == pytest.approx(25.75)
    assert (round(found.mean, 2), round(found.quadratic_mean, 2)) == (25.75, 50.01)
    assert found.variance == pytest.approx(10003 / 4 - 25.75**2)
    assert round(found.quadratic_mean / found.mean, 2) == 1.94
    assert round(found.cloned, 2) == 33.09  # clones 1, 1, 1 and 4: sqrt(7/16 (3 + 100^2/4))
    assert (found.rare, found.features) == (pytest.approx(found.mean), 1)  # all have the one feature


def test_rare_features_by_hand() -> None:
    """L = 2, 8, 18; the first feature is of nodes 0 and 1, the second of 2: (2 + 8)/3 and 18/3. A penalty makes all nodes have both."""
    rows = [[1.0, 0], [2, 0], [0, 3]]
    found = smoothness(linear(rows, [1, 1, 1], SquaredError()))
    assert (found.each.tolist(), found.rare, found.features) == (pytest.approx([2, 8, 18]), pytest.approx(6), 1)
    found = smoothness(linear(rows, [1, 1, 1], Logistic(penalty="l2", strength=0.1)))
    assert (found.rare, found.features) == (pytest.approx(found.mean), 2)


@pytest.mark.parametrize(("penalty", "more"), [("none", 0), ("l2", 0.3), ("nonconvex", 0.6)])
def test_logistic_by_hand(penalty: Any, more: float) -> None:
    """Rows (2, 0) and (0, 2): A'A / 2 = 2 I. Row (3, 4): 25. With a 1 for the bias: 26. Of both nodes' mean: (2 I + (9 12; 12 16)) / 2."""
    rows, loss = [[2.0, 0.0], [0.0, 2.0], [3.0, 4.0]], Logistic(penalty=penalty, strength=0.3)
    found = smoothness(linear(rows, [2, 1], loss))
    assert found.each.tolist() == pytest.approx([2 / 4 + more, 25 / 4 + more]) and found.whole == pytest.approx(13.5 / 4 + more)
    assert smoothness(linear(rows, [2, 1], loss, bias=True)).each[1] == pytest.approx(26 / 4 + more)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", [Logistic(penalty="nonconvex"), Logistic(penalty="l2", strength=0.7), SquaredError()], ids=repr)
def test_they_are_the_largest_eigenvalues_of_hessians(loss: Loss, bias: bool) -> None:
    """At 0, where both the logistic loss and the penalty are steepest; nodes with fewer and with more samples than parameters."""
    task = linear(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), [2, 6, 4], loss, bias)

    def objective(x: torch.Tensor, node: int) -> torch.Tensor:
        at, views = slice(task.starts[node], task.starts[node + 1]), task.layout.views(x)
        outputs = torch.func.functional_call(task.model, views, (task.inputs[at],))
        return loss(outputs, task.targets[at]).mean() + (0 if (more := loss.penalty_of(views)) is None else more)

    hessians = torch.stack([torch.autograd.functional.hessian(lambda x, i=i: objective(x, i), task.init) for i in range(3)])
    found = smoothness(task)
    assert torch.allclose(found.each, torch.linalg.eigvalsh(hessians)[:, -1])
    assert found.whole == pytest.approx(float(torch.linalg.eigvalsh(hessians.mean(0))[-1]))


def test_cross_entropy_has_an_upper_bound() -> None:
    task = classification([5, 9])
    hessian = torch.autograd.functional.hessian(
        lambda x: CrossEntropy()(task.inputs[:5] @ x[:18].view(3, 6).T + x[18:], task.targets[:5]).mean(), torch.zeros(21)
    )
    assert float(torch.linalg.eigvalsh(hessian)[-1]) <= float(smoothness(task).each[0])


@given(some.lists(some.floats(0.01, 1e4), min_size=1, max_size=20))
def test_means_are_in_order(values: list[float]) -> None:
    """L_AM <= L_QM <= sqrt(n) L_AM."""
    found = Smoothness(torch.tensor(values, dtype=torch.float64), 1.0, 1.0, 1)
    assert found.mean <= found.quadratic_mean * (1 + 1e-12) <= len(values) ** 0.5 * found.mean * (1 + 1e-11)


def test_the_mean_is_no_rougher_than_the_nodes_on_average() -> None:
    found = smoothness(classification([3, 8, 5, 40]))
    assert found.whole <= found.mean * (1 + 1e-12)
    task = classification([3, 8, 5, 40])
    assert smoothness(task) is smoothness(task) and torch.equal(smoothness(task).each, found.each)


def test_samples_count_as_their_nodes_have_them() -> None:
    """Three times as long on node 1: 9 times the constant; with a change that comes in time there is no one constant."""
    task, people = linear([[2.0], [2.0]], [1, 1], SquaredError()), Population(2, {})
    scale, facts = Scale(factor=PerNode((1.0, 3.0))), Facts((1,), True, 0)
    assert smoothness(replace(task, shifts=bind((scale,), facts, people, fold(0, "shift")))).each.tolist() == [8, 72]
    with pytest.raises(ValueError, match="without drift"):
        smoothness(replace(task, shifts=bind((Drift(inner=scale),), facts, people, fold(0, "shift"))))


def test_what_has_no_known_constants_is_refused() -> None:
    task = classification([3, 4])
    mlp = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    for other in (classification([3, 4], model=mlp), replace(task, loss=type("Own", (Loss,), {})())):
        with pytest.raises(ValueError, match="smoothness constants are known for the model `logistic`"):
            smoothness(other)
    with pytest.raises(ValueError, match="samples that are numbers"):
        smoothness(replace(task, inputs=task.inputs.long()))
