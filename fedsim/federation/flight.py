"""The simulated field: jobs in flight, on a virtual clock, computed late and together."""

from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.clock import Arrivals, EventQueue, Ints
from fedsim.base.rows import Rows
from fedsim.engines.local import Worker
from fedsim.federation.field import Size, There, each_of
from fedsim.federation.journey import GONE, LOST, WELL, Journey, Labour, journey
from fedsim.federation.ledger import Ledger
from fedsim.federation.machines import Machines, fetched
from fedsim.federation.traffic import Traffic
from fedsim.federation.work import Work
from fedsim.schedule.news import News
from fedsim.settings.values import Floats
from fedsim.world import Nature, Times


class Flight(Work):
    """What the world says of jobs: how long they take, and which never come back."""

    keeps: ClassVar[tuple[str, ...]] = (*Work.keeps, "queue", "fate", "up", "started", "arrived", "work", "traffic")

    def __init__(self, worker: Worker, nature: Nature, ledger: Ledger, peers: bool) -> None:
        super().__init__(worker)
        self.nature, self.ledger, self.peers = nature, ledger, peers
        nodes = worker.task.nodes
        self.queue = EventQueue()
        self.fate = np.zeros(nodes, dtype=np.int8)
        self.up = np.zeros(nodes, dtype=np.int64)  # bytes on the way up
        self.traffic = self._traffic(nodes) if nature.shared else None
        self.tells = nature.shared or nature.energy is not None  # rows of ends have parts of the time, or joules
        self.labour = Labour(nature)
        self.started, self.arrived, self.work = (np.zeros(nodes, dtype=np.int64) for _ in range(3))  # only where it tells

    def _traffic(self, nodes: int) -> Traffic | Machines:
        given = self.nature, self.queue, nodes
        return Traffic(*given) if self.nature.machine is None else Machines(*given, self.worker.chunk)

    def clock(self, now: int) -> int:
        """Time passes only between events, and while a server merges."""
        return max(now, self.traffic.busy) if isinstance(self.traffic, Machines) else now

    def durations(self, down: Size) -> Ints:
        """Ticks of each node's jobs when nothing goes wrong and nobody else is on the link; int64 [nodes]."""
        every = np.arange(len(self.job))
        self.labour.plan(self.effort)
        return sum(self._times(every, each_of(down, every), each_of(self.up_bytes, every), None), start=0 * every)

    def _times(self, nodes: Ints, down: Ints, up: Ints, turn: Ints | None) -> Times:
        if self.peers:  # what a peer hears is its own; its models travel to and from its neighbours
            out, into = (count[nodes] * self.peer_bytes for count in self.exchanges)
            return Times(0 * nodes, self.labour.of(nodes, self.effort, turn), self.nature.exchange(nodes, out, into))
        return self.nature.times(nodes, self.labour.of(nodes, self.effort, turn), down, up)

    def journey(self, nodes: Ints, started: Ints, down: Ints) -> Journey:
        """Of the next job of each node [m], were it sent at `started` with `down` bytes."""
        turn, up = self.turn[nodes] + 1, self.upward(nodes)
        down, up = (self.nature.bytes(nodes, size, turn, way) for size, way in ((down, "down"), (up, "up")))
        return journey(self.nature, nodes, turn, started, self._times(nodes, down, up, turn), (down, up), self.peers)

    def start(self, nodes: Ints, at: Ints, heard: Rows, row: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        """Nodes [k] without a job begin one at times [k], having heard row `row` [k] of what `heard` has, in `down` [k] bytes."""
        ahead = self.journey(nodes, at, down)
        times, self.fate[nodes], self.up[nodes] = ahead.times, ahead.fate, ahead.up
        jobs = self.begin(nodes, heard, row, version, round, chance)
        parts = {"down": times.down, "work": times.work, "up": times.up}
        if self.tells:
            self.started[nodes], self.arrived[nodes], self.work[nodes] = at, at + times.down, times.work
        if self.traffic is None:
            self.queue.push(ahead.ends, nodes, jobs)
        else:  # the parts stand at the end, when they are known
            assert (at == at[0]).all(), "one beginning at a time on a shared link"
            parts = {}
            if isinstance(self.traffic, Machines):
                summed = self.nature.work(nodes, 0 * nodes, self.effort[1][nodes], self.turn[nodes])
                self.traffic.start(int(at[0]), nodes, jobs, version, fetched(heard, row), summed, ahead)
            else:
                self.traffic.start(int(at[0]), nodes, jobs, ahead.down, times.work, ahead.up, ahead.point, ahead.leave)
        columns = {"node": nodes, "job": jobs, "version": version, "bytes_down": ahead.down, "steps": self.steps[nodes], **parts}
        self.ledger.add("dispatch", len(nodes), time=at, **columns)

    def since(self, number: int) -> int:
        """Jobs in flight from this number on."""
        return self.queue.since(number) if self.traffic is None else int((self.job >= number).sum())

    def peek(self, count: int, until: int) -> Arrivals:
        """The next ends of jobs up to and including `until`, at most `count`."""
        return self.queue.peek(count, until) if self.traffic is None else self.traffic.peek(count, until)

    def _ended(self, nodes: Ints, time: Ints) -> dict[str, Any]:
        """Columns of the rows of ends, where those tell more than that it is over."""
        if not self.tells:
            return {}
        of = self if self.traffic is None else self.traffic
        arrived = of.arrived[nodes]
        down = np.minimum(time, arrived) - self.started[nodes]
        work = np.minimum(np.maximum(time - arrived, 0), of.work[nodes])
        parts = Times(down, work, time - self.started[nodes] - down - work)
        joules = self.nature.joules(nodes, parts)
        return ({} if self.traffic is None else parts._asdict()) | ({} if joules is None else {"energy": joules})

    def land(self, batch: Arrivals, ahead: bool) -> News:
        """The next jobs of the queue come back: whole ones are computed, with those that arrive after them if `ahead`, and become news."""
        self.queue.drop(len(batch.time))
        if self.traffic is not None:
            self.fate[batch.node[self.traffic.gone[batch.node]]] = GONE
        well = self.fate[batch.node] == WELL
        if not well.all():
            broken = batch.take(~well)
            self._drop(broken.node, broken.time, np.where(self.fate[broken.node] == LOST, self.up[broken.node], 0))
            batch = batch.take(well)
        nodes = batch.node
        missing = nodes[self.reply[nodes] < 0]
        if len(missing):
            more = self._next(-len(missing) % self.worker.chunk, missing) if ahead else missing[:0]
            self.compute(np.concatenate([missing, more]), len(missing), len(nodes))
        news = self.home(nodes)
        columns = {"node": nodes, "job": news.job, "version": news.version, "bytes_up": self.up[nodes], **self._ended(nodes, batch.time)}
        self.ledger.add("arrival", len(nodes), time=batch.time, **columns)
        return news

    def refill(self, batch: Arrivals, need: int, there: There | None, key: Tensor, down: Size) -> tuple[Arrivals, Ints]:
        """The next arrivals before anybody who starts in their places, and who starts at each but the one that makes `need` whole.

        `there` says who is there at a time; None: everybody.
        """
        last = int(np.searchsorted(np.cumsum(self.fate[batch.node] == WELL), need))
        batch = batch.take(slice(0, last + 1))
        nodes = self.starters(batch.take(slice(0, last)), there, key)
        times = batch.time[: len(nodes)]
        ends = self.journey(nodes, times, each_of(down, nodes)).ends
        late = np.flatnonzero(batch.time[1 : len(nodes) + 1] >= np.minimum.accumulate(ends)[: len(batch.time) - 1])
        cut = int(late[0]) + 1 if len(late) else (len(nodes) + 1 if len(nodes) < last else len(batch.time))
        return batch.take(slice(0, cut)), nodes[:cut]

    def cancel(self, now: int) -> None:
        """Forgets all jobs."""
        if self.traffic is None:
            nodes = self.queue.all().node
        else:
            nodes = np.flatnonzero(self.job >= 0)
            self.traffic.clear()
        self.queue.clear()
        self._drop(nodes, np.full(len(nodes), now), np.zeros(len(nodes), dtype=np.int64))

    def _next(self, count: int, besides: Ints) -> Ints:
        """Other nodes whose replies are wanted next and not yet computed, at most `count`."""
        if self.traffic is None:
            nodes = self.queue.peek(min(4 * count, len(self.queue))).node
        else:  # when they end is not known yet, but all will
            nodes = np.setdiff1d(np.flatnonzero(self.job >= 0), besides)
            nodes = nodes[np.argsort(self.job[nodes])]
        wanted: Ints = nodes[(self.fate[nodes] == WELL) & (self.reply[nodes] < 0)]
        return wanted[:count]

    def _drop(self, nodes: Ints, time: Ints, up: Ints) -> None:
        """Jobs end without a reply."""
        columns = {"node": nodes, "job": self.job[nodes], "version": self.version[nodes], "bytes_up": up, **self._ended(nodes, time)}
        self.ledger.add("drop", len(nodes), time=time, **columns)
        self.ledger.dropped += len(nodes)
        self.forget(nodes)
