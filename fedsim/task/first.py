"""First models of peers, each drawn by a key of its own."""

from pathlib import Path

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.memory import afford
from fedsim.base.rows import Layout
from fedsim.models import Shape
from fedsim.task.fit import built
from fedsim.task.settings import TaskSettings


def first_models(
    settings: TaskSettings, shape: Shape, outputs: int, nodes: int, seed: int, base: Path, layout: Layout, dtype: torch.dtype
) -> Tensor | None:
    """[n, d]: node i's by the seed's i-th key, so that it is the same among however many; None where all begin with one.

    Raises SettingError where models' numbers are given, so that all are the same.
    """
    if settings.first_model == "shared":
        return None
    if settings.models:
        raise SettingError("task.first_model", "`own` is for peers, and groups have models of their own (`task.models`)")
    if settings.weights is not None:
        raise SettingError("task.first_model", "`own` draws each node's first model, and `task.weights` gives all the same")
    afford(4 * layout.size * nodes, "task.first_model", f"{nodes:,} first models of {layout.size:,} parameters")
    model, rows = settings.model.anchored(base), []
    for node in range(nodes):
        drawn = dict(built(model, shape, outputs, seed, dtype, node).named_parameters())
        rows.append(layout.join({name: drawn[name].detach() for name in layout.shapes}))
    return torch.stack(rows)
