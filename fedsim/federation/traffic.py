"""A server's link shared by all who use it: transfers as a fluid, max-min fair, so that arrivals are known only as they come."""

from typing import ClassVar

import numpy as np

from fedsim.base.clock import FOREVER, Arrivals, EventQueue, Ints
from fedsim.settings.values import Floats
from fedsim.world.nature import Nature

NOBODY = np.zeros(0, dtype=np.int64)


def fair(cap: Floats, capacity: float) -> Floats:
    """Max-min fair rates [m] under a common capacity: all get the same level, but for those whose own cap is below it (Bertsekas &
    Gallager 1992, "Data Networks", 6.5.2: progressive filling)."""
    if cap.sum() <= capacity:
        return cap
    low = np.sort(cap)
    level = (capacity - np.r_[0.0, np.cumsum(low)[:-1]]) / np.arange(len(low), 0, -1)  # if only the k lowest keep their caps
    rates: Floats = np.minimum(cap, level[np.argmax(level <= low)])
    return rates


class Pipe:
    """Transfers under way in one direction: who [m], bytes left, own caps, rates, and when each ends if nothing changes."""

    keeps: ClassVar[tuple[str, ...]] = ("node", "left", "cap", "rate", "due", "clock")

    def __init__(self, capacity: float, per_second: int) -> None:
        self.capacity, self.per_second, self.clock = capacity, per_second, 0
        self.node, self.due = NOBODY, NOBODY
        self.left = self.cap = self.rate = np.zeros(0)

    def next(self) -> int:
        """When the first of them ends."""
        return int(self.due.min()) if len(self.due) else FOREVER

    def change(self, now: int, begin: Ints = NOBODY, size: Ints = NOBODY, cap: Floats | None = None, stop: Ints = NOBODY) -> Ints:
        """Moves on to `now`, which is not behind the next end: takes out those who are done, which it returns, and those who stop, and
        takes in those who begin."""
        done = self.due <= now
        ended, kept = self.node[done], ~done & ~np.isin(self.node, stop)
        left = np.maximum(self.left - self.rate * ((now - self.clock) / self.per_second), 0.0)
        self.clock = now
        if kept.all() and not len(begin):
            self.left = left
            return ended
        own = np.zeros(0) if cap is None else cap
        self.node = np.r_[self.node[kept], begin]
        self.left, self.cap = np.r_[left[kept], size.astype(np.float64)], np.r_[self.cap[kept], own]
        self.rate = fair(self.cap, self.capacity)
        self.due = now + np.rint(self.left / self.rate * self.per_second).astype(np.int64)
        return ended


class Traffic:
    """Jobs whose ways share the server's link. It runs from event to event and puts ends of jobs into the queue as they are certain.

    A way down is the transfer and then the latency, a way up the latency and then the transfer: the link is the server's.
    """

    keeps: ClassVar[tuple[str, ...]] = ("down", "up", "ways", "leaving", "job", "arrived", "work", "size", "point", "leave", "gone")

    def __init__(self, nature: Nature, queue: EventQueue, nodes: int) -> None:
        self.nature, self.queue = nature, queue
        self.down, self.up = (Pipe(rate, nature.per_second) if rate else None for rate in (nature.server_down, nature.server_up))
        self.ways, self.leaving = EventQueue(), EventQueue()  # ways up to begin; nodes that will leave
        self.job, self.arrived, self.work, self.size, self.leave = (np.full(nodes, -1, dtype=np.int64) for _ in range(5))
        self.point = np.full(nodes, np.nan)  # of the work at which it crashes
        self.gone = np.zeros(nodes, dtype=bool)  # jobs that ended because their nodes left

    def start(self, now: int, nodes: Ints, jobs: Ints, down: Ints, work: Ints, up: Ints, point: Floats, leave: Ints | None) -> None:
        """Jobs begin: bytes down, ticks of work, bytes up; a crash at `point` of the work (nan: none); when their nodes leave for good."""
        self._run(now)
        self.job[nodes], self.work[nodes], self.size[nodes], self.point[nodes] = jobs, work, up, point
        self.arrived[nodes], self.leave[nodes] = FOREVER, FOREVER if leave is None else leave
        if leave is not None and (soon := leave < FOREVER).any():
            self.leaving.push(leave[soon], nodes[soon], jobs[soon])
        if self.down is None:
            self._heard(nodes, now + self.nature.travel(nodes, down, self.nature.down))
        else:
            assert self.nature.down is not None
            self._heard(done := self.down.change(now, nodes, down, self.nature.down[nodes]), now + self.nature.latency[done])

    def peek(self, count: int, until: int) -> Arrivals:
        """The next ends of jobs up to and including `until`, at most `count`; runs no further than to the last of them."""
        while True:
            batch = self.queue.peek(count, until)
            now = self._next()
            if now > until or (len(batch.time) == count and batch.time[-1] < now):
                return batch
            self._step(now)

    def clear(self) -> None:
        """Forgets all transfers."""
        for pipe in (self.down, self.up):
            if pipe is not None:
                pipe.change(pipe.clock, stop=pipe.node)
        self.ways, self.leaving = EventQueue(), EventQueue()
        self.job[:] = -1

    def _next(self) -> int:
        first = [pipe.next() for pipe in (self.down, self.up) if pipe is not None]
        first += [int(batch.time[0]) for queue in (self.ways, self.leaving) if len((batch := queue.peek(1)).time)]
        return min(first, default=FOREVER)

    def _run(self, until: int) -> None:
        while (now := self._next()) <= until:
            self._step(now)

    def _step(self, now: int) -> None:
        """All that happens at a time: ends before departures, those before beginnings."""
        if self.down is not None:
            self._heard(done := self.down.change(now), now + self.nature.latency[done])
        if self.up is not None:
            self._end(done := self.up.change(now), np.full(len(done), now))
        if len(away := self._due(self.leaving, now)):
            for pipe in (self.down, self.up):
                if pipe is not None:
                    pipe.change(now, stop=away)
            self._end(away, np.full(len(away), FOREVER))
        if len(begin := self._due(self.ways, now)):
            assert self.up is not None and self.nature.up is not None
            self._end(done := self.up.change(now, begin, self.size[begin], self.nature.up[begin]), np.full(len(done), now))

    def _due(self, queue: EventQueue, now: int) -> Ints:
        """Nodes in a queue at this time whose job is still the same."""
        batch = queue.peek(len(queue), now)
        queue.drop(len(batch.time))
        same: Ints = batch.node[self.job[batch.node] == batch.serial]
        return same

    def _heard(self, nodes: Ints, at: Ints) -> None:
        """Models arrive at `at` [m], latency included: the rest is known but for the way up, if that is shared."""
        if not len(nodes):
            return
        self.arrived[nodes] = at
        crash, work, latency = ~np.isnan(self.point[nodes]), self.work[nodes], self.nature.latency[nodes]
        stop = at + (work * np.where(crash, self.point[nodes], 0)).astype(np.int64)
        self._end(nodes[crash], stop[crash])
        whole, begin = nodes[~crash], (at + work)[~crash]
        if self.up is None:
            self._end(whole, begin + self.nature.travel(whole, self.size[whole], self.nature.up))
        else:
            self.ways.push(begin + latency[~crash], whole, self.job[whole])

    def _end(self, nodes: Ints, at: Ints) -> None:
        """Jobs end at `at` [m], or before it when their nodes leave."""
        if len(nodes):
            self.gone[nodes] = self.leave[nodes] < at
            self.queue.push(np.minimum(at, self.leave[nodes]), nodes, self.job[nodes])
            self.job[nodes] = -1
