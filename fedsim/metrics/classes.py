"""Metrics of classes and labels: F1, precision, recall, AUC, confusion, calibration, exact match."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.settings.part import setting
from fedsim.task.task import Task

# h: hearers, M: test samples, C: classes or labels

MOST_CLASSES = 1000  # of a confusion matrix


@dataclass(frozen=True, kw_only=True)
class OfClasses(Metric):
    """A metric of targets that are classes, or labels that are there or not."""

    abstract: ClassVar[bool] = True
    needs: ClassVar[Literal["either", "classes", "labels"]] = "either"

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if (self.needs != "labels" and task.classes) or (self.needs != "classes" and task.loss.labels):
            return
        due = {"either": "classes or labels", "classes": "classes", "labels": "labels (`task.loss: binary_cross_entropy`)"}[self.needs]
        found = f"{task.classes} classes" if task.classes else "labels" if task.loss.labels else "numbers"
        instead = "" if task.classes or task.loss.labels else "; `mae`, `rmse` and `r2` measure such"
        raise SettingError(key, f"{self.name} is of {due}, and the targets are {found} under {task.loss.name}{instead}")


@dataclass(frozen=True, kw_only=True)
class _Averaged(OfClasses):
    """One number a class from what was found, said and there, averaged over classes; with peers the mean over their models.

    0 where a class is never said or never there. As scikit-learn has it: a class counts where it is said or there, a label always.
    """

    abstract: ClassVar[bool] = True

    average: Literal["macro", "micro", "weighted", "binary"] = setting(
        "macro", "mean of classes, of all samples together, of classes by how often they are there, or the class 1 of two alone"
    )

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        super().check(task, strategy, key)
        if self.average == "binary" and task.classes != 2:
            what = f"{task.classes} classes" if task.classes else "labels"
            raise SettingError(f"{key}.average", f"`binary` is of two classes, and the targets are {what}")

    def of(self, found: Tensor, said: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Above and below the line of the fraction, float64 [h, C] each."""
        raise NotImplementedError

    def measure(self, view: View) -> dict[str, float]:
        tallies = view.tallies.double()
        if self.average == "micro":
            tallies = tallies.sum(-1, keepdim=True)
        found, said, there = tallies.unbind(1)
        above, below = self.of(found, said, there)
        each = above / below.clamp(min=1)
        weight = torch.ones_like(each) if view.task.loss.labels else ((said + there) > 0).double()
        weight = there if self.average == "weighted" else weight
        if self.average == "binary":
            each, weight = each[:, 1:], torch.ones_like(each[:, 1:])
        return {f"test/{self.name}_{self.average}": float(((each * weight).sum(1) / weight.sum(1)).mean())}


@dataclass(frozen=True)
class F1(_Averaged):
    """F1, the harmonic mean of precision and recall: `test/f1_macro`, or another average."""

    def of(self, found: Tensor, said: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * found, said + there


@dataclass(frozen=True)
class Precision(_Averaged):
    """Share of what is said to be of a class that is: `test/precision_macro`, or another average."""

    def of(self, found: Tensor, said: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        return found, said


@dataclass(frozen=True)
class Recall(_Averaged):
    """Share of a class that is found: `test/recall_macro`, or another average."""

    def of(self, found: Tensor, said: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        return found, there


def scores(view: View, hearer: int) -> tuple[Tensor, Tensor]:
    """Of a hearer's model: probabilities, float64 [M, C], and targets, int64 [M] or of labels bool [M, C]; of sequences a row a place."""
    outputs, targets = view.test_outputs(hearer)
    found = view.task.loss.probabilities(outputs)
    if view.task.loss.labels:
        return found.reshape(len(found), -1), targets.reshape(len(targets), -1) > 0.5
    return found[targets >= 0], targets[targets >= 0]


def areas(values: Tensor, positive: Tensor) -> Tensor:
    """float64 [C]: area under the ROC curve of each column of values [M, C], positives bool [M, C]; nan without both kinds.

    The share of pairs of a positive and a negative whose positive has the greater value, equal ones half (Mann and Whitney).
    """
    columns = values.T.contiguous()
    ordered = columns.sort(dim=1).values
    low, high = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    rank, mine = (low + high + 1).double() / 2, positive.T.double()
    count = mine.sum(1)
    return ((rank * mine).sum(1) - count * (count + 1) / 2) / (count * (len(values) - count))


@dataclass(frozen=True)
class Auc(OfClasses):
    """Area under the ROC curve: of two classes that of class 1; of more, and of labels, the mean over each against the rest.

    Classes without both kinds of test samples are left out; with peers the mean over their models.
    """

    def measure(self, view: View) -> dict[str, float]:
        found = [self._of(*scores(view, hearer)) for hearer in range(len(view.models))]
        return {"test/auc": sum(found) / len(found)}

    def _of(self, values: Tensor, targets: Tensor) -> float:
        if targets.dtype == torch.bool:
            return float(areas(values, targets).nanmean())
        if values.shape[1] == 2:
            return float(areas(values[:, 1:], (targets == 1)[:, None]))
        return float(areas(values, targets[:, None] == torch.arange(values.shape[1], device=targets.device)).nanmean())


@dataclass(frozen=True)
class Calibration(OfClasses):
    """How far probabilities are from how often they are right: expected calibration error and the Brier score; with peers, their means.

    `test/calibration_error` is the mean, over bins of equal width and by their samples, of |share that is right - mean probability| of the
    class that is said. `test/brier` is the mean over samples of the squared distance of all probabilities to the right ones, 0 to 2.
    """

    source: ClassVar[str] = "Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599"
    needs: ClassVar[Literal["either", "classes", "labels"]] = "classes"

    bins: int = setting(15, "of probabilities from 0 to 1", ge=1)

    def measure(self, view: View) -> dict[str, float]:
        found = [self._of(*scores(view, hearer)) for hearer in range(len(view.models))]
        errors, briers = zip(*found, strict=True)
        return {"test/calibration_error": sum(errors) / len(errors), "test/brier": sum(briers) / len(briers)}

    def _of(self, values: Tensor, targets: Tensor) -> tuple[float, float]:
        top, said = values.max(1)
        place = (top * self.bins).ceil().long().clamp(1, self.bins) - 1  # (0, 1/b], (1/b, 2/b], ...
        gap = torch.zeros(self.bins, dtype=torch.float64, device=top.device).index_add_(0, place, (said == targets).double() - top)
        right = values.gather(1, targets[:, None])[:, 0]
        return float(gap.abs().sum() / len(top)), float((values.square().sum(1) - 2 * right + 1).mean())


@dataclass(frozen=True)
class Confusion(OfClasses):
    """How many test samples of each class (row) are said to be of each (column): confusion.png, and arrays in the run's folder.

    `confusion/VERSION.npz` has `counts` int64 [C, C] and the classes' `names`; with peers the sum over their models. It gives no number.
    """

    needs: ClassVar[Literal["either", "classes", "labels"]] = "classes"

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        super().check(task, strategy, key)
        if task.classes > MOST_CLASSES:
            raise SettingError(key, f"a matrix of {task.classes:,} classes is too large; at most {MOST_CLASSES:,}")

    def measure(self, view: View) -> dict[str, float]:
        task, classes = view.task, view.task.classes
        counts = torch.zeros(classes * classes, dtype=torch.int64, device=view.models.device)
        for model, buffers in zip(view.models, view.buffers, strict=True):
            for outputs, targets in view.passes(model, buffers):
                said = task.loss.predicted(outputs)
                known = (targets >= 0) & (said < classes)
                counts += (targets[known] * classes + said[known]).bincount(minlength=len(counts))
        names = (task.given.names if task.given else ()) or tuple(map(str, range(classes)))
        matrix = counts.view(classes, classes).cpu().numpy()
        view.arrays["confusion"] = {"counts": matrix, "names": np.array(names), "round": np.array(view.round)}
        return {}


@dataclass(frozen=True)
class ExactMatch(OfClasses):
    """Share of test samples of which all labels are right; with peers, the mean over their models."""

    needs: ClassVar[Literal["either", "classes", "labels"]] = "labels"

    def measure(self, view: View) -> dict[str, float]:
        found = 0.0
        for hearer in range(len(view.models)):
            values, targets = scores(view, hearer)
            found += float(((values > 0.5) == targets).all(1).double().mean())
        return {"test/exact_match": found / len(view.models)}
