"""FedAdagrad: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, "Adaptive Federated Optimization",
https://arxiv.org/abs/2003.00295, Algorithm 2: the server takes an adaptive step along the mean update."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedAdagrad(FedAvg):
    """m <- momentum x m + (1 - momentum) x D; v <- v + D^2; x <- x + server_lr x m / (sqrt(v) + tau), where D is the mean update.

    m begins at 0, v at `first_square`, and neither is corrected for that.
    """

    name: ClassVar[str] = "fedadagrad"
    source: ClassVar[str] = "Reddi et al. 2021"

    server_lr: float = setting(0.03, "about how far a step moves each parameter (eta)", gt=0)
    momentum: float = setting(0.9, "decay of the mean of updates (beta_1)", ge=0, lt=1)
    tau: float = setting(1e-3, "added to the root of v: the larger, the less adaptive", gt=0, le=1e15)
    first_square: float | None = setting(None, "where the second moment begins (v_0); by default tau^2", ge=0)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """The second moment of after an update whose square is D^2; all [h, d]."""
        return v + square

    def start(self, x: Tensor, task: Task) -> Rows:
        first = self.tau**2 if self.first_square is None else self.first_square
        return {"model": x, "m": torch.zeros_like(x), "v": torch.full_like(x, first)}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        update = self.mean(inbox)
        m = self.momentum * state["m"] + (1 - self.momentum) * update
        v = self.second(state["v"], update.square())
        return state | {"model": state["model"] + self.server_lr * m / (v.sqrt() + self.tau), "m": m, "v": v}
