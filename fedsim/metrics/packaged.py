"""Metrics of the package torchmetrics, which is imported only where a scenario names one."""

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.settings.part import setting, spell
from fedsim.task.task import Task

# B: samples, or places that have a class, C: classes or labels

MODULES = ("classification", "regression")  # whose metrics are pure numbers: others load models by name
KINDS = {"Binary": "two classes", "Multiclass": "classes", "Multilabel": "labels"}
INSTALL = "python -m pip install torchmetrics"


@dataclass(frozen=True)
class Torchmetrics(Metric):
    """A metric of torchmetrics.classification or torchmetrics.regression, from all test samples: `test/multiclass_cohen_kappa`.

    Also spelt by its place: `torchmetrics.classification:MulticlassCohenKappa`. Of one that gives a number a class (`average: none`) each
    has its own, `test/.../CLASS`. The number of classes or labels is given to it; with peers it is the mean over their models.
    """

    metric: str = setting(help="name of its class, such as MulticlassCohenKappa or SpearmanCorrCoef")
    settings: Mapping[str, bool | int | float | str] = setting(factory=dict, help="its arguments by name")

    def __hash__(self) -> int:
        return hash((self.metric, *self.settings.items(), self.every))

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        kind = self._class(key)
        asked = inspect.signature(kind).parameters
        for name in self.settings:
            if name not in asked:
                known = [one for one in asked if one not in ("kwargs", *self._given(kind, task))]
                raise SettingError(f"{key}.settings.{name}", f"{self.metric} has no argument `{name}` (it has: {', '.join(known)})")
        due = next((what for start, what in KINDS.items() if self.metric.startswith(start)), "numbers")
        found = "labels" if task.loss.labels else "numbers" if not task.classes else "two classes" if task.classes == 2 else "classes"
        if due != found and not (due == "classes" and found == "two classes"):
            raise SettingError(f"{key}.metric", f"{self.metric} is of {due}, and the targets are {found} under {task.loss.name}")
        try:
            self._made(kind, task)
        except Exception as error:
            raise SettingError(f"{key}.settings", f"{self.metric} refuses them: {' '.join(str(error).split())}") from error

    def _class(self, key: str) -> Any:
        """The class. Raises SettingError where the package is not installed or has none of that name."""
        try:
            modules = [importlib.import_module(f"torchmetrics.{name}") for name in MODULES]
        except ImportError as error:
            raise SettingError(key, f"`{self.metric}` is of torchmetrics, which can't be imported here ({error}): {INSTALL}") from error
        base = importlib.import_module("torchmetrics").Metric
        known = {name: one for module in modules for name in module.__all__ if _usable(one := getattr(module, name), base)}
        if self.metric not in known:
            close = difflib.get_close_matches(self.metric, known, 3, 0.5)
            close += [name for start in KINDS if (name := f"{start}{self.metric}") in known and name not in close]
            hint = f"; did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else ""
            raise SettingError(f"{key}.metric", f"torchmetrics.{' and torchmetrics.'.join(MODULES)} have no metric `{self.metric}`{hint}")
        return known[self.metric]

    def _given(self, kind: Any, task: Task) -> dict[str, int]:
        """What it is told of the task."""
        width = task.classes or max(1, task.targets[0].numel())
        asked = inspect.signature(kind).parameters
        return {name: width for name in ("num_classes", "num_labels", "num_outputs") if name in asked}

    def _made(self, kind: Any, task: Task) -> Any:
        return kind(**{**self._given(kind, task), **self.settings})

    @torch.no_grad()
    def measure(self, view: View) -> dict[str, float]:
        kind, found = self._class("evaluate.metrics"), list[Tensor]()
        for model, buffers in zip(view.models, view.buffers, strict=True):
            metric = self._made(kind, view.task).to(view.models.device)
            for outputs, targets in view.passes(model, buffers):
                metric.update(*self._seen(view.task, outputs, targets))
            found.append(torch.as_tensor(metric.compute()).double())
        mean, name = torch.stack(found).mean(0), f"test/{spell(self.metric)}"
        if not mean.dim():
            return {name: float(mean)}
        classes = (view.task.given.names if view.task.given else ()) or tuple(map(str, range(mean.numel())))
        return {f"{name}/{one}": value for one, value in zip(classes, mean.flatten().tolist(), strict=True)}

    def _seen(self, task: Task, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions and targets as torchmetrics takes them: probabilities [B, C] or, of two classes, [B]; numbers [B] or [B, outputs]."""
        if not task.classes and not task.loss.labels:
            flat = targets.reshape(len(targets), -1)
            flat, said = (one.squeeze(1) if flat.shape[1] == 1 else one for one in (flat, outputs.reshape(flat.shape)))
            return said.contiguous(), flat.contiguous()
        found = task.loss.probabilities(outputs).float()
        if task.loss.labels:
            there = (targets > 0.5).reshape(len(targets), -1).long()
            return found.reshape(there.shape), there
        found, targets = found[targets >= 0][:, : task.classes], targets[targets >= 0]
        return (found[:, 1], targets) if self.metric.startswith("Binary") else (found, targets)


def _usable(value: Any, base: type) -> bool:
    """Is it a metric, and no name that stands for several (`Accuracy` for the binary, multiclass and multilabel one)?"""
    return isinstance(value, type) and issubclass(value, base) and "__new__" not in vars(value)
