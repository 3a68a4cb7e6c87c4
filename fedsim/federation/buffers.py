"""Running statistics of the hearers' models, which travel beside what strategies send and merge; most models have none."""

# h: hearers, m: messages, b: running statistics

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.devices import sent
from fedsim.base.keys import fold, permutation
from fedsim.base.rows import BUFFERS, Rows
from fedsim.codecs import row_bytes
from fedsim.federation.federation import Federation
from fedsim.method.companion import Companion, Merged
from fedsim.task.statistics import BATCHES, recomputed
from fedsim.task.task import Task
from fedsim.topology.mixing import Mixing


class Buffers(Companion):
    """[h, b]. What comes back replaces: a server's are the mean of its news by samples, a peer's are its own, mixed as the models are.

    Where nodes keep their own (`task.buffers: local`) none are sent, and the hearers' are only evaluated.
    """

    keeps: ClassVar[tuple[str, ...]] = ("rows",)

    def __init__(self, task: Task, hearers: int, peers: bool, size: int, seed: int) -> None:
        """`size`: of the batches from which statistics are taken anew."""
        self.task, self.peers, self.size, self.sent, self.key = task, peers, size, task.sends_buffers, fold(seed, "statistics")
        self.rows = task.first_buffers.expand(hearers, -1).clone()

    def told(self, parts: Rows, nodes: Tensor, rows: int) -> Rows:
        """With their own statistics of peers, else the server's."""
        return parts | {BUFFERS: self.rows[nodes] if self.peers else self.rows.expand(rows, -1)} if self.sent else parts

    def arrived(self, nodes: Tensor, parts: Callable[[], Rows]) -> None:
        """Peers' own statistics are there as soon as their jobs are done, so that a mix before the merge has them too."""
        if self.peers:
            self.rows.index_copy_(0, nodes, parts()[BUFFERS])

    def merged(self, merged: Merged) -> None:
        if not self.peers and len(merged.news.node):
            found = merged.parts[BUFFERS]
            weight = self.task.share[sent(merged.news.node, found.device)]
            self.rows = ((weight / weight.sum()).to(found) @ found)[None]

    def renewed(self, models: Tensor, round: int, version: int) -> int:
        for node, model in enumerate(models):
            self.anew(node, model, round, version)
        return row_bytes({BUFFERS: self.rows}) if self.sent else 0

    def anew(self, node: int, model: Tensor, round: int, version: int) -> None:
        """A peer takes the statistics of its model [d] anew, from at most BATCHES batches of its own samples, by lot."""
        places = permutation(fold(self.key, version, node), int(self.task.sizes[node]))[: BATCHES * self.size]
        places = sent(places, model.device)
        self.rows[node] = recomputed(self.task, model, self.rows[node], torch.full_like(places, node), places, self.size, round)

    def mixed(self, mixing: Mixing, at: Tensor) -> None:
        """Those of the peers `at` combine: averages, also where models are only sums on their way (push-sum)."""
        if self.sent:
            self.rows.index_copy_(0, at, mixing.averaging() @ self.rows[at])


def statistics_of(fed: Federation) -> Tensor:
    """[h, b]: running statistics of the hearers' models."""
    found = fed.companion(Buffers)
    return found.rows if found else fed.task.first_buffers.expand(fed.hearers, -1)
