"""Metrics of masks: intersection over union of each class and its mean, and the share of pixels that are right."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric, known
from fedsim.metrics.view import View
from fedsim.task.task import Task

# h: hearers, C: classes


@dataclass(frozen=True, kw_only=True)
class OfMasks(Metric):
    """A metric of targets that are a class at each pixel; those without a class are left out."""

    abstract: ClassVar[bool] = True

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if not task.masks:
            what = "one class a sample" if task.labelled else "classes at places of a sequence" if task.classes else "numbers"
            raise SettingError(key, f"{self.name} is of masks, a class at each pixel of an image, and the targets are {what}")


@dataclass(frozen=True)
class Iou(OfMasks):
    """Intersection over union of each class, `test/iou/CLASS`, and `test/iou_mean` over those that are there or said.

    Over all pixels of all test samples; with peers, the mean over their models.
    """

    def measure(self, view: View) -> dict[str, float]:
        found, said, there = view.tallies.double().unbind(1)
        union = said + there - found
        each = torch.where(union > 0, found / union.clamp(min=1), torch.nan)  # [h, C]
        names = (view.task.given.names if view.task.given else ()) or tuple(map(str, range(each.shape[1])))
        classes = {f"test/iou/{name}": value for name, value in zip(names, each.nanmean(0).tolist(), strict=True)}
        return known({"test/iou_mean": float(each.nanmean(1).mean())} | classes)


@dataclass(frozen=True)
class PixelAccuracy(OfMasks):
    """Share of all test samples' pixels whose class is right: `test/pixel_accuracy`; `accuracy` is the mean of samples' shares."""

    def measure(self, view: View) -> dict[str, float]:
        found, _, there = view.tallies.double().sum(-1).unbind(1)
        return {"test/pixel_accuracy": float((found / there).mean())}
