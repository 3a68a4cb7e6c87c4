"""Jobs in flight: who works on what since when, when replies come, and computing them late and together."""

from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.clock import Arrivals, EventQueue, Ints
from fedsim.engines.local import Jobs, Worker
from fedsim.keys import below, fold
from fedsim.ledger import Ledger
from fedsim.rows import Rows
from fedsim.store import Blocks, Memories
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
WELL, CRASHED, LOST = 0, 1, 2


class Journey(NamedTuple):
    """What lies before jobs: parts of their time, when they come back (ticks), and how (WELL, CRASHED or LOST)."""

    times: Times
    ends: Ints
    fate: NDArray[np.int8]


class Flight:
    """Arrays over nodes describe the one job that a node may have. Memories are written at arrival: what never arrives changes nothing."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("queue", "mail", "replies", "after", "memory", "links", "serial", "count", "turn"),
        *("job", "version", "round", "heard", "reply", "kept", "chance", "fate"),
    )

    def __init__(self, worker: Worker, nature: Nature, ledger: Ledger, degree: int, peers: bool) -> None:
        self.worker, self.nature, self.ledger, self.degree, self.peers = worker, nature, ledger, degree, peers
        train, counts, nodes = worker.strategy.train, worker.task.counts.cpu(), worker.task.nodes
        self.steps = train.plan(counts, train.batch_size(worker.task))[0].numpy()
        self.samples = train.samples(counts, train.batch_size(worker.task)).numpy()
        self.up_bytes = self.peer_bytes = 0
        self.queue = EventQueue()
        self.mail, self.replies, self.after = Blocks(), Blocks(), Blocks()
        self.memory, self.links = Memories(nodes), Memories(nodes)
        self.like: Rows = {}  # one reply, for its shapes
        self.serial = self.count = 0
        self.turn = np.zeros(nodes, dtype=np.int64)
        self.job, self.version, self.round, self.heard, self.reply, self.kept = (np.full(nodes, -1, dtype=np.int64) for _ in range(6))
        self.chance = np.full(nodes, np.nan)
        self.fate = np.zeros(nodes, dtype=np.int8)

    def journey(self, nodes: Ints, started: Ints, down: Ints) -> Journey:
        """Of the next job of each node [m], were it sent at `started` with `down` bytes."""
        none = np.zeros(len(nodes), dtype=np.int64)
        if self.peers:  # what a peer hears is its own; its models travel to and from its neighbours
            work = self.nature.work(nodes, self.steps[nodes], self.samples[nodes])
            times = Times(none, work, self.nature.exchange(nodes, none + self.degree * self.peer_bytes))
        else:
            times = self.nature.times(nodes, self.steps[nodes], self.samples[nodes], down, none + self.up_bytes)
        ends = started + times.down + times.work + times.up
        fate = self.nature.fate(nodes, self.turn[nodes] + 1)
        if fate is None:
            return Journey(times, ends, none.astype(np.int8))
        stopped = started + times.down + (times.work * fate.point).astype(np.int64)
        return Journey(
            times, np.where(fate.crash, stopped, ends), np.where(fate.crash, CRASHED, np.where(fate.lost, LOST, WELL)).astype(np.int8)
        )

    def start(self, nodes: Ints, started: Ints, heard: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        """Nodes without a job begin one: what they heard stands in `mail` at `heard`."""
        assert (self.job[nodes] < 0).all(), "one job a node"
        times, ends, self.fate[nodes] = self.journey(nodes, started, down)
        jobs = np.arange(self.serial, self.serial + len(nodes))
        self.serial += len(nodes)
        self.count += len(nodes)
        self.turn[nodes] += 1
        self.job[nodes], self.version[nodes], self.round[nodes], self.heard[nodes] = jobs, version, round, heard
        self.chance[nodes] = np.nan if chance is None else chance
        self.reply[nodes] = -1
        self.queue.push(ends, nodes, jobs)
        parts = {"down": times.down, "work": times.work, "up": times.up, "steps": self.steps[nodes]}
        self.ledger.add("dispatch", len(nodes), time=started, node=nodes, job=jobs, version=version, bytes_down=down, **parts)

    def land(self, batch: Arrivals, ahead: bool) -> News:
        """The next jobs of the queue come back: whole ones are computed, with those that arrive after them if `ahead`, and become news."""
        self.queue.drop(len(batch.time))
        well = self.fate[batch.node] == WELL
        if not well.all():
            broken = batch.take(~well)
            self._drop(broken.node, broken.time, np.where(self.fate[broken.node] == LOST, self.up_bytes, 0))
            batch = batch.take(well)
        nodes = batch.node
        missing = nodes[self.reply[nodes] < 0]
        if len(missing):
            self._compute(np.concatenate([missing, self._next(-len(missing) % self.worker.chunk)]) if ahead else missing)
        if len(nodes) and self.kept[nodes[0]] >= 0:
            kept = self.after.take(self.kept[nodes])
            self.memory.put(nodes, _part(kept, "memory "))
            self.links.put(nodes, _part(kept, "link "))
            self.after.release(self.kept[nodes])
        news = News(nodes, self.job[nodes], self.version[nodes], self.reply[nodes], self.chance[nodes])
        self.ledger.add("arrival", len(nodes), time=batch.time, node=nodes, job=news.job, version=news.version, bytes_up=self.up_bytes)
        self.job[nodes] = -1
        self.count -= len(nodes)
        return news

    def refill(self, batch: Arrivals, need: int, present: NDArray[np.bool_], key: Tensor, down: int) -> tuple[Arrivals, Ints]:
        """The next arrivals before anybody who starts in their places, and who starts at each but the one that makes `need` whole."""
        last = int(np.searchsorted(np.cumsum(self.fate[batch.node] == WELL), need))
        batch = batch.take(slice(0, last + 1))
        nodes, free = batch.node[:last], (self.job < 0) & present
        if free.any() or not present.all():
            nodes = self._lots(nodes, free, present, key)
        times = batch.time[: len(nodes)]
        ends = self.journey(nodes, times, np.full(len(nodes), down)).ends
        late = np.flatnonzero(batch.time[1 : len(nodes) + 1] >= np.minimum.accumulate(ends)[: len(batch.time) - 1])
        cut = int(late[0]) + 1 if len(late) else (len(nodes) + 1 if len(nodes) < last else len(batch.time))
        return batch.take(slice(0, cut)), nodes[:cut]

    def _lots(self, returning: Ints, free: NDArray[np.bool_], present: NDArray[np.bool_], key: Tensor) -> Ints:
        """For each returning node, one after the other, who starts in its place; ends early where nobody can."""
        started: list[int] = []
        for node in returning.tolist():
            free[node] = present[node]
            candidates = np.flatnonzero(free)
            if not len(candidates):
                break
            lot = below(fold(key, self.serial + len(started)), 1, len(candidates))
            started.append(int(candidates[int(lot[0])]))
            free[started[-1]] = False
        return np.array(started, dtype=np.int64)

    def cancel(self, now: int) -> None:
        """Forgets all jobs."""
        nodes = self.queue.all().node
        self.queue = EventQueue()
        self._drop(nodes, np.full(len(nodes), now), np.zeros(len(nodes), dtype=np.int64))

    def probe(self, received: Rows) -> Rows:
        """What the smallest node's reply to `received` (one row) looks like, computed and forgotten."""
        node = np.array([int(self.worker.task.counts.argmin())])
        one = np.ones(1, dtype=np.int64)
        reply = self.worker.compute(Jobs(node, one, one * 0, received, self._fresh(1), None))
        self.worker.steps_done, self.like = 0, reply.parts
        return reply.parts

    def _next(self, count: int) -> Ints:
        """Nodes whose replies are wanted next and not yet computed, at most `count`."""
        nodes = self.queue.peek(min(4 * count, len(self.queue))).node
        wanted: Ints = nodes[(self.fate[nodes] == WELL) & (self.reply[nodes] < 0)]
        return wanted[:count]

    def _fresh(self, count: int) -> Rows:
        """Memories of nodes that never worked."""
        return self.worker.strategy.start_local(self.worker.task.init.expand(count, -1))

    def _fresh_links(self, count: int) -> Rows:
        """Memories of links that never carried anything."""
        return self.worker.strategy.uplink.init({name: rows.expand(count, *rows.shape[1:]) for name, rows in self.like.items()})

    def _compute(self, nodes: Ints) -> None:
        heard, memory, links = (
            self.mail.take(self.heard[nodes]),
            self.memory.get(nodes, self._fresh),
            self.links.get(nodes, self._fresh_links),
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
        self.ledger.add("drop", len(nodes), time=time, node=nodes, job=self.job[nodes], version=self.version[nodes], bytes_up=up)
        self.ledger.dropped += len(nodes)
        self.job[nodes] = -1
        self.count -= len(nodes)


def _part(rows: Rows, prefix: str) -> Rows:
    return {name.removeprefix(prefix): tensor for name, tensor in rows.items() if name.startswith(prefix)}
