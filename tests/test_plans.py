"""Plans agree with plain autograd and with each other, and rows keep their bits in any company."""

from typing import Any

import pytest
import torch
from tools import classification
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.gradients.choose import choose, convolutional
from fedsim.gradients.convolutions import Convolutions, Gathered
from fedsim.gradients.looped import Looped
from fedsim.gradients.one_way import Grouped, Unfolded
from fedsim.gradients.plan import Plan
from fedsim.gradients.samples import Samples
from fedsim.gradients.stacked import Stacked
from fedsim.models import Cnn, CnnGn, LeafCnn, Lenet, Logistic, Mlp, Model
from fedsim.task.task import Task
from strategies.fedavg import FedAvg

IMAGES = (1, 12, 12)
MODELS: list[tuple[Model, tuple[int, ...]]] = [
    (Logistic(), (6,)),
    (Mlp(hidden=(8, 5)), (6,)),
    (LeafCnn(), IMAGES),
    (Cnn(), IMAGES),
    (CnnGn(), (3, 16, 16)),
    (Lenet(), (1, 28, 28)),
    (Lenet(norm="group", activation="sigmoid"), (3, 32, 32)),
]


def task_of(model: Model, shape: tuple[int, ...]) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = model.build(shape, 3)
    size = int(torch.tensor(shape).prod())
    task = classification([5, 3, 9, 2], features=size, model=module)
    task.inputs, task.test_inputs = task.inputs.view(-1, *shape), task.test_inputs.view(-1, *shape)
    task.init = Layout.of(module).join({name: p.detach() for name, p in module.named_parameters()})
    return task


def arguments(task: Task, rows: int, batch: int = 4) -> tuple[Tensor, Samples]:
    x = task.init + 0.01 * normal(fold(1, torch.arange(rows)), task.layout.size)
    index = torch.arange(rows * batch).view(rows, batch) % len(task.inputs)
    weight = torch.full((rows, batch), 1 / (batch - 1))
    weight[:, -1] = 0  # padding
    return x, Samples(task.inputs[index], task.targets[index], weight)


def rolled(x: Tensor, samples: Samples) -> tuple[Tensor, Samples]:
    """The rows in another order."""
    return x.roll(1, 0), Samples(*(tensor.roll(1, 0) for tensor in samples.flat()))


def plain(task: Task, x: Tensor, samples: Samples, at: int) -> Tensor:
    """One row's gradient by autograd on the samples that count."""
    row = x[at].clone().requires_grad_()
    inputs, targets, weight = (tensor[at] for tensor in samples.flat())
    outputs = functional_call(task.model, task.layout.views(row), (inputs[weight > 0],))
    nn.functional.cross_entropy(outputs, targets[weight > 0]).backward()
    assert row.grad is not None
    return row.grad


@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda value: getattr(value, "name", ""))
def test_every_model_s_plans_agree_with_autograd(model: Model, shape: tuple[int, ...]) -> None:
    task = task_of(model, shape)
    args = arguments(task, 3)
    kinds = [Stacked, *([Grouped, Unfolded] if convolutional(task) else [])]
    stacked = [kind(task, FedAvg().loss, 4, exact=False).gradient(*args) for kind in kinds]
    looped = Looped(task, FedAvg().loss, 4).gradient(*args)
    for row in range(3):
        expected = plain(task, *args, row)
        scale = float(expected.norm())
        for found in (*stacked, looped):
            assert float((found[row] - expected).norm()) < 1e-5 * scale


@pytest.mark.parametrize(("model", "shape"), [*MODELS[:2], (Logistic(), (784,)), (Mlp(hidden=(33, 7)), (50,))])
def test_dense_rows_have_the_same_bits_in_every_chunk_shape(model: Model, shape: tuple[int, ...]) -> None:
    task = task_of(model, shape)
    for batch in (2, 5, 33):  # sizes that leave matrices unaligned too
        args = arguments(task, 21, batch)
        whole = Stacked(task, FedAvg().loss, 21, exact=True).gradient(*args)
        for chunk in (1, 2, 3, 13, 20):
            assert torch.equal(Stacked(task, FedAvg().loss, chunk, exact=True).gradient(*args), whole)
            assert torch.equal(Stacked(task, FedAvg().loss, chunk, exact=False).gradient(*args), whole)
        turned = Stacked(task, FedAvg().loss, 21, exact=True).gradient(*rolled(*args))
        assert torch.equal(turned, whole.roll(1, 0))  # wherever a row stands
        assert torch.equal(stepped(task, 21, *args), stepped(task, 4, *args))
        assert torch.equal(stepped(task, 21, *rolled(*args)), stepped(task, 13, *args).roll(1, 0))


def stepped(task: Task, chunk: int, x: Tensor, samples: Samples) -> Tensor:
    """After two steps in place."""
    plan, y = Stacked(task, FedAvg().loss, chunk, exact=True), x.clone()
    plan.descend(y, 0.3, samples)
    plan.descend(y, 0.3, samples, keep=0.9, at=y + 0.01)
    return y


@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda value: getattr(value, "name", ""))
def test_a_step_in_place_is_one_along_the_gradient(model: Model, shape: tuple[int, ...]) -> None:
    task = task_of(model, shape)
    x, samples = arguments(task, 3)
    gradient = Looped(task, FedAvg().loss, 4).gradient(x, samples)
    other = x + 0.01
    for plan in (*(Stacked(task, FedAvg().loss, chunk, exact=False) for chunk in (3, 2)), Looped(task, FedAvg().loss, 3)):
        for lr, keep in ((0.3, 1.0), (0.3, 0.9), (torch.full((3, 1), 0.3), torch.full((3, 1), 0.9))):
            kept = 1.0 if isinstance(keep, float) and keep == 1 else 0.9
            for moved, at in ((x.clone(), None), (other.clone(), x)):  # at itself, and elsewhere
                expected = kept * moved - 0.3 * gradient
                plan.descend(moved, lr, samples, keep, at)
                assert float((moved - expected).norm()) < 1e-5 * max(float(gradient.norm()), float(x.norm()) / 10)


@pytest.mark.parametrize("plan", [Looped, Stacked])
def test_losses_are_those_of_the_strategy(plan: type[Plan]) -> None:
    task = task_of(Logistic(), (6,))
    x, samples = arguments(task, 3)
    ours = Looped(task, FedAvg().loss, 2) if plan is Looped else Stacked(task, FedAvg().loss, 2, exact=True)
    for row, loss in enumerate(ours.loss(x, samples).tolist()):
        outputs = functional_call(task.model, task.layout.views(x[row]), (samples.inputs[row][:3],))
        assert loss == pytest.approx(float(nn.functional.cross_entropy(outputs, samples.targets[row][:3])), rel=1e-6)


def test_a_shape_is_traced_once_and_short_chunks_use_smaller_shapes() -> None:
    task = task_of(Logistic(), (6,))
    plan = Stacked(task, FedAvg().loss, 32, exact=True)
    assert plan.shapes == [1, 2, 4, 8, 12, 16, 20, 24, 28, 32]
    for rows in (32, 31, 30, 29, 32):
        plan.gradient(*arguments(task, rows))
    assert len(plan.traced) == 1
    plan.gradient(*arguments(task, 3))
    assert sorted(key[1][0] for key in plan.traced) == [4, 32]


def test_own_models_stack_and_dense_models_are_never_looped_by_mistake() -> None:
    for model, shape in MODELS[:2]:
        plan, reason = choose(task_of(model, shape), FedAvg().loss, "auto", 100, threads=1)
        assert (plan.name, reason) == ("stacked", "the model stacks")


def test_convolutions_on_a_cpu_are_looped_unless_asked() -> None:
    task = task_of(Cnn(), IMAGES)
    assert choose(task, FedAvg().loss, "auto", 4, 1)[0].name == "looped"
    assert choose(task, FedAvg().loss, "stacked", 4, 1)[0].name == "stacked"


def products(*sizes: int, places: float = 16, **settings: Any) -> bool:
    """Is a convolution of 2 images [3, side, side] with kernels [4, 3, size, size] a product? It has the same numbers either way."""
    side, size = sizes
    x, kernel, bias = (normal(fold(0, name), count) for name, count in (("x", 6 * side**2), ("kernel", 12 * size**2), ("bias", 4)))
    args = x.view(2, 3, side, side).double(), kernel.view(4, 3, size, size).double(), bias.double()
    expected = nn.functional.conv2d(*args, **settings)
    with Convolutions(places) as mode:
        found = mode._product(*args, **settings)
        torch.testing.assert_close(nn.functional.conv2d(*args, **settings), expected)
    return found is not None


def test_a_convolution_of_few_places_is_a_product_of_patches_and_kernels() -> None:
    assert products(4, 3, padding=1) and not products(5, 3, padding=1)  # 16 and 25 places
    assert products(32, 8, stride=8) and not products(32, 8, stride=(6, 8))  # 4 x 4 and 5 x 4
    assert products(9, 3, padding=(0, 1), dilation=2, stride=(2, 3), places=9)  # 3 x 3
    assert not products(4, 3, padding="same")
    task = task_of(Cnn(), IMAGES)
    assert [choose(task, FedAvg().loss, name, 4, 1)[0].name for name in ("grouped", "unfolded")] == ["grouped", "unfolded"]


@pytest.mark.parametrize(("model", "shape"), MODELS, ids=lambda value: getattr(value, "name", ""))
def test_what_convolutions_want_elsewhere_is_what_rows_have(model: Model, shape: tuple[int, ...]) -> None:
    task = task_of(model, shape)
    gathered = Gathered(task.model, task.layout)
    assert gathered.run == {"cnn": 32, "leaf_cnn": 32, "cnn_gn": 32, "lenet": 2}.get(model.name, 0)
    for count in (1, 3):
        rows, found = arguments(task, count)[0], gathered(arguments(task, count)[0])
        views = {name: view for name, view in task.layout.views(rows).items() if view.dim() > 3 or f"{name[:-4]}weight" in found}
        assert found.keys() == views.keys() and all(one.is_contiguous() for one in found.values())
        assert all(torch.equal(found[name], views[name]) for name in views)
    assert gathered(task.init.expand(2, -1)).keys() == found.keys()  # one row for all


class Stubborn(nn.Module):
    """Branches on its data, so it can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out * 2 if float(x.sum()) > 0 else out


def test_a_model_that_does_not_stack_is_looped_and_the_reason_is_said() -> None:
    task = classification([5, 5], model=Stubborn())
    plan, reason = choose(task, FedAvg().loss, "auto", 4, 1)
    assert plan.name == "looped"
    assert reason.startswith("the model doesn't stack: ")
    args = arguments(task, 2)
    ours = plan.gradient(*args)
    torch.testing.assert_close(ours[1], plain(task, *args, 1), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="doesn't stack"):
        choose(task, FedAvg().loss, "stacked", 4, 1)
