"""Which edge server each node is at."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.keys import permutation
from fedsim.settings.anchored import anchored_file
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Population


class Placing(Part):
    """The edge of each node; a pure function of the key."""

    slot: ClassVar[str] = "placing"

    def of(self, people: Population, edges: int, key: Tensor) -> Ints:
        """int64 [nodes], from 0 to edges - 1. Raises ValueError where that can't be."""
        raise NotImplementedError


@dataclass(frozen=True)
class Contiguous(Placing):
    """Blocks of ids, as equal as can be."""

    def of(self, people: Population, edges: int, key: Tensor) -> Ints:
        return np.arange(people.nodes) * edges // people.nodes


@dataclass(frozen=True)
class RandomPlacing(Placing):
    """By lot, as many at each as can be."""

    name: ClassVar[str] = "random"

    def of(self, people: Population, edges: int, key: Tensor) -> Ints:
        home = np.empty(people.nodes, dtype=np.int64)
        home[permutation(key, people.nodes).numpy()] = np.arange(people.nodes) * edges // people.nodes
        return home


@dataclass(frozen=True)
class ByGroup(Placing):
    """Each of the scenario's `groups` is one edge's, in their order."""

    name: ClassVar[str] = "groups"

    def of(self, people: Population, edges: int, key: Tensor) -> Ints:
        if len(people.groups) != edges:
            known = ", ".join(people.groups) or "none: `groups` is not set"
            raise ValueError(f"{edges} edges, and {len(people.groups)} groups ({known}); each group is one edge's")
        home = np.empty(people.nodes, dtype=np.int64)
        for edge, ids in enumerate(people.groups.values()):
            home[ids.start : ids.stop] = edge
        return home


@dataclass(frozen=True, kw_only=True)
class FromFile(Placing):
    """From a file: the number of its edge for each node, a line a node (# for remarks)."""

    name: ClassVar[str] = "file"

    file: str = setting(help="beside the scenario, or a path")

    def anchored(self, base: Path) -> "FromFile":
        """The same wherever the scenario lies."""
        return replace(self, file=anchored_file(self.file, base))

    def of(self, people: Population, edges: int, key: Tensor) -> Ints:
        try:
            lines = [line.split("#")[0].strip() for line in Path(self.file).read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.file}: {getattr(error, 'strerror', None) or 'no text'}") from error
        for at, line in enumerate(lines, 1):
            if line and not (line.isascii() and line.isdigit() and len(line) < 10 and int(line) < edges):
                raise ValueError(f"{self.file}:{at}: no edge `{line}`; there are {edges} (the first is 0)")
        home = np.array([int(line) for line in lines if line], dtype=np.int64)
        if len(home) != people.nodes:
            raise ValueError(f"{self.file}: the edges of {len(home)} nodes; there are {people.nodes}")
        return home
