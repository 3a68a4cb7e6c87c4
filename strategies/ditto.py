"""Ditto: Li, Hu, Beirami, Smith 2021, "Ditto: Fair and Robust Federated Learning Through Personalization",
https://arxiv.org/abs/2012.04221, Algorithm 1: beside FedAvg, each client trains a model of its own that is held to the shared one."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim import Local, Rows, setting
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """The shared model is FedAvg's. The client's own: v <- v - lr (grad F_i(v) + pull (v - w)), on the same batches, w as it was received.

    pull = 0 is training alone, a large pull the shared model. At rest grad F_i(v) = pull (w - v).
    """

    name: ClassVar[str] = "ditto"
    source: ClassVar[str] = "Li et al. 2021"
    gradients: ClassVar[int] = 2

    pull: float = setting(0.1, "strength that holds a client's own model to the shared one (the paper's lambda)", ge=0)

    def start_local(self, x: Tensor) -> Rows:
        return {"model": x.clone()}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start = received["model"]
        before = None if local.buffers is None else local.buffers.clone()
        own = local.descend(memory["model"], anchor=start, pull=self.pull)
        if local.buffers is not None and before is not None:  # running statistics are the shared model's
            local.buffers.copy_(before)
        return {"update": local.descend(start) - start}, {"model": own}

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        return memory["model"]
