"""Models of which clients share a part and keep the rest to themselves."""

from functools import cache

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout


def layers(layout: Layout) -> list[str]:
    """Names of the layers that have parameters, in their order: `0`, `2`, or `body.conv1`."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in layout.names))


@cache
def body(layout: Layout, head: int) -> int:
    """Numbers of a row before those of the last `head` layers. Raises SettingError where there are not so many."""
    there = layers(layout)
    if head >= len(there):
        raise SettingError(
            "strategy.layers", f"{head} layers are the client's own, and the model has {len(there)}: nothing would be shared"
        )
    own = set(there[len(there) - head :])
    return min((layout.slices[name].start for name in layout.names if name.rpartition(".")[0] in own), default=layout.size)


def columns(layout: Layout, names: frozenset[str]) -> Tensor:
    """bool [d]: which numbers of a row belong to the parameters of these layers."""
    found = torch.zeros(layout.size, dtype=torch.bool)
    for name, part in layout.slices.items():
        found[part] = name.rpartition(".")[0] in names
    return found
