"""The logistic loss of one output, and what parameters themselves cost: by hand, on every plan, and refused where it has no meaning."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from launch import call
from tools import classification, models, run, steps
from torch import nn
from torch.nn.functional import softplus

from fedsim.base.errors import SettingError
from fedsim.gradients.looped import Looped
from fedsim.gradients.samples import Samples
from fedsim.gradients.stacked import Stacked
from fedsim.method.strategy import Strategy
from fedsim.models import Logistic as Linear
from fedsim.task.loss import CrossEntropy, Logistic
from fedsim.task.task import Task
from strategies.eggroll import Eggroll
from strategies.fedavg import FedAvg


def binary(penalty: str = "none", strength: float = 0.1, counts: tuple[int, ...] = (4, 6, 5)) -> Task:
    """Two classes, one output, no bias."""
    task = classification(counts, classes=2, model=nn.Linear(6, 1, bias=False))
    return replace(task, loss=Logistic(penalty=penalty, strength=strength))  # type: ignore[arg-type]


def by_hand(task: Task, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """f(x) on the samples `at`, from the formula of the papers."""
    y = 2.0 * task.targets[at] - 1
    found = softplus(-y * (task.inputs[at] @ x)).mean()
    strength = task.loss.strength  # type: ignore[attr-defined]
    squares = x.square()
    return (
        found
        + {"none": x.sum() * 0, "l2": strength / 2 * squares.sum(), "nonconvex": strength * (squares / (1 + squares)).sum()}[
            task.loss.penalty  # type: ignore[attr-defined]
        ]
    )


def test_the_loss_by_hand() -> None:
    """log(1 + e^-z) of the second class, log(1 + e^z) of the first; and z > 0 says the second."""
    outputs, targets = torch.tensor([[0.0], [2.0], [2.0]]), torch.tensor([1, 1, 0])
    assert Logistic()(outputs, targets).tolist() == pytest.approx([0.693147, 0.126928, 2.126928], abs=1e-6)
    assert Logistic().correct(outputs, targets).tolist() == [False, True, False]


def test_penalties_by_hand() -> None:
    """x = (0, 1, 3): 0 + 1/2 + 9/10 = 1.4, and (0 + 1 + 9) / 2 = 5."""
    params = {"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([3.0])}
    assert Logistic(penalty="nonconvex", strength=0.5).penalty_of(params) == pytest.approx(0.7)
    assert Logistic(penalty="l2", strength=0.5).penalty_of(params) == 2.5
    assert Logistic().penalty_of(params) is None and CrossEntropy().penalty_of(params) is None


@pytest.mark.parametrize("penalty", ["none", "l2", "nonconvex"])
@pytest.mark.parametrize("plan", [Stacked, Looped])
def test_gradients_are_those_of_the_whole_objective(penalty: str, plan: type) -> None:
    task = binary(penalty)
    x = torch.stack([task.init, -task.init, 3 * task.init]).requires_grad_()
    at = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    ready = plan(task, FedAvg().loss, 3, **({"exact": True} if plan is Stacked else {}))
    samples = Samples(task.inputs[at], task.targets[at], torch.full((3, 4), 0.25))
    values = torch.stack([by_hand(task, row, places) for row, places in zip(x, at, strict=True)])
    assert torch.allclose(ready.loss(x.detach(), samples), values.detach(), rtol=1e-6)
    assert torch.allclose(ready.gradient(x.detach(), samples), torch.autograd.grad(values.sum(), x)[0], atol=1e-6)


@pytest.mark.parametrize("plan", ["auto", "looped"])
def test_a_penalty_counts_with_the_weights_of_the_samples(plan: str) -> None:
    """One FedAvg round of one full step each is a step along the gradient of the mean over all samples, penalty included once."""
    task = binary("nonconvex")
    fed = run(task, FedAvg(train=steps(1, 0.5), weights="samples"), 1, plan=plan)
    x = task.init.clone().requires_grad_()
    gradient = torch.autograd.grad(by_hand(task, x, torch.arange(15)), x)[0]
    assert torch.allclose(models(fed)[1, 0], task.init - 0.5 * gradient, atol=1e-6)


def test_more_than_two_classes_are_refused() -> None:
    with pytest.raises(SettingError, match=r"task.loss: `logistic` tells two classes apart, and there are 10; `cross_entropy` takes more"):
        Logistic().outputs(10)
    assert (Logistic().outputs(2), CrossEntropy().outputs(10)) == (1, 10)


def test_members_that_are_never_formed_can_not_be_penalised() -> None:
    strategy: Strategy = Eggroll(population=2)
    with pytest.raises(SettingError, match=r"task.loss.penalty: a member's parameters, .* never formed by `eggroll`"):
        strategy.start(torch.zeros(1, 6), binary("l2"))
    assert strategy.start(torch.zeros(1, 6), binary())["model"].shape == (1, 6)


def test_a_scenario_has_one_output_and_no_bias(folder: Path) -> None:
    text = """task:
  data: gaussians
  model: {name: logistic, bias: false}
  loss: {name: logistic, penalty: l2}
strategy: fedavg
stop: {rounds: 3}
"""
    assert Linear(bias=False).build((10,), 1)[1].bias is None
    (folder / "binary.yaml").write_text(text)
    assert call("run", "binary.yaml", "track=none", "engine.plan=looped").exit_code == 0
    (folder / "ten.yaml").write_text(text.replace("gaussians", "digits"))
    error = call("run", "ten.yaml", "track=none")
    assert error.exit_code == 2 and "task.loss: `logistic` tells two classes apart, and there are 10" in error.stderr
