import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import below, fold
from fedsim.data.own import OwnSource
from fedsim.data.partition import Dirichlet, Draw, Iid, Natural, Partition, Shards
from fedsim.data.sources import Digits, source_for
from fedsim.models import Cnn, LeafCnn, Logistic, Mlp
from fedsim.models.own import OwnModel
from fedsim.settings.values import Count
from fedsim.task.build import build_task
from fedsim.task.loss import CrossEntropy, SquaredError
from fedsim.task.settings import TaskSettings
from fedsim.task.task import SOME, Task, decoded

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
TEST = {"x_test": X[:3], "y_test": Y[:3]}


def task_of(data=None, partition=None, model=None, loss=None, seed=0, groups=None):
    """A task of ten samples, three classes and two nodes, unless told otherwise."""
    source = OwnSource(lambda: {"x": X, "y": Y, **TEST} | (data or {}))
    settings = TaskSettings(data=source, partition=partition or Iid(2), model=model or Logistic(), loss=loss)
    return build_task(settings, seed, groups or {}, Path())


@dataclass(frozen=True)
class Written(Partition):
    """A user's own split."""

    owner: tuple[int, ...] = (2, 0, 0, 2, 1, 1, -1, 1, 0, 2)

    def split(self, labels, keys, key):
        return np.array(self.owner)


def test_a_task_by_hand():
    task = task_of(partition=Written())
    assert task.nodes == 3
    assert task.samples.tolist() == [1, 2, 8, 4, 5, 7, 0, 3, 9]
    assert task.starts.tolist() == [0, 3, 6, 9]
    assert task.counts.tolist() == [3, 3, 3]
    assert task.share.tolist() == [torch.tensor(1 / 3).item()] * 3
    assert task.share.dtype == torch.float32
    assert task.label_counts().tolist() == [[0, 1, 2], [0, 2, 1], [3, 0, 0]]
    assert task.classes == 3
    assert task.inputs.tolist() == X.tolist()
    assert task.loss == CrossEntropy()
    assert task.test_owner is None
    assert task.layout.size == len(task.init) == 2 * 3 + 3
    assert torch.equal(task.layout.views(task.init)["1.bias"], task.model[1].bias)


def test_digits_over_a_hundred_nodes():
    settings = TaskSettings(data=Digits(), partition=Dirichlet(0.3, 100), model=Mlp(), loss=None)
    task = build_task(settings, 0, {"often": Count(share=0.5), "rare": "rest"}, Path())
    assert task.counts.sum() == 1438
    assert task.counts.min() >= 1
    assert torch.equal(task.label_counts().sum(1), task.counts)
    assert torch.equal(task.label_counts().sum(0), task.targets.bincount())
    assert task.inputs.shape == (1438, 1, 8, 8)
    assert task.groups == {"often": range(50), "rare": range(50, 100)}


def test_the_seed_and_nothing_else_decides():
    first = task_of(partition=Iid(3))
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again, other = task_of(partition=Iid(3)), task_of(partition=Iid(3), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.init, again.init)
    assert first.hash() == again.hash()
    assert not torch.equal(first.init, other.init)
    assert not torch.equal(first.samples, other.samples)
    assert first.hash() != other.hash()
    assert first.hash() != task_of({"y": Y[::-1].copy()}, partition=Iid(3)).hash()


def test_a_fifth_is_held_out_of_each_class_and_keeps_its_ids():
    x, y = np.arange(100.0)[:, None], np.repeat([0, 1], 50)
    data = {"x": x, "y": y, "writer": np.arange(100) % 4}
    settings = TaskSettings(data=OwnSource(lambda: data), partition=Natural("writer"), model=Logistic(), loss=None)
    task = build_task(settings, 0, {}, Path())
    assert task.test_targets.bincount().tolist() == [10, 10]
    assert sorted((task.inputs[:, 0].tolist()) + task.test_inputs[:, 0].tolist()) == x[:, 0].tolist()
    assert torch.equal(task.test_owner, task.test_inputs[:, 0].long() % 4)
    assert torch.equal(torch.repeat_interleave(task.counts), task.inputs[task.samples, 0].long() % 4)
    assert not torch.equal(task.test_inputs, build_task(settings, 1, {}, Path()).test_inputs)


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        (np.full((10, 4, 5), 255, np.uint8), (1, 4, 5)),
        (np.full((10, 4, 5, 3), 255, np.uint8), (3, 4, 5)),
        (np.ones((10, 6, 5, 1)), (1, 6, 5)),
        (np.ones((10, 3, 4, 5)), (3, 4, 5)),
        (np.ones((10, 3, 5, 4)), (3, 5, 4)),
        (np.ones((10, 9, 128), np.float16), (9, 128)),
        (np.full((10, 7), 255, np.uint8), (7,)),
        (np.ones((10, 7), np.int32), (7,)),
        (np.ones(10), (1,)),
    ],
)
def test_shapes_of_samples(given, shape):
    task = task_of({"x": given, "x_test": given[:3]})
    assert task.inputs.shape == (10, *shape)
    assert task.inputs.dtype == (torch.uint8 if given.dtype == np.uint8 else torch.float32)
    assert task.inputs.is_contiguous()
    assert decoded(task.inputs).dtype == torch.float32
    assert (decoded(task.inputs) == 1).all()


def test_images_keep_their_pixels():
    image = np.arange(10 * 2 * 5 * 3, dtype=np.uint8).reshape(10, 2, 5, 3)
    task = task_of({"x": image, "x_test": image[:3]})
    assert decoded(task.inputs)[4, 2, 1, 3].item() == pytest.approx(image[4, 1, 3, 2] / 255)


@pytest.mark.parametrize(
    ("y", "classes", "targets"),
    [
        (np.array([-1, 1] * 5), 2, [0, 1] * 5),
        (np.array(["cat", "ant"] * 5), 2, [1, 0] * 5),
        (np.array([3, 10**9] * 5), 2, [0, 1] * 5),
        (np.array([[0], [2]] * 5, dtype=np.uint8), 3, [0, 2] * 5),
        (np.array([True, False] * 5), 2, [1, 0] * 5),
    ],
)
def test_classes_are_numbered_from_zero(y, classes, targets):
    task = task_of({"y": y, "y_test": y[:3]})
    assert task.classes == classes
    assert task.targets.tolist() == targets
    assert task.test_targets.tolist() == targets[:3]
    assert task.targets.dtype == torch.int64


def test_regression():
    y = np.linspace(0, 1, 10)
    task = task_of({"y": y, "y_test": y[:3]})
    assert (task.loss, task.classes, task.targets.dtype) == (SquaredError(), 0, torch.float32)
    assert task.layout.size == 3
    assert task.label_counts().shape == (2, 0)
    assert task_of({"y": np.ones((10, 4)), "y_test": np.ones((3, 4))}).layout.size == 12
    assert task_of(loss=SquaredError()).targets.tolist() == Y.tolist()
    with pytest.raises(SettingError, match=r"task.partition: shards splits by class, and the targets are no classes"):
        task_of({"y": y, "y_test": y[:3]}, Shards(2))
    with pytest.raises(SettingError, match=r"task.loss: cross_entropy takes one class a sample; y holds float64"):
        task_of({"y": y, "y_test": y[:3]}, loss=CrossEntropy())


def spoilt(row, value):
    x = X.copy()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"x": spoilt([4, 7], np.nan)}, r"x has NaN or infinity in row 4 \(the first row is 0\) and in 1 more"),
        ({"x_test": spoilt(2, np.inf)[:3]}, "x_test has NaN or infinity in row 2"),
        ({"x": X.astype(np.float64) * 1e300}, "x has NaN or infinity in row 0"),
        ({"y": np.where(Y == 2, np.nan, 1.0), "y_test": np.ones(3)}, "y has NaN or infinity in row 2"),
        ({"x": X[:9]}, "x has 9 samples, y 10"),
        ({"x_test": X[:2]}, "x_test has 2 samples, y_test 3"),
        ({"x": X[:0], "y": Y[:0]}, "x has no samples"),
        ({"x": np.array(["a"] * 10)}, "x holds no numbers but <U1"),
        ({"x_test": X[:3, :1]}, r"samples of x have shape \[2\], those of x_test \[1\]"),
    ],
)
def test_bad_data(data, text):
    with pytest.raises(SettingError, match=f"task.data: {text}"):
        task_of(data)


def test_too_few_to_hold_out():
    settings = TaskSettings(data=OwnSource(lambda: {"x": X[:4], "y": Y[:4]}), partition=Iid(1), model=Logistic(), loss=None)
    with pytest.raises(SettingError, match="4 samples are too few to hold out a test set"):
        build_task(settings, 0, {}, Path())


@dataclass(frozen=True)
class Failing(Partition):
    def split(self, labels, keys, key):
        return labels[99]


@pytest.mark.parametrize(
    ("partition", "text"),
    [
        (Iid(11), "task.partition.nodes: 11 nodes, but only 10 training samples"),
        (Written((0, 0, 0, 3, 3, 3, 1, 1, 1, 1)), "task.partition: written gives no sample to 1 of 4 nodes: 2"),
        (Written((40,) * 10), "gives no sample to 40 of 41 nodes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."),
        (Written((-1,) * 10), "written leaves no node any sample"),
        (Written((0, 1)), r"written gave int64 of shape \[2\], not one node a sample"),
        (Written((0.5,) * 10), "written gave float64 of shape"),
        (Failing(), "task.partition: failing raised IndexError: index 99 is out of bounds"),
    ],
)
def test_bad_partitions(partition, text):
    with pytest.raises(SettingError, match=text):
        task_of(partition=partition)


class Counting(nn.BatchNorm1d):
    """A user's own BatchNorm, which may do anything."""


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no weights here")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (OwnModel(Raising), "Raising raised RuntimeError: no weights here"),
        (OwnModel(nn.Linear, {"in_features": 7, "out_features": 3}), "Linear raised RuntimeError: mat1 and mat2 shapes"),
        (OwnModel(nn.Linear, {"in_features": 2, "out_features": 2}), r"Linear gives \[2, 2\] for 2 samples, but 3 outputs are needed"),
        (OwnModel(lambda: nn.Sequential(nn.Linear(2, 3), Counting(3))), "writes its buffer `1.running_mean` in training"),
        (OwnModel(lambda: nn.Sequential(nn.Linear(2, 3), nn.AlphaDropout(0.1))), "draws from torch's own generator in training"),
        (OwnModel(lambda: nn.Linear(2, 3).requires_grad_(False)), "has no trainable parameter"),
        (Cnn(), r"images are needed, not samples of shape \[2\]"),
    ],
)
def test_bad_models(model, text):
    with pytest.raises(SettingError, match=f"task.model: .*{text}"):
        task_of(model=model)


@pytest.mark.parametrize(
    ("groups", "blocks"),
    [
        ({"a": Count(share=0.25), "b": "rest", "c": Count(share=0.25)}, [range(3), range(3, 8), range(8, 10)]),  # halves go up
        ({"a": Count(number=3), "b": Count(number=7)}, [range(3), range(3, 10)]),
        ({"a": Count(share=0.35), "b": Count(share=0.65)}, [range(4), range(4, 10)]),
        ({}, []),
    ],
)
def test_groups_are_blocks_in_their_order(groups, blocks):
    assert list(task_of(partition=Iid(10), groups=groups).groups.values()) == blocks


def test_groups_that_do_not_make_up_all_nodes():
    with pytest.raises(SettingError, match=r"^groups: .*11 nodes in all, but there are 10"):
        task_of(partition=Iid(10), groups={"a": Count(number=3), "b": Count(number=8)})


def test_move_leaves_the_task_as_it_was():
    task = task_of()
    moved = task.move("meta")
    assert moved.inputs.device.type == moved.init.device.type == next(moved.model.parameters()).device.type == "meta"
    assert next(task.model.parameters()).device.type == "cpu"
    assert task.move("cpu").hash() == task.hash()
    assert replace(task, targets=task.targets.flip(0)).hash() != task.hash()


@pytest.mark.skipif("FEDSIM_DATA" not in os.environ, reason="FEDSIM_DATA is not set")
def test_writers_of_mnist_are_nodes():
    settings = TaskSettings(data=source_for("mnist"), partition=Natural("writer", least=20), model=LeafCnn(), loss=None)
    task = build_task(settings, 0, {}, Path())
    assert task.nodes == 538
    assert task.counts.min() >= 20
    assert task.inputs.shape == (60000, 1, 28, 28)
    assert task.test_owner is None  # no test writer is among them


def test_drawn_samples_are_keyed_numbers_below_the_number_of_samples():
    """Node i has the numbers below(fold(key, i, place), 10); a table with the same entries is the same task."""
    task = task_of(partition=Draw(4, 5, least=2))
    assert task.nodes == 4
    key = fold(fold(0, "partition"), "samples")
    by_hand = [[int(below(fold(key, node, place), 1, 10)) for place in range(int(task.counts[node]))] for node in range(4)]
    assert [task.sample(torch.tensor(node), torch.arange(int(task.counts[node]))).tolist() for node in range(4)] == by_hand
    assert task.label_counts().tolist() == [[sum(Y[i] == c for i in own) for c in range(3)] for own in by_hand]
    table = replace(task, samples=torch.tensor([i for own in by_hand for i in own]))
    nodes, places = torch.tensor([[3], [0]]), torch.tensor([0, 1])
    assert torch.equal(table.sample(nodes, places), task.sample(nodes, places))
    assert torch.equal(table.label_counts(), task.label_counts())
    assert task.hash() == task_of(partition=Draw(4, 5, least=2)).hash()
    assert (
        len(
            {
                task.hash(),
                table.hash(),
                task_of(partition=Draw(4, 5, least=2), seed=1).hash(),
                task_of(partition=Draw(5, 5, least=2)).hash(),
            }
        )
        == 4
    )


def test_more_nodes_than_samples_share_them():
    task = task_of(partition=Draw(50, 3, least=1))
    assert 50 <= task.counts.sum() <= 150
    assert task.move("cpu").sample(torch.arange(50), torch.zeros(50, dtype=torch.int64)).max() < 10


def test_labels_of_many_nodes_are_counted_for_one_of_each_block():
    task = task_of(partition=Draw(25_001, 2, least=1))
    some = task.some()
    assert len(some) == 10_000
    edges = torch.arange(10_001) * 25_001 // 10_000  # two or three nodes a block
    assert ((edges[:-1] <= some) & (some < edges[1:])).all()
    assert torch.equal(task.label_counts().sum(1), task.counts[some])
    assert task.some(range(7, 12)).tolist() == [7, 8, 9, 10, 11]
    group = task.some(range(100, 20_100))
    assert len(group) == 10_000 and group.min() >= 100 and group.max() < 20_100 and (group.diff() > 0).all()
    assert abs(float((group - 100 - 2 * torch.arange(10_000)).double().mean()) - 0.5) < 4.5 * 0.5 / 100  # the first or the second of two


@dataclass(frozen=True)
class Nobody(Partition):
    """A user's draw that leaves a node empty."""

    def draws(self, key):
        return np.array([2, 0])


def test_a_drawing_node_without_samples_is_refused():
    with pytest.raises(SettingError, match="nobody gives no whole number of samples, 1 or more, to each node"):
        task_of(partition=Nobody())


def test_label_counts_of_nodes_are_counted_once(monkeypatch):
    task = task_of(partition=Draw(12_000, 3, least=1))
    counted, labels = [], Task.labels
    monkeypatch.setattr(Task, "labels", lambda self, nodes, total=None: counted.append(len(nodes)) or labels(self, nodes, total))
    some, group = task.some(), task.some(range(12_000 - 999, 12_000))
    for _ in range(2):
        assert torch.equal(task.mixes(some), task.label_counts())
        assert torch.equal(task.mixes(some[7:9]), labels(task, some[7:9]))
        assert torch.equal(task.mixes(group), labels(task, group))
    assert counted.count(SOME) == 1 and counted.count(len(group)) == 1
