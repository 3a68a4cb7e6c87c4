"""FedRep: Collins, Hassani, Mokhtari, Shakkottai 2021, "Exploiting Shared Representations for Personalized Federated Learning",
https://arxiv.org/abs/2102.07078, Algorithm 1: a client first fits its head to the shared representation, then moves the representation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Local, setting
from fedsim.settings.values import Share
from strategies.fedper import FedPer


@dataclass(frozen=True)
class FedRep(FedPer):
    """As FedPer, but never both at once: of a job's steps the first `head` move the head alone, the others the base alone.

    With head 0 the base is trained under heads that stay as they began. The authors' code has 10 epochs of the head and 1 of the base.
    """

    name: ClassVar[str] = "fedrep"
    source: ClassVar[str] = "Collins et al. 2021"

    head: Share = setting(10 / 11, "share of a job's steps that move the head (tau), rounded down; the others move the base", ge=0, le=1)

    def trained_locally(self, start: Tensor, local: Local, b: int) -> Tensor:
        x, first = start.clone(), (local.steps * self.head).long()[:, None]
        own = torch.arange(x.shape[1], device=x.device) >= b
        for batch, y in local.batches(x):
            moves = own == (batch.number < first[: len(y)])
            before = y.clone()
            local.step(y, batch.gradient(y) * moves)
            torch.where(moves, y, before, out=y)  # momentum and weight decay too move the part whose turn it is
        return x
