"""Running statistics of the hearers' models, which travel beside what strategies send and merge; most models have none."""

# h: hearers, m: messages, b: running statistics

from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.keys import fold, permutation
from fedsim.models.pure import call_of, measuring
from fedsim.rows import BUFFERS, Rows
from fedsim.task import Task
from fedsim.topology.mixing import Mixing

BATCHES = 32  # that statistics are taken from anew, at most (Zhu et al. 2026)


class Buffers:
    """[h, b]. What comes back replaces: a server's are the mean of its news by samples, a peer's are its own, mixed as the models are.

    Where nodes keep their own (`task.buffers: local`) none are sent, and the hearers' are only evaluated.
    """

    keeps: ClassVar[tuple[str, ...]] = ("rows",)

    def __init__(self, task: Task, hearers: int, peers: bool) -> None:
        self.task, self.peers, self.any = task, peers, task.buffers.size > 0
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

    def renew(self, models: Tensor, size: int, round: int, key: Tensor) -> None:
        """Each peer takes the statistics of its model [h, d] anew, from at most BATCHES batches of `size` of its own samples, by lot."""
        for node, model in enumerate(models):
            places = permutation(fold(key, node), int(self.task.counts[node]))[: BATCHES * size].to(models.device)
            self.rows[node] = recomputed(self.task, model, self.rows[node], torch.full_like(places, node), places, size, round)

    def mixed(self, mixing: Mixing, at: Tensor) -> None:
        """Those of the peers `at` combine: averages, also where models are only sums on their way (push-sum)."""
        if self.sent:
            self.rows.index_copy_(0, at, mixing.averaging() @ self.rows[at])


@torch.no_grad()
def recomputed(task: Task, model: Tensor, before: Tensor, nodes: Tensor, places: Tensor, size: int, round: int) -> Tensor:
    """Running statistics [b] of a model [d]: the mean of those of batches of `size` of the training samples at these places of nodes [k].

    All other layers are as in evaluation. A layer for which no batch has two values keeps what it had before, [b].
    """
    call, found = call_of(task.model), before
    assert call is not None
    with measuring(task.model):
        for number, (whose, where) in enumerate(zip(torch.split(nodes, size), torch.split(places, size), strict=True), 1):
            weight = torch.ones(len(whose), dtype=model.dtype, device=model.device)
            inputs = task.seen(whose, where[:, None], round).inputs[:, 0]
            with call.training(weight, None, share=1 / number) as new:
                functional_call(task.model, task.layout.views(model) | task.buffers.views(found), (inputs,))
            found = task.buffers.join(task.buffers.views(found) | new)
    return found
