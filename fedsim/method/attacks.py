"""Attacks: samples moved a little so that a model errs. Pure functions of samples, of a model's losses near them, and of keys."""

# m: models (rows), B: samples a row, p: numbers a sample

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, interior, normal, uniform
from fedsim.settings.part import Part, setting
from fedsim.task.task import Task

if TYPE_CHECKING:
    from fedsim.method.local import Batch

Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]  # samples [m, B, ...] -> their losses [m, B], and the gradients [m, B, ...] of these
Bounds = tuple[Tensor, Tensor] | None  # least and greatest value of each number


@dataclass(frozen=True)
class Attack(Part):
    """Moves samples within a ball around each, never out of the box where all samples lie."""

    slot: ClassVar[str] = "attack"
    default: ClassVar[str] = "pgd"
    abstract: ClassVar[bool] = True

    norm: Literal["linf", "l2"] = setting("linf", "what the radius bounds: the change of each number, or the length of all changes")
    radius: float = setting(8 / 255, "of the ball (rho), in units of what the model is given: images go from 0 to 1", ge=0, le=math.inf)
    box: tuple[float, float] | Literal["auto"] | None = setting(
        "auto", "least and greatest number in a sample, or `none`; auto: [0, 1] where all training samples lie there, else none"
    )

    def __post_init__(self) -> None:
        if math.isinf(self.radius):
            raise ValueError("`radius` is a number; samples that may be anything have no label")
        if isinstance(self.box, tuple) and not self.box[0] < self.box[1]:
            raise ValueError(f"`box` goes from the least to the greatest number, not from {self.box[0]:g} to {self.box[1]:g}")

    def check(self, task: Task, key: str) -> None:
        """Raises SettingError, with the attack's key in the scenario, where the task's samples can't be moved."""
        if task.tokens:
            raise SettingError(key, "an attack moves samples by small numbers, and the samples of this task are tokens")
        low, high = task.span
        if isinstance(self.box, tuple) and not self.box[0] <= low <= high <= self.box[1]:
            raise SettingError(f"{key}.box", f"training samples go from {low:g} to {high:g}, out of the box")

    def on(self, batch: "Batch", x: Tensor) -> "Batch":
        """The batch with its samples attacked at the models x [m, d]. Random numbers are those of job, step and place in the batch."""
        if not self.moves:
            return batch
        key = fold(batch.key[:, None], "attack", torch.arange(batch.weight.shape[1], device=x.device))
        found = self.of(batch.plan.task, batch.inputs, lambda inputs: batch.with_(inputs=inputs).input_gradient(x), key)
        return batch.with_(inputs=torch.where(_each(batch.weight != 0, found), found, batch.inputs))

    def of(self, task: Task, inputs: Tensor, slopes: Slopes, key: Tensor) -> Tensor:
        """Samples [m, B, ...] attacked; key int64 [m, B], one a sample. A sample out of the box keeps its own numbers as its bounds."""
        if not self.moves:
            return inputs
        box = self.box
        if box == "auto":
            box = (0.0, 1.0) if task.span[0] >= 0 and task.span[1] <= 1 else None
        return self.perturb(inputs, slopes, key, None if box is None else (inputs.clamp(max=box[0]), inputs.clamp(min=box[1])))

    @property
    def moves(self) -> bool:
        """Can a sample come out changed?"""
        return self.radius > 0

    @property
    def gradients(self) -> int:
        """That it takes of each sample."""
        raise NotImplementedError

    def perturb(self, x: Tensor, slopes: Slopes, key: Tensor, bounds: Bounds) -> Tensor:
        """Samples within the radius of x [m, B, ...], and within the bounds, between which x lies."""
        raise NotImplementedError


@dataclass(frozen=True)
class Pgd(Attack):
    """Projected gradient ascent on the loss: a step along the gradient (linf: its sign), back into the ball, then into the box."""

    source: ClassVar[str] = "Madry et al. 2018"

    steps: int = setting(10, "gradients (M); with 0 a random start is all", ge=0, le=10_000)
    step: float | None = setting(None, "length of a step (a), by default 2.5 radius / steps", gt=0)
    random_start: bool = setting(True, "from a point drawn evenly from the ball, instead of from the sample")
    restarts: int = setting(1, "starts, of which each sample keeps the end of greatest loss", ge=1, le=1000)
    keep: Literal["last", "best"] = setting("last", "the last point, or the best of all and of the sample: never less loss than before")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts > 1 and not self.random_start:
            raise ValueError("`restarts` differ by their random start: set `random_start`, or one start")

    @property
    def moves(self) -> bool:
        return self.radius > 0 and (self.steps > 0 or self.random_start)

    @property
    def gradients(self) -> int:
        of_ends = self.restarts if self.restarts > 1 or self.keep == "best" else 0
        return (self.restarts * self.steps + of_ends + (self.keep == "best")) * self.moves

    def perturb(self, x: Tensor, slopes: Slopes, key: Tensor, bounds: Bounds) -> Tensor:
        length = self.step or 2.5 * self.radius / max(1, self.steps)
        kept = _Greatest(x, slopes(x)[0] if self.keep == "best" else None)
        for restart in range(self.restarts):
            point = self._within(x, self._drawn(x, fold(key, "start", restart)), bounds) if self.random_start else x
            for step in range(self.steps):
                losses, slope = slopes(point)
                if self.keep == "best" and (step or self.random_start):
                    kept.offer(point, losses)
                point = self._within(x, point - x + length * self._direction(slope), bounds)
            if self.keep == "last" and self.restarts == 1:
                return point
            kept.offer(point, slopes(point)[0])
        return kept.points

    def _direction(self, slope: Tensor) -> Tensor:
        """Steepest ascent of length 1 in the norm; 0 where the slope is 0."""
        if self.norm == "linf":
            return slope.sign()
        scaled = slope / _each(_above_zero(slope.abs().flatten(2).amax(-1)), slope)  # whose squares don't vanish
        return scaled / _each(_above_zero(_length(scaled)), slope)

    def _within(self, x: Tensor, change: Tensor, bounds: Bounds) -> Tensor:
        """x + change, projected onto the ball and then onto the box."""
        if self.norm == "linf":
            change = change.clamp(-self.radius, self.radius)
        else:
            change = change * _each((self.radius / _above_zero(_length(change))).clamp(max=1), change)
        return x + change if bounds is None else (x + change).clamp(*bounds)

    def _drawn(self, x: Tensor, key: Tensor) -> Tensor:
        """Evenly from the ball, one point for each key [m, B]."""
        p = x[0, 0].numel()
        if self.norm == "linf":
            return ((2 * uniform(key, p) - 1) * self.radius).view(x.shape).to(x.dtype)
        away = normal(fold(key, "direction"), p).view(x.shape)
        far = self.radius * interior(fold(key, "length"), 1)[..., 0] ** (1 / p)
        return (away * _each((far / _length(away)).float(), away)).to(x.dtype)


@dataclass(frozen=True)
class Fgsm(Attack):
    """One step of the whole radius along the gradient (linf: its sign), from the sample itself."""

    source: ClassVar[str] = "Goodfellow et al. 2015"

    @property
    def gradients(self) -> int:
        return int(self.moves)

    def perturb(self, x: Tensor, slopes: Slopes, key: Tensor, bounds: Bounds) -> Tensor:
        return Pgd(self.norm, self.radius, self.box, steps=1, step=self.radius, random_start=False).perturb(x, slopes, key, bounds)


class _Greatest:
    """Of the points offered for each sample the one of greatest loss, the earliest of equals; the first where no loss is known."""

    def __init__(self, points: Tensor, losses: Tensor | None) -> None:
        self.points, self.losses = points, losses

    def offer(self, points: Tensor, losses: Tensor) -> None:
        if self.losses is None:
            self.points, self.losses = points, losses
            return
        better = losses > self.losses
        self.points = torch.where(_each(better, points), points, self.points)
        self.losses = torch.where(better, losses, self.losses)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """[m, B] as [m, B, 1, ...], to go with samples."""
    return values.view(*values.shape, *[1] * (like.dim() - 2))


def _length(change: Tensor) -> Tensor:
    """[m, B]: Euclidean length of each sample's change."""
    return change.flatten(2).square().sum(-1).sqrt()


def _above_zero(values: Tensor) -> Tensor:
    """Values of 0 as 1, by which nothing is divided to more."""
    return torch.where(values > 0, values, 1)
