"""Gradients with respect to samples: plans agree with autograd on one sample after the other, in evaluation mode, and renew nothing."""

import shutil
from dataclasses import replace

import pytest
import torch
from test_plans import MODELS, arguments, task_of
from tools import classification
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.base.keys import fold, normal
from fedsim.base.rows import BUFFERS
from fedsim.gradients.graphs import Compiled
from fedsim.gradients.looped import Looped
from fedsim.gradients.plan import Plan
from fedsim.gradients.stacked import Stacked
from fedsim.models import Mlp, Model
from fedsim.models.pure import evaluation, pure, statistics
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


def plain(task: Task, row: Tensor, sample: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One sample's loss and slope by torch alone."""
    given = sample.clone().requires_grad_()
    loss = nn.functional.cross_entropy(functional_call(task.model, task.layout.views(row), (given[None],)), target[None])
    return loss.detach(), torch.autograd.grad(loss, given)[0]


def plans(task: Task) -> list[Plan]:
    return [Looped(task, FedAvg().loss, 4), Stacked(task, FedAvg().loss, 4, exact=False), Stacked(task, FedAvg().loss, 2, exact=True)]


@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda value: getattr(value, "name", ""))
def test_every_model_s_plans_agree_with_autograd_sample_by_sample(model: Model, shape: tuple[int, ...]) -> None:
    task = task_of(model, shape)
    x, samples = arguments(task, 3)
    for plan in plans(task):
        losses, slopes = plan.input_gradient(x, samples)
        assert losses.shape == samples.weight.shape and slopes.shape == samples.inputs.shape
        assert not losses[:, -1].any() and not slopes[:, -1].any()  # padding
        for row in range(3):
            for place in range(3):
                loss, slope = plain(task, x[row], samples.inputs[row, place], samples.targets[row, place])
                assert float(losses[row, place]) == pytest.approx(float(loss), rel=1e-5)
                assert float((slopes[row, place] - slope).norm()) < 2e-5 * float(slope.norm())


def test_a_sample_s_gradient_is_of_its_own_loss_whatever_it_weighs() -> None:
    task = task_of(Mlp(hidden=(8,)), (6,))
    x, samples = arguments(task, 3)
    weight = torch.where(samples.weight > 0, torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) + 0.1, 0)
    for plan in plans(task):
        for one, other in zip(plan.input_gradient(x, samples), plan.input_gradient(x, samples._replace(weight=weight)), strict=True):
            assert torch.equal(one, other)


def test_dense_rows_have_the_same_bits_in_every_chunk_shape() -> None:
    task = task_of(Mlp(hidden=(33, 7)), (50,))
    args = arguments(task, 21, 5)
    whole = Stacked(task, FedAvg().loss, 21, exact=True).input_gradient(*args)
    for chunk in (1, 2, 3, 13, 20):
        for found, expected in zip(Stacked(task, FedAvg().loss, chunk, exact=True).input_gradient(*args), whole, strict=True):
            assert torch.equal(found, expected)


def test_dropout_is_off_and_running_statistics_are_used_and_stay() -> None:
    module = pure(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)))
    layout, first = statistics(module)
    task = replace(classification([5, 3, 9, 2], model=module), buffers=layout, first_buffers=first)
    x, samples = arguments(task, 3)
    buffers = 0.5 + normal(fold(4, torch.arange(3)), layout.size).abs()
    extra = {"key": fold(2, torch.arange(3)), BUFFERS: buffers.clone()}
    for plan in plans(task):
        losses, slopes = plan.input_gradient(x, samples._replace(extra=extra))
        assert torch.equal(extra[BUFFERS], buffers)
        for row in range(3):
            given = samples.inputs[row].clone().requires_grad_()
            with evaluation(module):
                outputs = functional_call(module, task.layout.views(x[row]) | layout.views(buffers[row]), (given,))
            loss = nn.functional.cross_entropy(outputs[:3], samples.targets[row, :3], reduction="none")
            torch.testing.assert_close(losses[row, :3], loss.detach(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(slopes[row], torch.autograd.grad(loss.sum(), given)[0], rtol=1e-5, atol=1e-6)
        assert all(part.training for part in module.modules())  # training goes on as before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="the compiled plan needs a C++ compiler")
def test_the_compiled_plan_agrees() -> None:
    task = task_of(Mlp(hidden=(8,)), (6,))
    x, samples = arguments(task, 5)
    compiled = Compiled(task, FedAvg().loss, 3).input_gradient(x, samples)
    for found, expected in zip(compiled, Looped(task, FedAvg().loss, 3).input_gradient(x, samples), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
