"""FedPer: Arivazhagan, Aggarwal, Singh, Choudhary 2019, "Federated Learning with Personalization Layers", https://arxiv.org/abs/1912.00818,
Algorithms 1 and 2: the base layers are averaged, the last ones stay with each client."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.method.split import body
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    """Clients train base and head together from the server's base and their own head; only the base's update is sent and averaged.

    A client that never worked has the first model's head, as has the server's model, so `test/accuracy` says little: see `personal/`.
    """

    name: ClassVar[str] = "fedper"
    source: ClassVar[str] = "Arivazhagan et al. 2019"
    mixed: ClassVar[tuple[str, ...]] = ("base",)

    layers: int = setting(1, "last layers that are a client's own (K_P)", ge=0)

    def start(self, x: Tensor, task: Task) -> Rows:
        b = body(task.layout, self.layers)
        return {"base": x[:, :b].clone(), "head": x[:, b:].clone()}

    def start_local(self, x: Tensor) -> Rows:
        return {"model": x.clone()}

    def broadcast(self, state: Rows) -> Rows:
        return {"base": state["base"]}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        base = received["base"]
        end = self.trained_locally(self.personal(received, memory, local.task), local, base.shape[1])
        return {"update": end[:, : base.shape[1]] - base}, {"model": end}

    def trained_locally(self, start: Tensor, local: Local, b: int) -> Tensor:
        """The model [m, d] of after, whose first b numbers are the base."""
        return local.descend(start)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"base": state["base"] + self.server_lr * self.mean(inbox)}

    def model(self, state: Rows) -> Tensor:
        return torch.cat([state["base"], state["head"]], 1)

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        b = received["base"].shape[1]
        return torch.cat([received["base"], memory["model"][:, b:]], 1)
