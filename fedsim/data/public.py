"""Public samples, which all nodes and the server have: held out of the others, or of another source. Nobody sees their labels."""

# N: training samples, P: public samples

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import permutation
from fedsim.data.arrays import Array, Arrays
from fedsim.data.source import Source
from fedsim.settings.part import Part, setting


class Public(Part):
    """Where public samples come from; a bare number holds so many out."""

    slot: ClassVar[str] = "public"
    default: ClassVar[str] = "held_out"
    bare: ClassVar[tuple[str, str]] = ("held_out", "samples")

    def of(self, arrays: Arrays, base: Path, key: Tensor) -> tuple[Arrays, Array]:
        """The samples that are left to nodes, and the public ones [P, ...]. Raises SettingError where there are none of either."""
        raise NotImplementedError

    def anchored(self, base: Path) -> "Public":
        """The same wherever the scenario lies: files beside it by their absolute paths."""
        return self


@dataclass(frozen=True)
class HeldOut(Public):
    """So many of the training samples, by lot; no node has them."""

    samples: int = setting(help="how many (P)", ge=1)

    def of(self, arrays: Arrays, base: Path, key: Tensor) -> tuple[Arrays, Array]:
        if self.samples >= len(arrays.y):
            raise SettingError("task.public", f"{self.samples:,} of {len(arrays.y):,} training samples: none is left to the nodes")
        away = np.zeros(len(arrays.y), dtype=np.bool_)
        away[permutation(key, len(away))[: self.samples].numpy()] = True
        return part_of(arrays, ~away), arrays.x[away]


@dataclass(frozen=True)
class Other(Public):
    """The training samples of another source, of the same shape."""

    name: ClassVar[str] = "data"

    data: Source = setting(help="where they come from")

    def of(self, arrays: Arrays, base: Path, key: Tensor) -> tuple[Arrays, Array]:
        try:
            return arrays, self.data.load(base).x
        except SettingError as error:
            raise SettingError(error.key.replace("task.data", "task.public.data", 1), error.message) from error

    def anchored(self, base: Path) -> "Other":
        return dataclasses.replace(self, data=self.data.anchored(base))


def part_of(arrays: Arrays, which: Array) -> Arrays:
    """Without the training samples that are not meant, bool [N]."""
    keys = {name: ids[which] for name, ids in arrays.keys.items()}
    return dataclasses.replace(arrays, x=arrays.x[which], y=arrays.y[which], keys=keys)
