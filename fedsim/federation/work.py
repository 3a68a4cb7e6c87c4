"""Jobs that nodes have: what they heard, their replies, and what nodes remember; whoever says when they come back."""

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Arrivals, Ints
from fedsim.base.keys import fold
from fedsim.base.rows import Rows, parted
from fedsim.base.store import Blocks
from fedsim.engines.jobs import Jobs
from fedsim.engines.local import Worker
from fedsim.engines.recall import Recall, together
from fedsim.federation.field import Size, There, each_of
from fedsim.federation.places import first, lots
from fedsim.metrics.told import Question
from fedsim.schedule.news import News
from fedsim.schedule.sampling import few
from fedsim.settings.values import Floats


class Work(Recall):
    """Arrays over nodes describe the one job that a node may have. Memories are written at arrival: what never arrives changes nothing."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("mail", "replies", "after", "memory", "links", "serial", "count", "turn"),
        *("job", "version", "round", "heard", "reply", "kept", "chance"),
    )

    def __init__(self, worker: Worker) -> None:
        super().__init__(worker)
        train, counts, nodes = worker.strategy.train, torch.from_numpy(worker.task.sizes), worker.task.nodes
        self.steps = worker.steps()
        samples = train.samples(counts, train.batch_size(worker.task)).numpy()
        self.effort = self.steps * worker.strategy.gradients, samples * worker.strategy.gradients  # what a job's time follows
        self.up_bytes: Size = 0
        self.first_bytes: Size = 0  # of nodes from which nothing has arrived
        self.peer_bytes = 0
        self.exchanges = np.zeros(nodes, dtype=np.int64), np.zeros(nodes, dtype=np.int64)  # models a peer sends and hears around a job
        self.mail, self.replies = Blocks(worker.memory), Blocks(worker.memory)
        self.serial = self.count = self.remembers = 0  # bytes that a node has from job to job
        self.turn = np.zeros(nodes, dtype=np.int64)
        self.job, self.version, self.round, self.heard, self.reply = (np.full(nodes, -1, dtype=np.int64) for _ in range(5))
        self.chance = np.full(nodes, np.nan)

    def begin(self, nodes: Ints, heard: Rows, row: Ints, version: int, round: int, chance: Floats | None) -> Ints:
        """Nodes [k] without a job have one, having heard row `row` [k] of what `heard` has; its numbers, int64 [k]."""
        assert (self.job[nodes] < 0).all(), "one job a node"
        slots = self.mail.post(heard, len(nodes), row)
        jobs = np.arange(self.serial, self.serial + len(nodes))
        self.serial += len(nodes)
        self.count += len(nodes)
        self.turn[nodes] += 1
        self.job[nodes], self.version[nodes], self.round[nodes], self.heard[nodes] = jobs, version, round, slots
        assert (self.job[nodes] == jobs).all(), "one job a node, and one of these nodes is named twice"
        self.chance[nodes] = np.nan if chance is None else chance
        self.reply[nodes] = -1
        return jobs

    def starters(self, returning: Arrivals, there: There | None, key: Tensor) -> Ints:
        """Who starts in the places of jobs that come back next, one after the other; ends early where nobody can."""
        idle = len(self.job) - self.count + 1
        if there is None and idle == 1:  # all are at work: each starts again
            return returning.node
        return self._drawn(returning, there, key, idle)

    def successor(self, ended: Arrivals, there: There | None, key: Tensor) -> Ints:
        """Who starts in the place of one job that has ended; nobody where nobody can. The same lot as in `starters`."""
        return self._drawn(ended, there, key, len(self.job) - self.count)

    def _drawn(self, returning: Arrivals, there: There | None, key: Tensor, idle: int) -> Ints:
        keys = fold(key, torch.arange(self.serial, self.serial + len(returning.node)))
        if there is None and few(1, idle, len(self.job)):
            return first(self.job, returning.node, keys)
        return lots(self.job, returning, there, keys)

    def upward(self, nodes: Ints) -> Ints:
        """Bytes of each node's next reply, int64 [m]."""
        up = each_of(self.up_bytes, nodes)
        if isinstance(self.first_bytes, int) and self.first_bytes == self.up_bytes:
            return up
        return np.where(self.linked(nodes), up, each_of(self.first_bytes, nodes))

    def linked(self, nodes: Ints) -> NDArray[np.bool_]:
        """Whether each node's link has a memory, bool [m]."""
        return self.links.row[nodes] >= 0

    def home(self, nodes: Ints) -> News:
        """Jobs that are computed have come back: what their nodes remember is theirs from now on."""
        self.commit(nodes)
        news = News(nodes, self.job[nodes], self.version[nodes], self.reply[nodes], self.chance[nodes])
        self.job[nodes] = -1
        self.count -= len(nodes)
        return news

    def forget(self, nodes: Ints) -> None:
        """Jobs end without a reply."""
        done = nodes[self.reply[nodes] >= 0]
        if len(done):
            self.replies.release(self.reply[done])
            self.drop(done)
        waiting = nodes[self.reply[nodes] < 0]
        if len(waiting):
            self.mail.release(self.heard[waiting])
        self.job[nodes] = -1
        self.count -= len(nodes)

    def taken(self, slots: Ints) -> Rows:
        """The replies of news [m]: parts [m, ...], perhaps views."""
        return self.replies.take(slots)

    def free(self, slots: Ints) -> None:
        """Replies of news that are not needed any more."""
        self.replies.release(slots)

    def post(self, parts: Rows, count: int) -> Ints:
        """Replies that came another way than through a job; their slots."""
        return self.replies.post(parts, count)

    def remembered(self, nodes: Ints) -> Rows | None:
        """What nodes [k] remember, with their own running statistics."""
        return self.memory.get(nodes, self.fresh, self.worker.device)

    def judged(self, question: Question) -> dict[str, Tensor]:
        """Nothing: all of it lies here."""
        return {}

    def saved(self) -> None:
        """A checkpoint is on the disk; nothing else is kept there."""

    def probe(self, received: Rows, among: Ints | None = None) -> Rows:
        """What the reply to `received` (one row) of the smallest node (among these) looks like, computed and forgotten."""
        sizes = self.worker.task.sizes
        node = np.array([int(sizes.argmin())]) if among is None else among[[sizes[among].argmin()]]
        one = np.ones(1, dtype=np.int64)
        with self.worker.brief():
            reply = self.worker.compute(Jobs(node, one, one * 0, received, self.fresh(node), None))
        self.worker.steps_done = 0
        self.like = {name: rows.new_zeros(1).expand(rows.shape) for name, rows in parted(reply.parts)[0].items()}
        self.remembers = sum(rows.nbytes for rows in together(reply.memory, reply.link).values())
        return reply.parts

    def compute(self, nodes: Ints, first: int | None = None, then: int = 1) -> None:
        """The replies of nodes' jobs, all together. The first so many (None: all) may be merged together, and `then` so many after each.

        What is merged together lies together, in the order of its nodes, so that the merge reads the replies where they lie.
        """
        group = np.arange(len(nodes)) - (len(nodes) if first is None else first)
        nodes = nodes[np.lexsort((nodes, np.maximum(group // then, -1)))]
        parts = self.answers(nodes)
        self.mail.release(self.heard[nodes])
        self.reply[nodes] = self.replies.post(parts, len(nodes))

    def answers(self, nodes: Ints) -> Rows:
        """What nodes [m], rising, send."""
        return self.worked(nodes, self.turn[nodes], self.round[nodes], *self.mail.lend(self.heard[nodes]))
