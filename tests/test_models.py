import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout
from fedsim.models import Cnn, CnnGn, LeafCnn, Lenet, Logistic, Mlp
from fedsim.models.own import OwnModel
from fedsim.models.residual import ResNet18
from fedsim.task.loss import CrossEntropy, SquaredError

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("model", "shape", "outputs", "parameters"),
    [
        (Logistic(), MNIST, 10, 7850),
        (Mlp(), MNIST, 10, 784 * 64 + 64 + 64 * 10 + 10),
        (Mlp(hidden=()), (9, 128), 6, 9 * 128 * 6 + 6),
        (Mlp(hidden=(200, 50)), (784,), 10, 785 * 200 + 201 * 50 + 51 * 10),
        (Cnn(), MNIST, 10, 421_642),  # fedstale's
        (LeafCnn(), MNIST, 62, 6_603_710),  # LEAF's, on FEMNIST
        (CnnGn(), CIFAR, 10, 456_090),
        (Lenet(), MNIST, 10, 61_706),  # LeNet-5
        (Lenet(), CIFAR, 10, 62_006),
        (Lenet(norm="group"), MNIST, 10, 61_706 + 2 * (6 + 16)),
        (ResNet18(), CIFAR, 10, 11_173_962),
        (ResNet18(norm="batch"), CIFAR, 10, 11_173_962),
    ],
)
def test_number_of_parameters(model, shape, outputs, parameters):
    module = model.build(shape, outputs)
    assert Layout.of(module).size == parameters
    assert module(torch.zeros(2, *shape)).shape == (2, outputs)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (9, 128), (3, 17, 40)])
@pytest.mark.parametrize("model", [Logistic(), Mlp(), Cnn(), LeafCnn(), CnnGn(), ResNet18(groups=2, width=4)])
def test_models_suit_other_shapes(model, shape):
    assert model.build(shape, 7)(torch.rand(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(("model", "shape"), [(Lenet(), (1, 8, 8)), (Cnn(), (784,)), (CnnGn(), (3, 4, 40))])
def test_shapes_that_do_not_suit_are_refused(model, shape):
    with pytest.raises(SettingError, match=r"task.model: images .*are needed, not"):
        model.build(shape, 10)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(SettingError, match=r"task.model.groups: 32 groups don't divide a width of 48"):
        ResNet18(width=48).build(CIFAR, 10)


TRACED = [
    Logistic(),
    Mlp(),
    Cnn(),
    LeafCnn(),
    CnnGn(),
    ResNet18(groups=2, width=4),
    *(Lenet(n, "tanh") for n in ("none", "group", "layer")),
]


@pytest.mark.parametrize("model", TRACED)
def test_gradients_stack_and_trace(model):
    torch.manual_seed(0)  # a largest of a pool that is nearly two has either slope
    shape = (1, 12, 12)
    module, loss = model.build(shape, 3), CrossEntropy()
    layout = Layout.of(module)

    def mean_loss(row, inputs, targets):
        return loss(functional_call(module, layout.views(row), (inputs,)), targets).mean()

    start = layout.join({name: p.detach() for name, p in module.named_parameters()})
    rows = torch.stack([start, start * 1.1])
    inputs, targets = torch.rand(2, 4, *shape), torch.tensor([[0, 1, 2, 0], [1, 1, 2, 2]])
    stacked = make_fx(vmap(grad(mean_loss)))(rows, inputs, targets)(rows, inputs, targets)
    for row, x, y, found in zip(rows, inputs, targets, stacked, strict=True):
        torch.testing.assert_close(found, grad(mean_loss)(row, x, y), rtol=1e-4, atol=1e-6)
        assert found.abs().sum() > 0


class Net(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int = 5):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], width), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)


def test_own_module_is_given_shape_and_outputs_if_it_asks():
    assert Layout.of(OwnModel(Net, {"width": 4}).build((2, 3), 7)).size == 6 * 4 + 4 + 4 * 7 + 7
    assert Layout.of(OwnModel(nn.Linear, {"in_features": 2, "out_features": 3}).build((2,), 3)).size == 9
    with pytest.raises(TypeError, match=r"nn.Module is needed, not dict"):
        OwnModel(lambda: {}).build((2,), 3)


def test_losses_by_hand():
    outputs = torch.tensor([[0.0, 0.0], [1.0, 1.0 + torch.log(torch.tensor(3.0))]])
    losses = CrossEntropy()(outputs, torch.tensor([0, 1]))
    torch.testing.assert_close(losses, torch.log(torch.tensor([2.0, 4 / 3])))
    assert CrossEntropy().correct(outputs, torch.tensor([1, 1])).tolist() == [False, True]
    assert SquaredError()(torch.tensor([[1.0], [5.0]]), torch.tensor([3.0, 4.0])).tolist() == [4.0, 1.0]
    assert SquaredError()(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 3.0]])).tolist() == [5.0]
    assert SquaredError().correct(outputs, outputs) is None
