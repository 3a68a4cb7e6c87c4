"""Losses for rare and hard classes, and for several labels a sample: by hand, beside PyTorch's, and what they do not take."""

import pytest
import torch
from test_task import X, task_of
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fedsim.base.errors import SettingError
from fedsim.task.loss import CrossEntropy
from fedsim.task.losses import BinaryCrossEntropy, Focal, WeightedCrossEntropy

OUTPUTS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-3.0, 1.0, 2.0]])
TARGETS = torch.tensor([0, 2, 1])


def test_weights_and_focus_by_hand() -> None:
    """Of three equal outputs a class has 1/3: log 3 times its weight, and times (2/3)^2."""
    plain = CrossEntropy()(OUTPUTS, TARGETS)
    assert WeightedCrossEntropy((1.0, 2.0, 5.0))(OUTPUTS, TARGETS).tolist() == (plain * torch.tensor([1.0, 5.0, 2.0])).tolist()
    assert Focal()(OUTPUTS, TARGETS)[1].item() == pytest.approx(4 / 9 * 1.0986123, rel=1e-6)
    assert Focal(gamma=0)(OUTPUTS, TARGETS).tolist() == plain.tolist()
    assert Focal(0, (1.0, 2.0, 5.0))(OUTPUTS, TARGETS).tolist() == WeightedCrossEntropy((1.0, 2.0, 5.0))(OUTPUTS, TARGETS).tolist()
    theirs = cross_entropy(OUTPUTS, TARGETS, weight=torch.tensor([1.0, 2.0, 5.0]), reduction="none")
    assert WeightedCrossEntropy((1.0, 2.0, 5.0))(OUTPUTS, TARGETS).tolist() == pytest.approx(theirs.tolist(), rel=1e-6)


def test_weights_count_at_each_place_of_a_sequence() -> None:
    targets = torch.tensor([[1, 0, -1]])
    found = WeightedCrossEntropy((1.0, 3.0))(torch.zeros(1, 3, 2), targets)
    assert found.tolist() == pytest.approx([(3 + 1) / 2 * 0.6931472], rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_slope_is_a_number_also_where_all_is_certain(gamma: float) -> None:
    outputs = torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]], requires_grad=True)
    [slope] = torch.autograd.grad(Focal(gamma)(outputs, torch.tensor([0, 0, 1])).sum(), outputs)
    assert slope.isfinite().all() and slope[0].tolist() == [0, 0] and slope[2, 1] < 0


def test_several_labels_as_pytorch_has_them() -> None:
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.25]])
    theirs = binary_cross_entropy_with_logits(OUTPUTS, targets, reduction="none").mean(1)
    assert BinaryCrossEntropy()(OUTPUTS, targets).tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
    assert BinaryCrossEntropy()(OUTPUTS[:, :1], targets[:, 0])[1].item() == pytest.approx(0.6931472, rel=1e-6)


def test_a_task_of_several_labels() -> None:
    y = (X > 9).astype("int64")
    task = task_of({"y": y, "y_test": y[:3]}, loss=BinaryCrossEntropy())
    assert (task.classes, task.targets.dtype, task.model[-1].out_features) == (0, torch.float32, 2)


@pytest.mark.parametrize(
    ("loss", "data", "key", "said"),
    [
        (WeightedCrossEntropy((1.0, 5.0)), {}, "task.loss.weights", "one weight a class is due, 3 in the order of the classes, not 2"),
        (Focal(2, (1.0,)), {}, "task.loss.weights", "not 1"),
        (BinaryCrossEntropy(), {"y": X}, "task.loss", "takes targets from 0 to 1, and y holds 2 in row 1 (the first row is 0)"),
    ],
)
def test_what_a_loss_does_not_take(loss, data, key, said) -> None:
    with pytest.raises(SettingError) as caught:
        task_of(data | ({"y_test": X[:3]} if data else {}), loss=loss)
    assert (caught.value.key, said in caught.value.message) == (key, True)
