"""The simulated field: jobs in flight, on a virtual clock, computed late and together."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Arrivals, EventQueue, Ints
from fedsim.base.keys import fold
from fedsim.base.rows import BUFFERS, Rows, parted
from fedsim.base.store import Blocks, Memories
from fedsim.engines.jobs import Jobs
from fedsim.engines.local import Worker
from fedsim.federation.field import There
from fedsim.federation.journey import GONE, LOST, WELL, Journey, journey
from fedsim.federation.ledger import Ledger
from fedsim.federation.places import first, lots
from fedsim.federation.traffic import Traffic
from fedsim.schedule.news import News
from fedsim.schedule.sampling import few
from fedsim.settings.values import Floats
from fedsim.world import Nature, Times


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
        """Ticks of each node's jobs when nothing goes wrong and nobody else is on the link; int64 [nodes]."""
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
        return journey(self.nature, nodes, turn, started, self._times(nodes, down, up, turn), (down, up), self.peers)

    def start(self, nodes: Ints, at: Ints, heard: Rows, row: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        """Nodes [k] without a job begin one at times [k], having heard row `row` [k] of what `heard` has, in `down` [k] bytes."""
        assert (self.job[nodes] < 0).all(), "one job a node"
        ahead, slots = self.journey(nodes, at, down), self.mail.post(heard, len(nodes), row)
        times, self.fate[nodes], self.up[nodes] = ahead.times, ahead.fate, ahead.up
        jobs = np.arange(self.serial, self.serial + len(nodes))
        self.serial += len(nodes)
        self.count += len(nodes)
        self.turn[nodes] += 1
        self.job[nodes], self.version[nodes], self.round[nodes], self.heard[nodes] = jobs, version, round, slots
        assert (self.job[nodes] == jobs).all(), "one job a node, and one of these nodes is named twice"
        self.chance[nodes] = np.nan if chance is None else chance
        self.reply[nodes] = -1
        parts = {"down": times.down, "work": times.work, "up": times.up}
        if self.tells:
            self.started[nodes], self.arrived[nodes], self.work[nodes] = at, at + times.down, times.work
        if self.traffic is None:
            self.queue.push(ahead.ends, nodes, jobs)
        else:  # the parts stand at the end, when they are known
            assert (at == at[0]).all(), "one beginning at a time on a shared link"
            self.traffic.start(int(at[0]), nodes, jobs, ahead.down, times.work, ahead.up, ahead.point, ahead.leave)
            parts = {}
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
            nodes = first(self.job, nodes, self._lots(len(nodes), key))
        elif there is not None or self.count < len(self.job):
            nodes = lots(self.job, batch.take(slice(0, last)), there, self._lots(last, key))
        times = batch.time[: len(nodes)]
        ends = self.journey(nodes, times, np.full(len(nodes), down)).ends
        late = np.flatnonzero(batch.time[1 : len(nodes) + 1] >= np.minimum.accumulate(ends)[: len(batch.time) - 1])
        cut = int(late[0]) + 1 if len(late) else (len(nodes) + 1 if len(nodes) < last else len(batch.time))
        return batch.take(slice(0, cut)), nodes[:cut]

    def successor(self, ended: Arrivals, there: There | None, key: Tensor) -> Ints:
        """Who starts in the place of one job that has ended; nobody where nobody can. The same lot as in `refill`."""
        if there is None and few(1, len(self.job) - self.count, len(self.job)):
            return first(self.job, ended.node, self._lots(1, key))
        return lots(self.job, ended, there, self._lots(1, key))

    def _lots(self, count: int, key: Tensor) -> Tensor:
        """Keys of the lots of the next places, int64 [count]."""
        return fold(key, torch.arange(self.serial, self.serial + count))

    def taken(self, slots: Ints) -> Rows:
        """The replies of news [m]: parts [m, ...], perhaps views."""
        return self.replies.take(slots)

    def free(self, slots: Ints) -> None:
        """Replies of news that are not needed any more."""
        self.replies.release(slots)

    def post(self, parts: Rows, count: int) -> Ints:
        """Replies that came another way than through a job; their slots."""
        return self.replies.post(parts, count)

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


def _part(rows: Rows, prefix: str) -> Rows:
    return {name.removeprefix(prefix): tensor for name, tensor in rows.items() if name.startswith(prefix)}
