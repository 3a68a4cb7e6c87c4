"""Losses that know which classes a node has."""

from collections.abc import Callable
from copy import copy
from functools import partial

from torch import Tensor

from fedsim.task.loss import MASK, takes_mask
from fedsim.task.task import Task


def masked(loss: Callable[..., Tensor], task: Task, mask: Tensor | None) -> Callable[..., Tensor]:
    """A strategy's loss over a task's, of (outputs, targets, weight), where both know the mask if they take one."""
    if mask is None:
        return partial(loss, task)
    if takes_mask(task.loss):
        task = copy(task)
        task.loss = partial(task.loss, **{MASK: mask})  # type: ignore[assignment]
    return partial(loss, task, mask=mask) if takes_mask(loss) else partial(loss, task)
