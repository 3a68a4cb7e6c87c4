"""Jobs in flight: who works on what since when, when replies come, and computing them late and together."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.clock import Arrivals, EventQueue, Ints
from fedsim.engines.local import Jobs, Worker
from fedsim.keys import below, fold
from fedsim.ledger import Ledger
from fedsim.rows import BUFFERS, Rows, parted
from fedsim.sampling import few
from fedsim.store import Blocks, Memories
from fedsim.traffic import Traffic
from fedsim.values import Floats
from fedsim.world import Nature, Times


class News(NamedTuple):
    """Replies that arrived: sender, job, version of the model it began from, where its rows are, chance (nan: unknown)."""

    node: Ints
    job: Ints
    version: Ints
    slot: Ints
    chance: Floats

    def take(self, at: Ints) -> "News":
        """Those at these places."""
        return News(self.node[at], self.job[at], self.version[at], self.slot[at], self.chance[at])


def joined(first: News, second: News) -> News:
    """Both, in this order."""
    return News(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


NO_NEWS = News(*(np.zeros(0, dtype=np.int64),) * 4, np.zeros(0))
WELL, CRASHED, LOST, GONE = 0, 1, 2, 3
There = Callable[[int], NDArray[np.bool_]]  # who is there at a time, bool [nodes]


class Journey(NamedTuple):
    """What lies before jobs [m]: parts of their time, when they come back (ticks), how (WELL, CRASHED, LOST or GONE), bytes down and up.

    On a shared link, what each would be alone; `point` (nan: none) is where in the work it crashes, `leave` when its node leaves for it.
    """

    times: Times
    ends: Ints
    fate: NDArray[np.int8]
    down: Ints
    up: Ints
    point: Floats
    leave: Ints | None


class Flight:
    """Arrays over nodes describe the one job that a node may have. Memories are written at arrival: what never arrives changes nothing."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("queue", "mail", "replies", "after", "memory", "links", "serial", "count", "turn"),
        *("job", "version", "round", "heard", "reply", "kept", "chance", "fate", "up", "started", "arrived", "work", "traffic"),
    )

    def __init__(self, worker: Worker, nature: Nature, ledger: Ledger, peers: bool) -> None:
        self.worker, self.nature, self.ledger, self.peers = worker, nature, ledger, peers
        train, counts, nodes = worker.strategy.train, worker.task.counts.cpu(), worker.task.nodes
        self.steps = train.plan(counts, train.batch_size(worker.task))[0].numpy()
        samples = train.samples(counts, train.batch_size(worker.task)).numpy()
        self.effort = self.steps * worker.strategy.gradients, samples * worker.strategy.gradients  # what a job's time follows
        self.up_bytes = self.first_bytes = self.peer_bytes = 0  # `first_bytes`: of nodes from which nothing has arrived
        self.exchanges = np.zeros(nodes, dtype=np.int64), np.zeros(nodes, dtype=np.int64)  # models a peer sends and hears around a job
        self.queue = EventQueue()
        self.mail, self.replies, self.after = (Blocks(worker.memory) for _ in range(3))
        self.memory, self.links = Memories(nodes), Memories(nodes)
        self.like: Rows = {}  # one reply, for its shapes
        self.serial = self.count = 0
        self.turn = np.zeros(nodes, dtype=np.int64)
        self.job, self.version, self.round, self.heard, self.reply, self.kept = (np.full(nodes, -1, dtype=np.int64) for _ in range(6))
        self.chance = np.full(nodes, np.nan)
        self.fate = np.zeros(nodes, dtype=np.int8)
        self.up = np.zeros(nodes, dtype=np.int64)  # bytes on the way up
        self.traffic = Traffic(nature, self.queue, nodes) if nature.shared else None
        self.tells = nature.shared or nature.energy is not None  # rows of ends have parts of the time, or joules
        self.started, self.arrived, self.work = (np.zeros(nodes, dtype=np.int64) for _ in range(3))  # only where it tells

    def durations(self, down: int) -> Ints:
        """Ticks of each node's jobs when nothing breaks, slows down or gets lost, and nobody else is on the link; int64 [nodes]."""
        return sum(self._times(np.arange(len(self.job)), down, self.up_bytes, None), start=np.zeros(len(self.job), dtype=np.int64))

    def _times(self, nodes: Ints, down: Ints | int, up: Ints | int, turn: Ints | None) -> Times:
        none = np.zeros(len(nodes), dtype=np.int64)
        steps, samples = (effort[nodes] for effort in self.effort)
        if self.peers:  # what a peer hears is its own; its models travel to and from its neighbours
            work = self.nature.work(nodes, steps, samples, turn)
            out, into = (count[nodes] * self.peer_bytes for count in self.exchanges)
            return Times(none, work, self.nature.exchange(nodes, out, into))
        return self.nature.times(nodes, steps, samples, none + down, none + up, turn)

    def journey(self, nodes: Ints, started: Ints, down: Ints) -> Journey:
        """Of the next job of each node [m], were it sent at `started` with `down` bytes."""
        turn, up = self.turn[nodes] + 1, np.full(len(nodes), self.up_bytes)
        if self.first_bytes != self.up_bytes:
            up[self.links.row[nodes] < 0] = self.first_bytes
        down, up = (self.nature.bytes(nodes, size, turn, way) for size, way in ((down, "down"), (up, "up")))
        times = self._times(nodes, down, up, turn)
        ends = started + times.down + times.work + times.up
        how, point = np.zeros(len(nodes), dtype=np.int8), np.full(len(nodes), np.nan)
        if (fate := self.nature.fate(nodes, turn)) is not None:
            stopped = started + times.down + (times.work * fate.point).astype(np.int64)
            ends, point = np.where(fate.crash, stopped, ends), np.where(fate.crash, fate.point, np.nan)
            lost = fate.lost & (not self.peers)  # what peers lose are the messages between them
            how = np.where(fate.crash, CRASHED, np.where(lost, LOST, WELL)).astype(np.int8)
        if (leave := self.nature.leaves(nodes, started)) is not None:
            how = np.where(leave < ends, GONE, how).astype(np.int8) if self.traffic is None else how
            ends = np.minimum(leave, ends)
        return Journey(times, ends, how, down, up, point, leave)

    def start(self, nodes: Ints, started: Ints, heard: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        """Nodes without a job begin one: what they heard stands in `mail` at `heard`."""
        assert (self.job[nodes] < 0).all(), "one job a node"
        ahead = self.journey(nodes, started, down)
        times, self.fate[nodes], self.up[nodes] = ahead.times, ahead.fate, ahead.up
        jobs = np.arange(self.serial, self.serial + len(nodes))
        self.serial += len(nodes)
        self.count += len(nodes)
        self.turn[nodes] += 1
        self.job[nodes], self.version[nodes], self.round[nodes], self.heard[nodes] = jobs, version, round, heard
        self.chance[nodes] = np.nan if chance is None else chance
        self.reply[nodes] = -1
        parts = {"down": times.down, "work": times.work, "up": times.up}
        if self.tells:
            self.started[nodes], self.arrived[nodes], self.work[nodes] = started, started + times.down, times.work
        if self.traffic is None:
            self.queue.push(ahead.ends, nodes, jobs)
        else:  # the parts stand at the end, when they are known
            assert (started == started[0]).all(), "one beginning at a time on a shared link"
            self.traffic.start(int(started[0]), nodes, jobs, ahead.down, times.work, ahead.up, ahead.point, ahead.leave)
            parts = {}
        columns = {"node": nodes, "job": jobs, "version": version, "bytes_down": ahead.down, "steps": self.steps[nodes], **parts}
        self.ledger.add("dispatch", len(nodes), time=started, **columns)

    def peek(self, count: int, until: int) -> Arrivals:
        """The next ends of jobs up to and including `until`, at most `count`."""
        return self.queue.peek(count, until) if self.traffic is None else self.traffic.peek(count, until)

    def _ended(self, nodes: Ints, time: Ints) -> dict[str, Any]:
        """Columns of the rows of ends, where those tell more than that it is over."""
        if not self.tells:
            return {}
        arrived = self.arrived[nodes] if self.traffic is None else self.traffic.arrived[nodes]
        down = np.minimum(time, arrived) - self.started[nodes]
        work = np.minimum(np.maximum(time - arrived, 0), self.work[nodes])
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
            self._compute(np.concatenate([missing, self._next(-len(missing) % self.worker.chunk, missing)]) if ahead else missing)
        if len(nodes) and self.kept[nodes[0]] >= 0:
            kept = self.after.take(self.kept[nodes])
            self.memory.put(nodes, _part(kept, "memory "))
            self.links.put(nodes, _part(kept, "link "))
            self.after.release(self.kept[nodes])
        news = News(nodes, self.job[nodes], self.version[nodes], self.reply[nodes], self.chance[nodes])
        columns = {"node": nodes, "job": news.job, "version": news.version, "bytes_up": self.up[nodes], **self._ended(nodes, batch.time)}
        self.ledger.add("arrival", len(nodes), time=batch.time, **columns)
        self.job[nodes] = -1
        self.count -= len(nodes)
        return news

    def refill(self, batch: Arrivals, need: int, there: There | None, key: Tensor, down: int) -> tuple[Arrivals, Ints]:
        """The next arrivals before anybody who starts in their places, and who starts at each but the one that makes `need` whole.

        `there` says who is there at a time; None: everybody.
        """
        last = int(np.searchsorted(np.cumsum(self.fate[batch.node] == WELL), need))
        batch = batch.take(slice(0, last + 1))
        nodes = batch.node[:last]
        if there is None and few(1, len(self.job) - self.count + 1, len(self.job)):
            nodes = self._first(nodes, key)
        elif there is not None or self.count < len(self.job):
            nodes = self._lots(batch.take(slice(0, last)), there, key)
        times = batch.time[: len(nodes)]
        ends = self.journey(nodes, times, np.full(len(nodes), down)).ends
        late = np.flatnonzero(batch.time[1 : len(nodes) + 1] >= np.minimum.accumulate(ends)[: len(batch.time) - 1])
        cut = int(late[0]) + 1 if len(late) else (len(nodes) + 1 if len(nodes) < last else len(batch.time))
        return batch.take(slice(0, cut)), nodes[:cut]

    def successor(self, ended: Arrivals, there: There | None, key: Tensor) -> Ints:
        """Who starts in the place of one job that has ended; nobody where nobody can. The same lot as in `refill`."""
        if there is None and few(1, len(self.job) - self.count, len(self.job)):
            return self._first(ended.node, key)
        return self._lots(ended, there, key)

    def _lots(self, returning: Arrivals, there: There | None, key: Tensor) -> Ints:
        """For each returning node, one after the other, who starts in its place; ends early where nobody can."""
        started, free = list[int](), self.job < 0
        keys = fold(key, torch.arange(self.serial, self.serial + len(returning.node)))
        for node, time in zip(returning.node.tolist(), returning.time.tolist(), strict=True):
            free[node] = True
            candidates = np.flatnonzero(free if there is None else free & there(time))
            if not len(candidates):
                break
            started.append(int(candidates[int(below(keys[len(started)], 1, len(candidates)))]))
            free[started[-1]] = False
        return np.array(started, dtype=np.int64)

    def _first(self, returning: Ints, key: Tensor) -> Ints:
        """The same where all are there and many idle: the first idle node of each place's keyed numbers, at no cost over the others."""
        keys = fold(key, torch.arange(self.serial, self.serial + len(returning)))
        drawn, back, started = below(keys, 16, len(self.job)).tolist(), set[int](), dict[int, None]()
        for place, node in enumerate(returning.tolist()):
            back.add(node)
            lots = chain(drawn[place], _further(keys[place], 16, len(self.job)))
            chosen = next(one for one in lots if one not in started and (one in back or self.job[one] < 0))
            started[chosen] = None
        return np.array(list(started), dtype=np.int64)

    def cancel(self, now: int) -> None:
        """Forgets all jobs."""
        if self.traffic is None:
            nodes = self.queue.all().node
        else:
            nodes = np.flatnonzero(self.job >= 0)
            self.traffic.clear()
        self.queue.clear()
        self._drop(nodes, np.full(len(nodes), now), np.zeros(len(nodes), dtype=np.int64))

    def probe(self, received: Rows) -> Rows:
        """What the smallest node's reply to `received` (one row) looks like, computed and forgotten."""
        node = np.array([int(self.worker.task.counts.argmin())])
        one = np.ones(1, dtype=np.int64)
        with self.worker.brief():
            reply = self.worker.compute(Jobs(node, one, one * 0, received, self._fresh(1), None))
        self.worker.steps_done, self.like = 0, parted(reply.parts)[0]
        return reply.parts

    def _next(self, count: int, besides: Ints) -> Ints:
        """Other nodes whose replies are wanted next and not yet computed, at most `count`."""
        if self.traffic is None:
            nodes = self.queue.peek(min(4 * count, len(self.queue))).node
        else:  # when they end is not known yet, but all will
            nodes = np.setdiff1d(np.flatnonzero(self.job >= 0), besides)
            nodes = nodes[np.argsort(self.job[nodes])]
        wanted: Ints = nodes[(self.fate[nodes] == WELL) & (self.reply[nodes] < 0)]
        return wanted[:count]

    def _fresh(self, count: int) -> Rows:
        """Memories of nodes that never worked."""
        task = self.worker.task
        own = {BUFFERS: task.first_buffers.expand(count, -1)} if task.buffers.size and task.keep_buffers == "local" else {}
        return self.worker.strategy.start_local(task.init.expand(count, -1)) | own

    def _fresh_links(self, count: int) -> Rows:
        """Memories of links that never carried anything."""
        return self.worker.strategy.uplink.init({name: rows.expand(count, *rows.shape[1:]) for name, rows in self.like.items()})

    def _compute(self, nodes: Ints) -> None:
        nodes = np.sort(nodes)  # so that a merge of them all, which is in this order, reads the replies where they lie
        heard, memory, links = (
            self.mail.take(self.heard[nodes]),
            self.memory.get(nodes, self._fresh, self.worker.device),
            self.links.get(nodes, self._fresh_links, self.worker.device),
        )
        jobs = Jobs(nodes, self.turn[nodes], self.round[nodes], heard, memory, links)
        replies = self.worker.compute(jobs)
        self.mail.release(self.heard[nodes])
        self.reply[nodes] = self.replies.post(replies.parts, len(nodes))
        kept = {f"memory {name}": rows for name, rows in replies.memory.items()} | {
            f"link {name}": rows for name, rows in replies.link.items()
        }
        if kept:
            self.kept[nodes] = self.after.post(kept, len(nodes))

    def _drop(self, nodes: Ints, time: Ints, up: Ints) -> None:
        """Jobs end without a reply."""
        done = nodes[self.reply[nodes] >= 0]
        if len(done):
            self.replies.release(self.reply[done])
            if self.kept[done[0]] >= 0:
                self.after.release(self.kept[done])
        waiting = nodes[self.reply[nodes] < 0]
        if len(waiting):
            self.mail.release(self.heard[waiting])
        columns = {"node": nodes, "job": self.job[nodes], "version": self.version[nodes], "bytes_up": up, **self._ended(nodes, time)}
        self.ledger.add("drop", len(nodes), time=time, **columns)
        self.ledger.dropped += len(nodes)
        self.job[nodes] = -1
        self.count -= len(nodes)


def _further(key: Tensor, after: int, nodes: int) -> Iterator[int]:
    """The keyed numbers below `nodes` after the first so many, without end."""
    while True:
        yield from below(key, 2 * after, nodes)[after:].tolist()
        after *= 2


def _part(rows: Rows, prefix: str) -> Rows:
    return {name.removeprefix(prefix): tensor for name, tensor in rows.items() if name.startswith(prefix)}
