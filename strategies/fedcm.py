"""FedCM: Xu, Wang, Wang, Yao 2021, "FedCM: Federated Learning with Client-level Momentum", https://arxiv.org/abs/2106.10874, Algorithm 1:
local steps go partly where all went in the last round."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.method.inbox import Weights
from fedsim.method.local import Ascent
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedCm(FedAvg):
    """w <- w - lr (fresh x g + (1 - fresh) m); m is minus the last mean update over the last mean of K lr, and 0 in the first round.

    K lr are those of the jobs that made the updates: a client sends its own beside its update, one number. The model and m travel down.
    """

    name: ClassVar[str] = "fedcm"
    source: ClassVar[str] = "Xu et al. 2021"
    one_hearer: ClassVar[bool] = True

    weights: Weights = setting("uniform", "weight of a client in the mean update: the same for all, as in the paper, or by samples")
    fresh: float = setting(0.1, "weight of a client's own gradient beside the momentum (alpha); 1 is FedAvg", gt=0, le=1)

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "momentum": torch.zeros_like(x)}

    def broadcast(self, state: Rows) -> Rows:
        return {"model": state["model"], "momentum": state["momentum"]}

    def ascending(self) -> Ascent | None:
        """Where gradients are taken; None: at the model itself."""
        return None

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start, momentum = received["model"], received["momentum"]
        drift = (1 - self.fresh) * momentum if self.fresh < 1 else None
        update = local.descend(start, scale=self.fresh, drift=drift, ascent=self.ascending()) - start
        return {"update": update, "length": local.length}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        update, length = self.mean(inbox), inbox.mean("length", self.weights)
        return {"model": state["model"] + self.server_lr * update, "momentum": -update / length.clamp(min=1e-30)}
