"""How a value differs over nodes: in equal steps, drawn, by rank, or from a file."""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fedsim.base.clock import LONGEST, Ints, counted, whole
from fedsim.settings.anchored import anchored_file
from fedsim.settings.part import Part, setting

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Floats = NDArray[np.float64]
HUGE = 1e15  # what a heavy tail is cut at: thirty million years in seconds


class Spread(Part, Generic[T]):
    """How a value differs over nodes."""

    slot: ClassVar[str] = "spread"
    heavy: ClassVar[bool] = False  # drawn without bound

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        """float64 [len(nodes)]: the values of the nodes with these ids."""
        raise NotImplementedError

    def denominator(self, nodes: int) -> int:
        """The exact values are whole multiples of 1 ns over this; 1 for drawn values, which are rounded."""
        return 1

    def ticks(self, nodes: range, key: "Tensor", per_second: int) -> Ints:
        """int64 [len(nodes)]: the values, in seconds, as ticks; heavy tails are cut at LONGEST. Raises ValueError for others beyond it."""
        ticks = self.floats(nodes, key) * per_second
        return whole(np.minimum(ticks, LONGEST) if self.heavy else ticks, per_second)


@dataclass(frozen=True)
class Linear(Spread[T]):
    """From the first node to the last in equal steps (FedFix's F-80 is from 1 s to 0.2 s)."""

    from_: T = setting(help="value of the first node")
    to: T = setting(help="value of the last node")

    def _ends(self) -> tuple[Fraction, Fraction]:
        return Fraction(cast(Any, self.from_)), Fraction(cast(Any, self.to))

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        first, last = self._ends()
        return float(first) + float(last - first) * np.arange(len(nodes)) / max(1, len(nodes) - 1)

    def denominator(self, nodes: int) -> int:
        first, last = self._ends()
        step = (last - first) * 10**9 / max(1, nodes - 1)
        return lcm(step.denominator, (first * 10**9).denominator)

    def ticks(self, nodes: range, key: "Tensor", per_second: int) -> Ints:
        first, last = self._ends()
        counted(max(first, last), per_second, LONGEST)
        step = (last - first) * per_second / max(1, len(nodes) - 1)
        if step.denominator != 1 or (first * per_second).denominator != 1:
            return super().ticks(nodes, key, per_second)
        return int(first * per_second) + int(step) * np.arange(len(nodes), dtype=np.int64)


@dataclass(frozen=True)
class LogNormal(Spread[T]):
    """Drawn for each node: exp of a normal with deviation sigma, times the median."""

    heavy: ClassVar[bool] = True

    median: T = setting(help="value that half of the nodes stay under")
    sigma: float = setting(help="deviation of the logarithm", ge=0, le=50)

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        import torch

        from fedsim.base.keys import fold, normal

        draw = normal(fold(key, torch.arange(nodes.start, nodes.stop)), 1)[:, 0].double().numpy()
        return float(cast(Any, self.median)) * np.exp(self.sigma * draw)


@dataclass(frozen=True)
class Uniform(Spread[T]):
    """Drawn for each node between two values."""

    from_: T = setting(help="least value")
    to: T = setting(help="greatest value")

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        import torch

        from fedsim.base.keys import fold, uniform

        draw = uniform(fold(key, torch.arange(nodes.start, nodes.stop)), 1)[:, 0].double().numpy()
        low, high = float(cast(Any, self.from_)), float(cast(Any, self.to))
        return low + (high - low) * draw


@dataclass(frozen=True)
class Pareto(Spread[T]):
    """Drawn for each node with a heavy tail: a share (least / x)^shape of the nodes is above x; the mean is infinite up to shape 1."""

    heavy: ClassVar[bool] = True

    least: T = setting(help="least value")
    shape: float = setting(help="how fast the tail falls (alpha)", gt=0)

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        import torch

        from fedsim.base.keys import fold, interior

        draw = interior(fold(key, torch.arange(nodes.start, nodes.stop)), 1)[:, 0].numpy()
        least = float(cast(Any, self.least))
        values: Floats = np.exp(np.minimum(np.log(least) - np.log(draw) / max(self.shape, 1e-9), np.log(HUGE))) if least else draw * 0
        return values


@dataclass(frozen=True)
class Zipf(Spread[T]):
    """By rank: the r-th of the nodes, in an order drawn by lot, has most / r^exponent."""

    most: T = setting(help="value of the first in the order")
    exponent: float = setting(1.0, help="how fast values fall", ge=0, le=40)

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        from fedsim.base.keys import fold, permutation

        rank = permutation(fold(key, nodes.start), len(nodes)).double().numpy() + 1
        return float(cast(Any, self.most)) / rank**self.exponent


@dataclass(frozen=True)
class Trace(Spread[T]):
    """Measured values of a file of devices, {device: {field: number}}, as JSON or in FedScale's pickle; see `fedsim.settings.traces`.

    Nodes take devices by a lot that is the same in all settings and seeds, each device once before any is taken again.
    """

    source: ClassVar[str] = "Lai et al. 2022"

    file: str = setting(help="path, beside the scenario or under FEDSIM_DATA")
    field: str = setting(help="which of a device's numbers")
    unit: T = setting(help="what 1 in the file means; of FedScale's `computation` 3 ms a sample, of its `communication` 1 kbit/s")
    lot: int = setting(0, "another number gives the nodes other devices", ge=0)

    def floats(self, nodes: range, key: "Tensor") -> Floats:
        from fedsim.settings.traces import device_numbers, lots

        numbers = device_numbers(self.file, self.field)
        return float(cast(Any, self.unit)) * numbers[lots(self.file, self.lot, len(numbers), nodes)]

    def anchored(self, base: Path) -> "Trace[T]":
        """The same wherever the scenario lies: a file beside it by its absolute path."""
        return replace(self, file=anchored_file(self.file, base))
