"""FedAvgM: Hsu, Qi, Brown 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
https://arxiv.org/abs/1909.06335; in the form of Reddi et al. 2021, https://arxiv.org/abs/2003.00295: the server steps with momentum."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedAvgM(FedAvg):
    """m <- momentum x m + D; x <- x + server_lr x m, where D is the mean update and m begins at 0; momentum = 0 is FedAvg."""

    name: ClassVar[str] = "fedavgm"
    source: ClassVar[str] = "Hsu et al. 2019"

    momentum: float = setting(0.9, "how much of the last step goes on (beta)", ge=0, lt=1)

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "momentum": torch.zeros_like(x)}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        m = self.momentum * state["momentum"] + self.mean(inbox)
        return state | {"model": state["model"] + self.server_lr * m, "momentum": m}
