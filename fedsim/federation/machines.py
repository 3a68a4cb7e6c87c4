"""Machines that several nodes share: what waits there is computed together, so that arrivals are known only as they come."""

# k: jobs that begin, w: jobs that wait, s: stacks, in the order of their machines

from typing import ClassVar, NamedTuple

import numpy as np

from fedsim.base.clock import FOREVER, LONGEST, Arrivals, EventQueue, Ints
from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows
from fedsim.codecs import row_bytes
from fedsim.federation.journey import Journey
from fedsim.method.companion import Companion, Merged
from fedsim.settings.values import Floats
from fedsim.world.nature import Nature


class Stacks(NamedTuple):
    """What machines would do next: jobs [w] of stack `of` [w]; each stack's machine, its first moment and its last, when its replies
    have left, and when they arrive: ticks [s]. `soonest` [w]: no job that waits, in a stack or behind one, comes back before."""

    nodes: Ints
    of: Ints
    machine: Ints
    begin: Ints
    done: Ints
    left: Ints
    arrive: Ints
    soonest: Ints


def fetched(heard: Rows, row: Ints) -> tuple[int, int]:
    """Bytes of what jobs [k] hear, row `row` [k] of `heard`, decoded: of what all hear, and of what each hears alone."""
    common = {name: part for name, part in heard.items() if len(part) == 1 or part.stride(0) == 0 or (len(row) > 1 and not np.ptp(row))}
    each = {name: part for name, part in heard.items() if name not in common}
    return row_bytes(common) if common else 0, row_bytes(each) if each else 0


class Machines:
    """From orders to replies. Nothing that is sent later changes a stack that has begun, so its end is certain then. At equal times replies
    are heard, and orders sent, before stacks begin."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("receiving", "working", "sending", "told", "ready", "job", "arrived", "work", "longest", "summed", "size", "point", "gone"),
        "busy",
    )

    def __init__(self, nature: Nature, queue: EventQueue, nodes: int, together: int) -> None:
        """`together`: jobs of a stack at most, where the world does not say."""
        assert nature.machine is not None
        self.nature, self.queue, self.machine, self.together = nature, queue, nature.machine, nature.together or together
        _, self.first = np.unique(self.machine, return_index=True)  # a node of each machine
        count = len(self.first)
        self.receiving, self.working, self.sending = (np.zeros(count, dtype=np.int64) for _ in range(3))  # until when
        self.told = np.full(count, -1)  # the version that each machine has
        self.ready = np.full(nodes, FOREVER)  # when a job that waits was there
        self.job, self.arrived, self.work, self.longest, self.summed, self.size = (np.full(nodes, -1, dtype=np.int64) for _ in range(6))
        self.point = np.full(nodes, np.nan)  # of the work at which it crashes
        self.gone = np.zeros(nodes, dtype=bool)  # nobody drops its work
        self.busy = 0  # until when the server merges

    def start(self, now: int, nodes: Ints, jobs: Ints, version: int, size: tuple[int, int], summed: Ints, ahead: Journey) -> None:
        """Jobs [k] begin, which hear so many bytes together and so many each; of their work, `summed` ticks [k] are added up in a stack."""
        self.job[nodes], self.size[nodes], self.point[nodes], self.summed[nodes] = jobs, ahead.up, ahead.point, summed
        self.longest[nodes] = ahead.times.work - self.nature.stack[nodes] - summed
        machine, place, count = np.unique(self.machine[nodes], return_inverse=True, return_counts=True)
        size_each = size[0] * (self.told[machine] != version) + size[1] * count
        self.told[machine] = version
        at = self._carried(self.receiving, machine, np.full(len(machine), now), size_each, self.nature.down)
        self.ready[nodes] = self.arrived[nodes] = (at + self.nature.latency[self.first[machine]])[place]

    def peek(self, count: int, until: int) -> Arrivals:
        """The next ends of jobs up to and including `until`, at most `count`; who arrives while the server merges is heard after it."""
        while True:
            batch = self.queue.peek(count, until)
            waiting = np.flatnonzero(self.ready < FOREVER)
            now = int(self.ready[waiting].min(initial=FOREVER))  # none begins before
            if now > until or (len(batch.time) == count and batch.time[-1] <= now):
                break
            if not self._form(self._stacks(waiting), batch, count, until):
                break
        time = np.maximum(batch.time, self.busy)
        return batch._replace(time=time).take(time <= until)

    def clear(self) -> None:
        """Forgets all jobs; what machines have begun they finish."""
        self.ready[:] = FOREVER
        self.job[:] = -1

    def _stacks(self, nodes: Ints) -> Stacks:
        """What machines do next if no job comes in between."""
        nodes = nodes[np.lexsort((nodes, self.ready[nodes], self.machine[nodes]))]
        machine, start, of = np.unique(self.machine[nodes], return_index=True, return_inverse=True)
        begin = np.maximum(self.working[machine], self.ready[nodes[start]])
        inside = (self.ready[nodes] <= begin[of]) & (np.arange(len(nodes)) - start[of] < self.together)
        everyone, behind, nodes, of = nodes, of, nodes[inside], of[inside]
        start = np.searchsorted(of, np.arange(len(machine)))
        most = np.maximum.reduceat(self.longest[nodes], start)
        if np.add.reduceat(self.summed[nodes].astype(np.float64), start).max() + float(most.max()) > LONGEST:
            raise SettingError("world.compute", "the work of one machine takes longer than the clock can count")
        one = self.first[machine]
        done = begin + self.nature.stack[one] + most + np.add.reduceat(self.summed[nodes], start)
        up = np.add.reduceat(np.where(np.isnan(self.point[nodes]), self.size[nodes], 0), start)
        left = self._carried(self.sending, machine, done, up, self.nature.up, keep=False)
        arrive = left + self.nature.latency[one]
        soonest = np.where(np.isnan(self.point[everyone]), arrive[behind], begin[behind])
        return Stacks(nodes, of, machine, begin, done, left, arrive, soonest)

    def _form(self, stacks: Stacks, batch: Arrivals, count: int, until: int) -> bool:
        """Stacks that nothing can join any more begin: those before `count` jobs are back, as nobody is sent anything until then, or before
        `until`. False where the first begins behind what is asked."""
        now = int(stacks.begin.min())
        if now > until or (len(batch.time) == count and batch.time[-1] <= now):
            return False
        back = np.r_[batch.time, stacks.soonest]
        heard = min(until, int(np.partition(back, count - 1)[count - 1])) if len(back) >= count else until
        begins = (stacks.begin < heard) | (stacks.begin == now)
        inside = begins[stacks.of]
        nodes, of = stacks.nodes[inside], stacks.of[inside]
        machine = stacks.machine[begins]
        self.working[machine], self.sending[machine] = stacks.done[begins], np.maximum(self.sending[machine], stacks.left[begins])
        begin, work = stacks.begin[of], (stacks.done - stacks.begin)[of]
        crash = ~np.isnan(self.point[nodes])
        stop = begin + (work * np.where(crash, self.point[nodes], 0)).astype(np.int64)
        self.arrived[nodes], self.work[nodes], self.ready[nodes] = begin, work, FOREVER
        self.queue.push(np.where(crash, stop, stacks.arrive[of]), nodes, self.job[nodes])
        return True

    def _carried(self, lane: Ints, machine: Ints, at: Ints, size: Ints, rate: Floats | None, keep: bool = True) -> Ints:
        """When messages of `size` bytes [s] to or from machines [s], ready at `at` [s], are through: after those before them."""
        if rate is None:
            return at
        through = np.maximum(at, lane[machine]) + np.rint(size / rate[self.first[machine]] * self.nature.per_second).astype(np.int64)
        through = np.where(size > 0, through, at)
        if keep:
            lane[machine] = np.maximum(lane[machine], through)
        return through


class Merging(Companion):
    """The server is busy for some time after each merge."""

    def __init__(self, machines: Machines, ticks: int) -> None:
        self.machines, self.ticks = machines, ticks

    def merged(self, merged: Merged) -> None:
        self.machines.busy = max(self.machines.busy, merged.now) + self.ticks
