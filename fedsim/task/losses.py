"""Losses for classes that are rare or hard, for samples with several labels, ones with corners, on whole numbers, and for episodes."""

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedsim.base.errors import SettingError
from fedsim.settings.part import setting
from fedsim.task.loss import CrossEntropy, Loss, mean_of_places

# B: samples, C: classes


def check_weights(weights: tuple[float, ...], classes: int) -> None:
    """Raises SettingError where there is not one weight a class."""
    if weights and len(weights) != classes:
        raise SettingError("task.loss.weights", f"one weight a class is due, {classes} in the order of the classes, not {len(weights)}")


@dataclass(frozen=True)
class WeightedCrossEntropy(Loss):
    """Cross entropy times a weight of the right class, for classes that are rare; a batch's mean is over its samples, not their weights."""

    weights: tuple[float, ...] = setting(help="a weight a class, in the order of the classes", ge=0)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _weighted(CrossEntropy.each(outputs, targets.clamp(min=0)), targets, self.weights)

    def outputs(self, classes: int) -> int:
        check_weights(self.weights, classes)
        return classes


@dataclass(frozen=True)
class Focal(Loss):
    """(1 - p)^gamma x -log p of the right class's probability p, so that samples that are easily told count little."""

    source: ClassVar[str] = "Lin et al. 2017, Focal Loss for Dense Object Detection, arXiv 1708.02002"

    gamma: float = setting(2.0, "0: cross entropy; large: only what is far from right counts", ge=0)
    weights: tuple[float, ...] = setting((), "a weight a class, in the order of the classes (alpha); by default all 1", ge=0)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = CrossEntropy.each(outputs, targets.clamp(min=0))
        wrong = (-torch.expm1(-losses)).clamp(min=1e-8)  # never 0, where a power of gamma < 1 has no slope
        return _weighted(wrong**self.gamma * losses, targets, self.weights)

    def outputs(self, classes: int) -> int:
        check_weights(self.weights, classes)
        return classes


def _weighted(losses: Tensor, targets: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Losses, one a target, times the weights of their classes: [B], of sequences the mean over their places."""
    if weights:  # made where they are used, by kernels: nothing is copied to a device
        row = torch.cat([torch.full((1,), weight, dtype=losses.dtype, device=losses.device) for weight in weights])
        losses = losses * row[targets.clamp(min=0)]
    return losses if targets.dim() == 1 else mean_of_places(losses, targets)


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """For samples with several labels: -log of the probability (sigmoid of the output) that each label is there or not, their mean.

    Targets are 1 or 0, [B, labels], or [B] for one; a number between is a probability itself.
    """

    classes: ClassVar[bool] = False
    labels: ClassVar[bool] = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        given = outputs.reshape(targets.shape)
        return (softplus(given) - given * targets).reshape(len(targets), -1).mean(-1)

    def check(self, targets: Tensor) -> None:
        bad = ((targets < 0) | (targets > 1)).reshape(len(targets), -1)
        if bad.any():
            row = int(bad.any(1).nonzero()[0])
            value = targets.reshape(len(targets), -1)[row][bad[row]][0]
            raise SettingError(
                "task.loss", f"{self.name} takes targets from 0 to 1, and y holds {value:g} in row {row} (the first row is 0)"
            )


@dataclass(frozen=True)
class AbsoluteError(Loss):
    """Distance |output - target|, summed over a sample's outputs; targets are numbers, [B] or [B, outputs]. Far ones pull no more than near
    ones. Its subgradient (Clarke) is the sign, and 0 at the corner."""

    classes: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.reshape(targets.shape) - targets).abs().reshape(len(targets), -1).sum(-1)


@dataclass(frozen=True)
class Hinge(Loss):
    """max(0, 1 + the largest output of a wrong class - that of the right one). Its subgradient (Clarke) is shared out evenly over wrong
    classes that are level; targets are class numbers, or next tokens [B, L], over which it is averaged."""

    source: ClassVar[str] = "Crammer & Singer 2001"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        right = targets.clamp(min=0)[..., None]
        wrong = outputs.scatter(-1, right, -torch.inf).amax(-1)
        losses = (1 + wrong - outputs.gather(-1, right)[..., 0]).relu()
        return losses if targets.dim() == 1 else mean_of_places(losses, targets)


@cache
def _powers() -> Tensor:
    """int64 [255]: 256 x 2^(k/16), k from -127 to 127."""
    return torch.tensor([round(256 * 2 ** (k / 16)) for k in range(-127, 128)])


@cache
def _least() -> Tensor:
    """int64, rising: the least whole numbers whose 16 log2(number / 256) is k or more, k from -127 on."""
    return torch.tensor([ceil(256 * 2 ** (k / 16)) for k in range(-127, 512)])


@dataclass(frozen=True)
class IntegerCrossEntropy(Loss):
    """log2(sum of 2^o) - o of the right class, in bits, on whole numbers alone: outputs o are sixteenths (16 is 1), -127 to 127.

    Powers and logarithms are looked up, the latter rounded down to sixteenths, and it is never below 0: the same bits on any device. Of
    next tokens the mean over places.
    """

    source: ClassVar[str] = "after nano-egg (Sarkar et al. 2025, code)"
    differentiable: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        o = outputs.round().clamp(-127, 127).to(torch.int64)
        sums = _powers().to(o.device)[o + 127].sum(-1)
        right = o.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        logs = torch.bucketize(sums, _least().to(o.device), right=True) - 128
        losses = (logs - right).clamp(min=0).to(outputs.dtype) / 16
        return mean_of_places(losses, targets) if targets.dim() > 1 else losses


@dataclass(frozen=True)
class Regret(Loss):
    """By how much an episode's return, a policy's first output, misses the best one from the state that it began in, its target."""

    classes: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets - outputs[:, 0]
