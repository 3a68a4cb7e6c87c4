"""How a node trains: the settings of `train`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.settings.part import setting
from fedsim.settings.values import Constant, Curve
from fedsim.task.task import Task


@dataclass(frozen=True)
class Train:
    """How a node trains: plain SGD over its own samples, reshuffled each epoch."""

    exclusive: ClassVar[tuple[str, ...]] = ("epochs", "steps")

    epochs: float | None = setting(None, "passes over the node's samples, 1 if `steps` is not set either; 0.5 is half a pass", gt=0, le=1e9)
    steps: int | None = setting(None, "batches instead of epochs", ge=1, le=10**9)
    batch: int | Literal["all"] = setting(32, "samples a step", ge=1)
    lr: Curve = setting(Constant(0.05), "learning rate, by round if it changes")
    momentum: float = setting(0.0, "heavy-ball momentum, from zero in each job", ge=0, lt=1)
    weight_decay: float = setting(0.0, "times the model, added to the gradient", ge=0)
    clip: float | None = setting(None, "greatest length of a gradient", gt=0)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("`epochs` and `steps` exclude each other")

    def batch_size(self, task: Task) -> int:
        """Samples a batch has room for, the same for all jobs of a run, so that results don't depend on how jobs are grouped."""
        return task.most if self.batch == "all" else min(self.batch, task.most)

    def plan(self, counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Steps a job and steps an epoch, int64 as `counts` (samples a node); `size` samples a batch."""
        per_epoch = (counts + size - 1) // size
        if self.steps is not None:
            return torch.full_like(counts, self.steps), per_epoch
        steps = per_epoch.double() * (self.epochs or 1.0) - 1e-9  # 0.3 x 50 is 15
        return steps.ceil().long().clamp(min=1), per_epoch

    def samples(self, counts: Tensor, size: int) -> Tensor:
        """Samples that a job looks at, with repetition; int64 as `counts`."""
        steps, per_epoch = self.plan(counts, size)
        return steps // per_epoch * counts + torch.minimum(steps % per_epoch * size, counts)
