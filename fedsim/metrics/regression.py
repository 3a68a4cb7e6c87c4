"""Metrics of targets that are numbers: mean absolute error, root mean squared error, R2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.task.task import Task

# M: test samples, o: numbers of a target


@dataclass(frozen=True, kw_only=True)
class OfNumbers(Metric):
    """A metric of targets that are numbers; of several the mean over them, with peers the mean over their models."""

    abstract: ClassVar[bool] = True

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if task.classes or task.loss.labels:
            what = f"{task.classes} classes" if task.classes else "labels"
            raise SettingError(key, f"{self.name} is of numbers, and the targets are {what} under {task.loss.name}; `f1` measures such")

    def of(self, errors: Tensor, targets: Tensor) -> Tensor:
        """float64 [o], from errors and targets float64 [M, o]."""
        raise NotImplementedError

    def measure(self, view: View) -> dict[str, float]:
        found = []
        for hearer in range(len(view.models)):
            outputs, targets = (one.double() for one in view.test_outputs(hearer))
            if outputs.numel() != targets.numel():
                return {}  # the model's outputs are not what targets are compared with
            targets = targets.reshape(len(targets), -1)
            found.append(float(self.of(outputs.reshape(targets.shape) - targets, targets).nanmean()))
        return {f"test/{self.name}": sum(found) / len(found)}


@dataclass(frozen=True)
class Mae(OfNumbers):
    """Mean absolute error, in the unit of the targets."""

    def of(self, errors: Tensor, targets: Tensor) -> Tensor:
        return errors.abs().mean(0)


@dataclass(frozen=True)
class Rmse(OfNumbers):
    """Root of the mean squared error, in the unit of the targets."""

    def of(self, errors: Tensor, targets: Tensor) -> Tensor:
        return errors.square().mean(0).sqrt()


@dataclass(frozen=True)
class R2(OfNumbers):
    """Share of the targets' variance that is explained: 1 is all, 0 what their mean would do; left out where they are all the same."""

    def of(self, errors: Tensor, targets: Tensor) -> Tensor:
        spread = (targets - targets.mean(0)).square().sum(0)
        return torch.where(spread > 0, 1 - errors.square().sum(0) / spread, torch.nan)
