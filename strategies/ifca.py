"""IFCA: Ghosh, Chung, Yin, Ramchandran 2020, "An Efficient Framework for Clustered Federated Learning", https://arxiv.org/abs/2006.04088,
Algorithm 1, model averaging: several models at the server, and each client trains the one that fits its data best."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.base.keys import fold, normal
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Ifca(FedAvg):
    """All `clusters` models travel down; a client takes the one with the least loss on its first batch, trains it, and says which it was.

    The models begin at the first one, moved by noise of `apart` times its numbers' spread, but the first. One cluster is FedAvg. There is
    no one shared model: `test/accuracy` is that of the first; a client's own is the one that it took last (see `personal/`).
    """

    name: ClassVar[str] = "ifca"
    source: ClassVar[str] = "Ghosh et al. 2020"
    one_hearer: ClassVar[bool] = True
    mixed: ClassVar[tuple[str, ...]] = ("models",)

    clusters: int = setting(2, "models at the server (k)", ge=1)
    apart: float = setting(1.0, "how far the first models are from each other, in standard deviations of the first one's numbers", gt=0)

    def start(self, x: Tensor, task: Task) -> Rows:
        noise = torch.stack([normal(fold(0, "ifca", at)[None], x.shape[1])[0] * (at > 0) for at in range(self.clusters)]).to(x)
        return {"models": (x + self.apart * x.std(correction=0) * noise)[None]}

    def start_local(self, x: Tensor) -> Rows:
        return {"chosen": x.new_zeros(len(x), self.clusters).index_fill_(1, torch.tensor([0], device=x.device), 1.0)}

    def broadcast(self, state: Rows) -> Rows:
        return {"models": state["models"]}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        models = received["models"]
        best = torch.zeros(len(models), dtype=torch.int64, device=models.device)
        for batch, *rows in local.batches(*models.unbind(1)):
            losses = torch.stack([batch.loss(one.contiguous()) for one in rows], 1)
            best[: len(losses)] = losses.argmin(1)
            break
        start = models[torch.arange(len(models), device=models.device), best]
        chosen = torch.zeros_like(memory["chosen"]).scatter_(1, best[:, None], 1.0)
        return {"update": local.descend(start) - start, "chosen": chosen}, {"chosen": chosen}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        weight = inbox.weight if self.weights == "samples" else torch.ones_like(inbox.weight)
        models = state["models"].clone()
        for cluster in range(self.clusters):
            part = weight * inbox["chosen"][:, cluster].to(weight.dtype)
            if bool((total := part.sum()) > 0):
                models[:, cluster] += self.server_lr * inbox.sum("update", part / total)
        return {"models": models}

    def model(self, state: Rows) -> Tensor:
        return state["models"][:, 0]

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        return (memory["chosen"][:, :, None] * received["models"]).sum(1)
