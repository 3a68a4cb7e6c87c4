"""FedBN: Li, Jiang, Zhang, Kamp, Dou 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization",
https://arxiv.org/abs/2102.07623, Algorithm 1: all but the normalisation layers is averaged."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor, nn

from fedsim import Inbox, Local, Rows
from fedsim.base.errors import SettingError
from fedsim.method.split import columns
from fedsim.task.task import Task
from strategies.fedavg import FedAvg

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


@dataclass(frozen=True)
class FedBN(FedAvg):
    """FedAvg on the parameters outside normalisation layers; those within, and their running statistics, stay with each client.

    It needs `task: {buffers: local}`. The server's model has the first model's normalisation layers: see `personal/`.
    """

    name: ClassVar[str] = "fedbn"
    source: ClassVar[str] = "Li et al. 2021 (FedBN)"
    mixed: ClassVar[tuple[str, ...]] = ("shared",)

    def start(self, x: Tensor, task: Task) -> Rows:
        own = normalising(task)
        if not bool(own.any()):
            raise SettingError("task.model", f"`{self.name}` keeps normalisation layers to each client, and this model has none")
        if task.buffers.size and task.keep_buffers != "local":
            raise SettingError("task.buffers", f"`{self.name}` keeps running statistics to each client: `local` is due")
        return {"shared": x[:, ~own.to(x.device)], "first": x.clone(), "own": own.to(x).expand(len(x), -1).clone()}

    def start_local(self, x: Tensor) -> Rows:
        return {"model": x.clone()}

    def broadcast(self, state: Rows) -> Rows:
        return {"shared": state["shared"]}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        end = local.descend(self.personal(received, memory, local.task))
        shared = ~normalising(local.task).to(end.device)
        return {"update": end[:, shared] - received["shared"]}, {"model": end}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"shared": state["shared"] + self.server_lr * self.mean(inbox)}

    def model(self, state: Rows) -> Tensor:
        x = state["first"].clone()
        x[:, state["own"][0] == 0] = state["shared"]
        return x

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        x = memory["model"].clone()
        x[:, ~normalising(task).to(x.device)] = received["shared"]
        return x


@lru_cache(maxsize=4)  # models are not kept for ever
def _normalising(task_model: nn.Module, layout: object) -> Tensor:
    names = frozenset(name for name, module in task_model.named_modules() if isinstance(module, NORMS))
    return columns(layout, names)  # type: ignore[arg-type]


def normalising(task: Task) -> Tensor:
    """bool [d]: which numbers of a row are parameters of normalisation layers."""
    return _normalising(task.model, task.layout)
