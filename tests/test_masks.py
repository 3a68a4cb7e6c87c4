"""Masks: a class at each pixel. Numbers by hand, a run that learns, and what can't be."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.base.errors import SettingError
from fedsim.data.augment import Crop, Cutout, Flip
from fedsim.data.own import OwnSource
from fedsim.data.partition import Iid
from fedsim.data.shift_kinds import Rotate
from fedsim.method.strategy import Strategy
from fedsim.metrics.pixels import Iou, PixelAccuracy
from fedsim.metrics.view import View
from fedsim.models import Logistic
from fedsim.models.own import OwnModel
from fedsim.models.pixels import EachPixel, Fcn
from fedsim.run.found import found
from fedsim.task.build import build_task
from fedsim.task.losses import Focal, WeightedCrossEntropy
from fedsim.task.settings import TaskSettings

RNG = np.random.default_rng(0)
SHADES = RNG.integers(0, 3, (12, 2, 3))  # a pixel's colour is its class
COLOURS = np.eye(3, dtype=np.float32)[SHADES]


def paint() -> torch.nn.Module:
    """One 1x1 convolution, which gives a pixel's colours as its outputs."""
    layer = torch.nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3)[:, :, None, None])
    return layer


def task_of(y=SHADES, x=COLOURS, model=None, **settings):
    data = {"x": x, "y": y, "x_test": x, "y_test": y}
    settings = {"model": model or OwnModel(paint), "partition": Iid(1), **settings}
    return build_task(TaskSettings(data=OwnSource(lambda: data), **settings), 0, {}, Path())


def test_a_pixel_is_a_place_with_a_class_and_outputs_of_its_own():
    task = task_of()
    assert (task.classes, task.places, task.masks, task.labelled) == (3, 6, True, False)
    assert task.targets.tolist() == SHADES.reshape(12, 6).tolist()
    assert task.inputs.shape == (12, 3, 2, 3)
    assert torch.equal(task.model(task.inputs), torch.from_numpy(COLOURS.reshape(12, 6, 3)))
    [targets] = [line for line in found(task, OwnSource(lambda: {})) if "targets" in line]
    ones = ", ".join(f"{shade}: {np.sum(SHADES.flatten() == shade)}" for shade in range(3))
    assert f"masks: 3 classes ({ones}) at each of 6 pixels, by cross_entropy" in targets


def test_iou_and_pixel_accuracy_by_hand():
    """Said are 0 0 1 and 2 2 2 (6 pixels, one of no class); there are 0 1 1 and 2 2 -, so 1/2, 1/2 and 1; 4 of 5 pixels are right."""
    said = np.eye(3, dtype=np.float32)[[[[0, 0, 1], [2, 2, 2]]]]
    task = task_of(np.array([[[0, 1, 1], [2, 2, 9]]]), said, ignore=9)
    view = View(task, task.init[None])
    for metric in (Iou(), PixelAccuracy()):
        metric.check(task, Strategy(), "evaluate.metrics.0")
    assert Iou().measure(view) == pytest.approx({"test/iou/0": 1 / 2, "test/iou/1": 1 / 2, "test/iou/2": 1, "test/iou_mean": 2 / 3})
    assert PixelAccuracy().measure(view) == {"test/pixel_accuracy": 4 / 5}
    assert float(view.tests[1]) == pytest.approx(4 / 5)


@pytest.mark.parametrize("loss", [None, Focal(gamma=1.5), WeightedCrossEntropy((1.0, 2.0, 3.0))], ids=repr)
def test_a_loss_is_the_mean_over_pixels_that_have_a_class(loss):
    """A sample's loss is the mean of the losses that its pixels would have as samples of their own."""
    y = np.where(RNG.random(SHADES.shape) < 0.3, 255, SHADES)
    y[:, 0, 0] = SHADES[:, 0, 0]
    task, flat = task_of(y, ignore=255, loss=loss), task_of(loss=loss)
    outputs = torch.randn(12, 6, 3, generator=torch.Generator().manual_seed(0))
    each = flat.loss(outputs.flatten(0, 1), flat.targets.flatten()).view(12, 6)
    there = torch.from_numpy(y.reshape(12, 6) != 255)
    assert torch.allclose(task.loss(outputs, task.targets), (each * there).sum(1) / there.sum(1))


def test_masks_as_files_have_them():
    """One channel, truth values, floats, 0 and 255, images of one channel: the same masks."""
    y = SHADES > 0
    for given in (y, y[:, None], y[..., None], y.astype(np.uint8) * 255, y.astype(np.int32)):
        for x in (COLOURS, COLOURS.transpose(0, 3, 1, 2)):
            assert task_of(given, x).targets.tolist() == y.reshape(12, 6).astype(int).tolist()
    names = task_of(y.astype(np.uint8) * 255).given.names
    assert names == ("0", "255")
    grey = task_of(y, COLOURS[..., 0], Fcn(4, 2))
    assert grey.model(grey.inputs).shape == (12, 6, 2)


def test_fcn_sees_as_far_as_it_says_and_takes_any_size():
    torch.manual_seed(0)
    model = EachPixel(Fcn(16, 3).build((1, 21, 21), 2))
    x = torch.randn(1, 1, 21, 21, requires_grad=True)
    model(x)[0, 10 * 21 + 10].sum().backward()
    seen = x.grad[0, 0].abs() > 0
    assert seen[3:18, 3:18].sum() == seen.sum() > 100
    assert seen[3].any() and seen[17].any()
    assert model(torch.randn(2, 1, 5, 8)).shape == (2, 40, 2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model": Logistic()}, "task.model: logistic has no outputs at each pixel, and targets are masks; `fcn` has them"),
        ({"y": SHADES[:, 0, 0], "model": Fcn()}, "task.model: fcn has outputs at each pixel, and targets are no masks of images"),
        ({"y": SHADES[:, :, :2]}, "task.data: masks of y have 2 x 2 pixels, and samples of x shape [2, 3, 3]"),
        (
            {"y": np.full_like(SHADES, 7), "ignore": 7},
            "task.data: y has no target in row 0 (the first row is 0): each is -1, or `task.ignore`",
        ),
        ({"y": SHADES[:, 0, 0], "ignore": 7, "model": Logistic()}, "task.ignore: is of masks and sequences"),
        ({"augment": (Cutout(), Flip())}, "task.augment.1.name: flip moves pixels, and their masks would stay where they are"),
        ({"augment": (Crop(border=1),)}, "task.augment.0.name: crop moves pixels"),
        ({"shift": (Rotate(),)}, "task.shift.0.name: moves pixels"),
        (
            {"model": OwnModel(lambda: torch.nn.Conv2d(3, 3, 2))},
            "targets are masks, so outputs [B, classes, 2, 3] are due, not [2, 3, 1, 2]",
        ),
        ({"model": OwnModel(lambda: torch.nn.Conv2d(3, 2, 1))}, "gives [2, 6, 2] for 2 samples, but 3 outputs at each place are needed"),
    ],
)
def test_what_can_not_be(settings, text):
    with pytest.raises(SettingError) as caught:
        task_of(**settings)
    assert text in str(caught.value)


def test_iou_is_of_masks_alone():
    task = task_of(SHADES[:, 0, 0], model=Logistic())
    with pytest.raises(
        SettingError, match=r"metrics\.0: iou is of masks, a class at each pixel of an image, and the targets are one class"
    ):
        Iou().check(task, Strategy(), "evaluate.metrics.0")
