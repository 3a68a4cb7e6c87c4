"""Types of settings: times, sizes, rates, shares, counts, values per node and values over rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Annotated, Any, Generic, cast

import numpy as np

from fedsim.base.clock import LONGEST, Ints, counted
from fedsim.settings.curves import Constant, Cosine, Curve, Exponential, Periodic, Points, PowerLaw, Ramp, Steps, Warmup
from fedsim.settings.spans import covering
from fedsim.settings.spread import Floats, Linear, LogNormal, Pareto, Spread, T, Trace, Uniform, Zipf

if TYPE_CHECKING:
    from torch import Tensor


MOST_NODES = 10_000_000


@dataclass(frozen=True)
class Unit:
    """Marks a number as a quantity: `time` (s), `bytes` (B), `rate` (B/s), `share` (0 to 1), `power` (W)."""

    kind: str


Time = Annotated[Fraction, Unit("time")]  # seconds, exact
Bytes = Annotated[int, Unit("bytes")]
Rate = Annotated[Fraction, Unit("rate")]  # bytes a second
Share = Annotated[float, Unit("share")]
Power = Annotated[Fraction, Unit("power")]  # watts


@dataclass(frozen=True)
class Population:
    """How many nodes there are and which block of ids each group is."""

    nodes: int
    groups: Mapping[str, range] = field(default_factory=dict)


@dataclass(frozen=True)
class Count:
    """So many of the nodes: a number, a share or all. `strict` makes too large a number an error; else it is written `at most 10`."""

    number: int | None = None
    share: float | None = None
    strict: bool = False

    def of(self, nodes: int) -> int:
        """The number of nodes meant, 1 to `nodes`. Raises ValueError where a written number is above `nodes`."""
        if self.number is not None:
            if self.strict and self.number > nodes:
                raise ValueError(f"{self.number} of {nodes} nodes")
            return min(self.number, nodes)
        return nodes if self.share is None else max(1, round(self.share * nodes))


ALL = Count()


def blocks(groups: "Mapping[str, Count | str]", nodes: int) -> dict[str, range]:
    """Node ids of each group, in the written order. Raises ValueError where they don't add up to the nodes or one is empty."""
    sizes = {
        name: nodes if size == ALL else size.number or (size.share or 0) * nodes for name, size in groups.items() if isinstance(size, Count)
    }
    rests, left = [name for name in groups if name not in sizes], nodes - sum(sizes.values())
    if len(rests) > 1:
        raise ValueError(f"`rest` can be said once, not for {' and '.join(rests)}")
    if groups and not rests and abs(left) > 1e-9 * nodes:
        raise ValueError(f"groups of {sum(sizes.values()):g} nodes in all, but there are {nodes}; one may be `rest`")
    found, end = {}, 0.0
    for name in groups:
        start, end = end, end + sizes.get(name, left)
        found[name] = range(int(start + 0.5 + 1e-9), int(end + 0.5 + 1e-9))
        if not found[name]:
            raise ValueError(f"group `{name}` has no node ({nodes} in all)")
    return found


@dataclass(frozen=True)
class Every:
    """An interval in rounds or in seconds, whichever is set."""

    rounds: int | None = None
    seconds: Fraction | None = None


@dataclass(frozen=True)
class PerNode(Generic[T]):
    """A value that may differ over nodes: one value, a list with one entry a node, by group or by range of ids, or a spread."""

    value: T | Sequence[T] | Mapping[str, "PerNode[T]"] | Spread[T]

    def _blocks(self, people: Population) -> list[tuple[range, Any]]:
        """(node ids, constant or list or spread)"""
        if isinstance(self.value, Mapping) and not set(self.value) & set(people.groups) and (named := covering(self.value, people.nodes)):
            found: list[tuple[range, Any]] = [(named[name], inner.value) for name, inner in self.value.items()]
        elif isinstance(self.value, Mapping):
            unknown = set(self.value) - set(people.groups)
            missing = set(people.groups) - set(self.value)
            if unknown or missing or not people.groups:
                known = ", ".join(people.groups) or "none: `groups` is not set"
                raise ValueError(f"by group needs one value for each of the groups ({known}), not {', '.join(self.value)}")
            found = [(people.groups[name], inner.value) for name, inner in self.value.items()]
        else:
            found = [(range(people.nodes), self.value)]
        for ids, value in found:
            if isinstance(value, Sequence) and len(value) != len(ids):
                raise ValueError(f"a list of {len(value)} values for {len(ids)} nodes")
        return found

    def floats(self, people: Population, key: "Tensor") -> Floats:
        """float64 [nodes], to be read only. Raises ValueError where a list or the groups do not fit the population."""
        if self.constant is not None:  # one number, however many nodes
            return np.broadcast_to(np.array(self.constant, dtype=np.float64), people.nodes)
        out = np.empty(people.nodes)
        for ids, value in self._blocks(people):
            part = slice(ids.start, ids.stop)
            out[part] = value.floats(ids, key) if isinstance(value, Spread) else np.array(value, dtype=np.float64)
        return out

    def shares(self, people: Population, key: "Tensor") -> Floats:
        """The same of shares. Raises ValueError also where a spread gives one outside 0 to 1."""
        found = self.floats(people, key)
        if self.constant is None and len(wrong := np.flatnonzero(~((found >= 0) & (found <= 1)))):
            raise ValueError(f"node {wrong[0]} gets {found[wrong[0]]:.3g}, and a share is 0 to 1")
        return found

    def denominator(self, people: Population) -> int:
        """Times: all exact values are whole multiples of 1 ns over this."""
        parts = [1]
        for ids, value in self._blocks(people):
            if isinstance(value, Spread):
                parts.append(value.denominator(len(ids)))
            else:
                values = value if isinstance(value, Sequence) else [value]
                parts += {(Fraction(v) * 10**9).denominator for v in values}
        return lcm(*parts)

    def ticks(self, people: Population, key: "Tensor", per_second: int) -> Ints:
        """Times: int64 [nodes], to be read only. Raises ValueError where one is beyond the clock; drawn tails are cut at LONGEST."""
        if self.constant is not None:
            return np.broadcast_to(np.int64(counted(Fraction(cast(Any, self.constant)), per_second, LONGEST)), people.nodes)
        out = np.empty(people.nodes, dtype=np.int64)
        for ids, value in self._blocks(people):
            part = slice(ids.start, ids.stop)
            if isinstance(value, Spread):
                out[part] = value.ticks(ids, key, per_second)
            else:
                values = value if isinstance(value, Sequence) else [value]
                out[part] = [counted(Fraction(v), per_second, LONGEST) for v in values]
        return out

    @property
    def constant(self) -> T | None:
        """The one value of all nodes, if there is one."""
        return None if isinstance(self.value, Mapping | Sequence | Spread) else self.value


__all__ = [
    "ALL",
    "Bytes",
    "Constant",
    "Cosine",
    "Count",
    "Curve",
    "Every",
    "Exponential",
    "Floats",
    "Linear",
    "LogNormal",
    "Pareto",
    "PerNode",
    "Periodic",
    "Points",
    "Population",
    "Power",
    "PowerLaw",
    "Ramp",
    "Rate",
    "Share",
    "Spread",
    "Steps",
    "Time",
    "Trace",
    "Uniform",
    "Unit",
    "Warmup",
    "Zipf",
    "blocks",
]
