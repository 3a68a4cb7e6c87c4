"""Virtual time: exact int64 ticks and a queue of arrivals on arrays."""

from collections.abc import Iterable
from fractions import Fraction
from math import lcm
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
FOREVER = np.iinfo(np.int64).max // 2


def ticks_per_second(denominators: Iterable[int], horizon: Fraction | None = None) -> int:
    """1 ns over the common denominator of all exact times, so that ties stay exact.

    Where int64 could not count to the horizon (seconds; 30 days if unknown) in such ticks, 1 ns, and exact times are rounded to it.
    """
    fine = 10**9 * lcm(*denominators)
    return fine if fine * (horizon or 30 * 86_400) < FOREVER else 10**9


class Arrivals(NamedTuple):
    """Events in the order (time, node, serial); int64 [m] each."""

    time: Ints
    node: Ints
    serial: Ints

    def take(self, at: slice | NDArray[np.bool_] | Ints) -> "Arrivals":
        return Arrivals(self.time[at], self.node[at], self.serial[at])


NONE = Arrivals(*(np.zeros(0, dtype=np.int64),) * 3)


def _join(*blocks: Arrivals) -> Arrivals:
    return Arrivals(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))


def _ordered(events: Arrivals) -> Arrivals:
    return events.take(np.lexsort((events.serial, events.node, events.time)))


class EventQueue:
    """Arrivals to come, on arrays: a sorted front bucket, and blocks in no order behind a horizon that the front ends at.

    No Python object an event. A push before the horizon is sorted into the front, others are appended behind it; when the front is
    used up, the next `bucket` earliest events (or four times the root of all) become the new one.
    """

    keeps: ClassVar[tuple[str, ...]] = ("front", "start", "back", "horizon")

    def __init__(self, bucket: int = 1024) -> None:
        self.bucket = bucket
        self.front, self.start = NONE, 0
        self.back: list[Arrivals] = []
        self.horizon = -1  # all events up to it are in the front

    def __len__(self) -> int:
        return len(self.front.time) - self.start + sum(len(block.time) for block in self.back)

    def push(self, time: Ints, node: Ints, serial: Ints) -> None:
        """Adds events; their order does not matter."""
        block = Arrivals(time, node, serial)
        early = time <= self.horizon
        if early.any():
            rest = self.front.take(slice(self.start, None))
            self.front, self.start = _ordered(_join(rest, block.take(early))), 0
            block = block.take(~early)
        if len(block.time):
            self.back.append(block)

    def peek(self, count: int, until: int = FOREVER) -> Arrivals:
        """The next events up to and including `until`, at most `count`, left where they are."""
        while len(self.front.time) - self.start < count and self.back:
            self._refill()
            if self.horizon >= until:
                break
        window = self.front.take(slice(self.start, self.start + count))
        return window.take(slice(0, int(np.searchsorted(window.time, until, side="right"))))

    def drop(self, count: int) -> None:
        """Forgets the `count` next events: those that a `peek` showed."""
        self.start += count

    def all(self) -> Arrivals:
        """Every event still to come, in order."""
        return self.peek(len(self))

    def _refill(self) -> None:
        """Moves the earliest events behind the horizon to the front."""
        rest = _join(*self.back)
        size = max(self.bucket, 4 * int(len(rest.time) ** 0.5))
        if size >= len(rest.time):
            taken, self.back, self.horizon = rest, [], int(rest.time.max())
        else:
            self.horizon = int(np.partition(rest.time, size)[size])
            early = rest.time <= self.horizon  # all ties of the horizon too
            taken, late = rest.take(early), rest.take(~early)
            self.back = [late] if len(late.time) else []
        self.front, self.start = _join(self.front.take(slice(self.start, None)), _ordered(taken)), 0
