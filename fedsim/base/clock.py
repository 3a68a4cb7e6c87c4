"""Virtual time: exact int64 ticks and a queue of arrivals on arrays."""

from collections.abc import Iterable
from fractions import Fraction
from math import lcm
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
LAST = 2**63 - 1
FOREVER = LAST // 2
LONGEST = 1 << 58  # ticks of one part of a job: the clock and all its parts fit int64 together


def ticks_per_second(denominators: Iterable[int], horizon: Fraction | None = None) -> int:
    """1 ns over the common denominator of all exact times, so that ties stay exact.

    Where int64 could not count to the horizon (seconds; 30 days if unknown) in such ticks, 1 ns, and exact times are rounded to it.
    """
    fine = 10**9 * lcm(*denominators)
    return fine if fine * (horizon or 30 * 86_400) < FOREVER else 10**9


def counted(seconds: Fraction, per_second: int, most: int = FOREVER) -> int:
    """A time in ticks. Raises ValueError, with the cure, where that is `most` or more."""
    if (ticks := round(seconds * per_second)) >= most:
        raise ValueError(_beyond(float(seconds), per_second, most))
    return ticks


def whole(ticks: NDArray[np.float64], per_second: int) -> Ints:
    """Parts of jobs, rounded: int64 of the same shape. Raises ValueError where one is beyond LONGEST or no number."""
    if not (ticks <= LONGEST).all():
        raise ValueError(_beyond(float(ticks.max()) / per_second, per_second, LONGEST))
    return np.rint(ticks).astype(np.int64)


def _beyond(seconds: float, per_second: int, most: int) -> str:
    days, cure = most / per_second / 86_400, ""
    if per_second > 10**9:
        cure = "; with a longer `stop.seconds`, or with times in whole ns, ticks are longer"
    what = f"{seconds / 86_400:,.6g} days are more than the clock can count"
    return f"{what}, {days:,.4g} days in ticks of {1e9 / per_second:.3g} ns{cure}"


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


def _ordered(events: Arrivals, nearly: bool = False) -> Arrivals:
    """Sorted by (time, node, serial): by one packed number where time and node fit it, which is several times as fast.

    `nearly`: most are in order already, which a merge sort makes use of.
    """
    if len(events.time) < 2:
        return events
    first, places = events.time.min(), int(events.node.max()).bit_length()
    if int(events.time.max() - first).bit_length() + places < 64:
        packed = (events.time - first) << places | events.node
        order = np.argsort(packed, kind="stable" if nearly else None)
        packed = packed[order]
        if (packed[1:] != packed[:-1]).all():
            return events.take(order)
    return events.take(np.lexsort((events.serial, events.node, events.time)))


class EventQueue:
    """Arrivals to come, on arrays: a sorted front, and behind its horizon pools in no order, each of later events than the one before.

    No Python object an event. A push before the horizon is sorted into the front, others wait to be shared out to the pools. When the
    front is used up, the `bucket` earliest events of the first pool become the new one, of few events a quarter; a pool that is empty
    takes RATIO times as many from the next. So an event is looked at some RATIO times in each pool that it passes, however many there are.
    """

    RATIO = 8
    keeps: ClassVar[tuple[str, ...]] = ("front", "start", "count", "horizon", "pools", "ends", "new")

    def __init__(self, bucket: int = 1024) -> None:
        self.bucket = bucket
        self.clear()

    def clear(self) -> None:
        """Forgets all events."""
        self.count = 0
        self.front, self.start = NONE, 0
        self.horizon = -1  # all events up to it are in the front
        self.pools: list[list[Arrivals]] = [[]]  # blocks of events
        self.ends = [LAST]  # all events up to it are in this pool, in one before it, in the front, or new
        self.new: list[Arrivals] = []

    def __len__(self) -> int:
        return self.count

    def push(self, time: Ints, node: Ints, serial: Ints) -> None:
        """Adds events; their order does not matter. Node ids are not negative."""
        block = Arrivals(time, node, serial)
        self.count += len(time)
        early = time <= self.horizon
        if early.any():
            rest = self.front.take(slice(self.start, None))
            all_early = bool(early.all())
            self.front, self.start = _ordered(_join(rest, block if all_early else block.take(early)), nearly=True), 0
            if all_early:
                return
            block = block.take(~early)
        if len(block.time):
            self.new.append(block)

    def peek(self, count: int, until: int = FOREVER) -> Arrivals:
        """The next events up to and including `until`, at most `count`, left where they are."""
        if len(self.front.time) - self.start < min(count, self.count):
            self._refill(count, until)
        window = self.front.take(slice(self.start, self.start + count))
        return window.take(slice(0, int(np.searchsorted(window.time, until, side="right"))))

    def since(self, serial: int) -> int:
        """How many events have this serial number or a higher one."""
        blocks = [self.front.take(slice(self.start, None)), *self.new, *(block for pool in self.pools for block in pool)]
        return sum(int((block.serial >= serial).sum()) for block in blocks)

    def drop(self, count: int) -> None:
        """Forgets the `count` next events: those that a `peek` showed."""
        self.start += count
        self.count -= count

    def all(self) -> Arrivals:
        """Every event still to come, in order."""
        return self.peek(len(self))

    def _refill(self, count: int, until: int) -> None:
        """Moves the earliest events of the pools to the front until it holds `count`, or all up to a time."""
        rest, taken = self.front.take(slice(self.start, None)), [NONE]
        if count >= self.count:
            self.front, self.start = _ordered(_join(rest, *self.new, *(block for pool in self.pools for block in pool))), 0
            self.horizon = max(self.horizon, int(self.front.time[-1]))
            self.pools, self.ends, self.new = [[]], [LAST], []
            return
        self._share_out()
        left = min(count, self.count) - len(rest.time)
        bucket = max(left, min(self.bucket, self.count // 4))  # a front of all would be sorted anew at each push
        while left > 0 and self.horizon < until:
            early, self.horizon = self._earliest(0, bucket)
            taken.append(early)
            left -= len(early.time)
        self.front, self.start = _join(rest, _ordered(_join(*taken))), 0
        while len(self.pools) > 1 and not self.pools[-1]:
            self.pools, self.ends = self.pools[:-1], [*self.ends[:-2], LAST]

    def _share_out(self) -> None:
        """New events go to the pools."""
        block, self.new = _join(NONE, *self.new), []
        for pool, end in zip(self.pools, self.ends, strict=True):
            here = block.time <= end
            if here.any():
                pool.append(block.take(here))
                block = block.take(~here)

    def _earliest(self, at: int, bucket: int) -> tuple[Arrivals, int]:
        """Takes out of the pools from number `at` on the earliest events, and the time up to which these are all.

        There must be some; they are `bucket` x RATIO^at, more where times are equal, less at the end of a pool.
        """
        size, blocks = bucket * self.RATIO**at, self.pools[at]
        if at == len(self.pools) - 1 and sum(len(block.time) for block in blocks) > self.RATIO * size:  # too many to look at so often
            self.pools, self.ends = [*self.pools[:-1], [], blocks], [*self.ends, LAST]
        if not self.pools[at]:
            nearer, self.ends[at] = self._earliest(at + 1, bucket)
            self.pools[at] = [nearer]
        pool = _join(*self.pools[at])
        if len(pool.time) <= size:
            self.pools[at] = []
            return pool, int(pool.time.max()) if self.ends[at] == LAST else self.ends[at]
        horizon = int(np.partition(pool.time, size - 1)[size - 1])
        early = pool.time <= horizon
        late = np.flatnonzero(~early)  # once for all columns
        self.pools[at] = [pool.take(late)] if len(late) else []
        return pool.take(np.flatnonzero(early)), horizon
