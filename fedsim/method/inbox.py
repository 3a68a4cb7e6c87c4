"""Messages as strategies read them, and the state that they change."""

# h: hearers, m: messages (one row each), n: nodes

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.rows import Layout, Rows
from fedsim.task.task import Task

Weights = Literal["samples", "uniform"]
State = dict[str, Any]  # of the hearers: Rows, and for a server (`one_hearer`) also a `store.Table` with a row a node


@dataclass(frozen=True)
class Inbox:
    """News for hearers, one row a message. What is kept of a row must be a copy: rows may be views.

    weight [m] is the sender's share of all data, hearer [m] (None: all to the one hearer) who gets it, age [m] the merges that
    the sender missed since it was sent its model. `chances` and `nodes` (the senders) lie on the host. `round` counts the merges before
    this one; `keys` makes `shared`. `task` has what a server knows too: its public
    samples, and the models' code. Averages that keep some messages alone tell `chose` which, int64 [k]; it is there where some lie.
    """

    parts: Rows
    weight: Tensor
    sender: Tensor
    age: Tensor
    layout: Layout
    hearers: int = 1
    hearer: Tensor | None = None
    chances: Tensor | None = None
    frequencies: Callable[[], Tensor] | None = None
    round: int = 0
    task: Task | None = None
    nodes: Ints | None = None
    keys: Callable[[], Tensor] | None = None
    chose: Callable[[Tensor], None] | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    @property
    def chance(self) -> Tensor:
        """[m]: probability that the sender was asked. Raises ValueError where nobody sampled, or lateness or faults change the odds."""
        if self.chances is None:
            need = "`rounds` with a `sampling`, without wait_for or deadline, in a world without faults"
            raise ValueError(f"messages have no known probability here; they have in {need}")
        if not bool((self.chances > 0).all()):
            raise ValueError("a message came from a node whose chance of being asked is 0")
        return sent(self.chances, self.weight.device)

    @property
    def frequency(self) -> Tensor:
        """[m]: how often the sender takes part, times a merge. Raises ValueError where the schedule can't know."""
        if self.frequencies is None:
            raise ValueError("no schedule says how often nodes take part")
        return self.frequencies()[self.sender]

    @property
    def shared(self) -> Tensor:
        """int64 [m]: the keys that the jobs knew as `Local.shared`."""
        return torch.zeros(1, dtype=torch.int64) if self.keys is None else self.keys()

    @property
    def reached(self) -> Tensor:
        """bool [h, 1]: the hearers with a message."""
        found = torch.zeros(self.hearers, 1, dtype=torch.bool, device=self.sender.device)
        found[slice(None) if self.hearer is None else self.hearer] = True
        return found

    @property
    def count(self) -> float:
        """Messages merged; where they are private, those expected."""
        return len(self.sender)

    @property
    def senders(self) -> Ints:
        """int64 [m]: the same as `sender`, on the host."""
        return self.sender.cpu().numpy() if self.nodes is None else self.nodes

    @property
    def as_one(self) -> "Inbox":
        """The same messages, as if all were for one hearer."""
        return self if self.hearer is None else replace(self, hearer=None, hearers=1)

    def sum(self, name: str, weight: Tensor | None = None) -> Tensor:
        """[h, ...]: sum of weight x part over the messages of each hearer."""
        rows, weight = self.parts[name], self.weight if weight is None else weight
        weight, flat = weight.to(rows.dtype), rows if rows.dim() == 2 else rows[:, None].flatten(1)
        if self.hearer is None:
            return (weight @ flat).view(1, *rows.shape[1:])
        if not rows.is_floating_point():  # which the fast call does not take
            out = flat.new_zeros(self.hearers, flat.shape[1]).index_add_(0, self.hearer, flat * weight[:, None])
            return out.view(-1, *rows.shape[1:])
        order, counts = self.hearer.argsort(stable=True), self.hearer.new_zeros(self.hearers)
        counts.index_add_(0, self.hearer, torch.ones_like(self.hearer))
        bags = counts.cumsum(0) - counts  # where those of each hearer begin
        out = embedding_bag(order, flat, bags, mode="sum", per_sample_weights=weight[order])
        return out.view(-1, *rows.shape[1:])

    def mean(self, name: str, weights: Weights = "samples", factor: Tensor | None = None) -> Tensor:
        """[h, ...]: mean over the messages of each hearer, by samples or uniform; 0 for a hearer without messages.

        `factor` [m], each from 0 to 1, discounts messages after weights that sum to 1.
        """
        weight = self.weight if weights == "samples" else torch.ones_like(self.weight)
        if self.hearer is None:
            weight = weight / weight.sum()
        else:
            weight = weight / weight.new_zeros(self.hearers).index_add_(0, self.hearer, weight)[self.hearer]
        return self.sum(name, weight if factor is None else weight * factor)
