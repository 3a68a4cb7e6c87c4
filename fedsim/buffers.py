"""Running statistics of the hearers' models, which travel beside what strategies send and merge; most models have none."""

# h: hearers, m: messages, b: running statistics

from typing import ClassVar

from torch import Tensor

from fedsim.rows import BUFFERS, Rows
from fedsim.task import Task
from fedsim.topology.mixing import Mixing


class Buffers:
    """[h, b]. What comes back replaces: a server's are the mean of its news by samples, a peer's are its own, mixed as the models are.

    Where nodes keep their own (`task.buffers: local`) none are sent, and the hearers' are only evaluated.
    """

    keeps: ClassVar[tuple[str, ...]] = ("rows",)

    def __init__(self, task: Task, hearers: int, peers: bool) -> None:
        self.peers, self.any = peers, task.buffers.size > 0
        self.sent = self.any and task.keep_buffers == "average"
        self.rows = task.first_buffers.expand(hearers, -1).clone()

    def told(self, nodes: Tensor, count: int) -> Rows:
        """What nodes hear beside the model: their own rows of peers, else `count` times the server's."""
        if not self.sent:
            return {}
        return {BUFFERS: self.rows[nodes] if self.peers else self.rows.expand(count, -1)}

    def billed(self, parts: Rows) -> Rows:
        """Of what nodes reply [m], what is sent."""
        return parts if self.sent else {name: rows for name, rows in parts.items() if name != BUFFERS}

    def arrived(self, nodes: Tensor, parts: Rows) -> None:
        """Peers' own statistics are there as soon as their jobs are done, so that a mix before the merge has them too."""
        if self.any and self.peers:
            self.rows.index_copy_(0, nodes, parts[BUFFERS])

    def merged(self, weight: Tensor, parts: Rows) -> None:
        """A server takes in replies; weight [m] is the senders' share of the samples."""
        if self.any and not self.peers:
            self.rows = ((weight / weight.sum()).to(parts[BUFFERS]) @ parts[BUFFERS])[None]

    def mixed(self, mixing: Mixing, at: Tensor) -> None:
        """Those of the peers `at` combine: averages, also where models are only sums on their way (push-sum)."""
        if self.sent:
            self.rows.index_copy_(0, at, mixing.averaging() @ self.rows[at])
