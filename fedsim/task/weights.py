"""Weights of clients that are given, not counted."""

import torch
from torch import Tensor

from fedsim.base.errors import placed
from fedsim.base.keys import fold
from fedsim.settings.values import Population
from fedsim.task.settings import TaskSettings


def given_weights(settings: TaskSettings, people: Population, seed: int) -> Tensor | None:
    """float64 [n], by `task.client_weights`; None where samples count. Raises SettingError where they don't fit the nodes."""
    if settings.client_weights is None:
        return None
    with placed("task.client_weights"):
        found = settings.client_weights.floats(people, fold(seed, "client_weights"))
    return torch.from_numpy(found.copy())
