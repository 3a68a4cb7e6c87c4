"""What nodes remember from job to job, beside who computes their jobs: after their last arrival, and after replies on their way."""

from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.rows import BUFFERS, Rows
from fedsim.base.store import LARGE, Blocks, Memories
from fedsim.engines.jobs import Jobs
from fedsim.engines.local import Worker
from fedsim.method.moments import keeping


class Recall:
    """Memories of nodes and of their links up. What a job leaves is kept apart until it is known whether its reply arrives."""

    keeps: ClassVar[tuple[str, ...]] = ("after", "memory", "links", "kept")

    def __init__(self, worker: Worker, large: int = LARGE) -> None:
        """Tables of more than `large` bytes lie in files."""
        self.worker, nodes = worker, worker.task.nodes
        self.after = Blocks(worker.memory)
        self.memory, self.links = Memories(nodes, large), Memories(nodes, large)
        self.like: Rows = {}  # one reply's shapes and types, all zeros
        self.kept = np.full(nodes, -1, dtype=np.int64)

    def worked(self, nodes: Ints, turn: Ints, round: Ints, heard: Rows, row: Tensor | None = None) -> Rows:
        """What the jobs of nodes [m] send, having heard `heard` [m, ...], or row `row` [m] of it; what their nodes remember after waits."""
        memory, known = self.memory.lend(nodes, self.fresh, self.worker.device)
        links, linked = self.links.lend(nodes, self.fresh_links, self.worker.device)
        replies = self.worker.compute(Jobs(nodes, turn, round, heard, memory, links, row, known, linked))
        self.wait(nodes, together(replies.memory, replies.link))
        return replies.parts

    def wait(self, nodes: Ints, after: Rows) -> None:
        """Rows [m, ...], as `together` names them, are what nodes come to remember."""
        if after:
            self.kept[nodes] = self.after.post(after, len(nodes))

    def outstanding(self, nodes: Ints) -> Rows:
        """What the nodes [m] of replies on their way come to remember; nothing where methods have no memory."""
        return self.after.take(self.kept[nodes]) if len(nodes) and self.kept[nodes[0]] >= 0 else {}

    def commit(self, nodes: Ints) -> None:
        """Replies have arrived: what their nodes remember is theirs from now on."""
        if kept := self.outstanding(nodes):
            self.write(nodes, kept)
            self.drop(nodes)

    def drop(self, nodes: Ints) -> None:
        """Replies never arrive, or have: what waited for them goes."""
        if len(nodes) and self.kept[nodes[0]] >= 0:
            self.after.release(self.kept[nodes])

    def read(self, nodes: Ints) -> Rows:
        """What nodes [m] remember, of those that do."""
        return together(self.memory.get(nodes, self.fresh), self.links.get(nodes, self.fresh_links))

    def write(self, nodes: Ints, rows: Rows) -> None:
        """Nodes [m] remember this from now on."""
        memory, links = apart(rows)
        self.memory.put(nodes, memory)
        self.links.put(nodes, links)

    def fresh(self, nodes: Ints) -> Rows:
        """Memories of nodes [k] that never worked."""
        task, strategy = self.worker.task, self.worker.strategy
        own = {BUFFERS: task.first_buffers.expand(len(nodes), -1)} if task.buffers.size and task.keep_buffers == "local" else {}
        first = task.first_of(nodes)
        if strategy.train.keeps:
            moments = keeping(strategy.train.moments(task.init[None], task.layout), strategy.train.eight)
            own |= {name: rows.expand(len(nodes), -1) for name, rows in moments.items()}
        return strategy.remembered(first, task) | own

    def fresh_links(self, nodes: Ints) -> Rows:
        """Memories of nodes' links [k] that never carried anything."""
        return self.worker.strategy.uplink.init({name: rows.expand(len(nodes), *rows.shape[1:]) for name, rows in self.like.items()})


def together(memory: Rows, links: Rows) -> Rows:
    """Both under names of their own."""
    return {f"memory {name}": rows for name, rows in memory.items()} | {f"link {name}": rows for name, rows in links.items()}


def apart(rows: Rows) -> tuple[Rows, Rows]:
    """What `together` brought together."""
    memory, links = (
        {name.removeprefix(prefix): part for name, part in rows.items() if name.startswith(prefix)} for prefix in ("memory ", "link ")
    )
    return memory, links
