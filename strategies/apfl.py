"""APFL: Deng, Kamani, Mahdavi 2020, "Adaptive Personalized Federated Learning", https://arxiv.org/abs/2003.13461, Algorithm 1:
a client uses a mixture of a model of its own and the shared one, and trains its own through the mixture."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Local, Rows, setting
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Apfl(FedAvg):
    """w is trained and averaged as in FedAvg; beside it v <- v - lr a grad F_i(a v + (1 - a) w) on the same batch, w as it is at that step.

    With `adaptive`, a <- a - lr <v - w, grad F_i(a v + (1 - a) w)>, kept within 0 and 1, at the first step of a job, as in the authors'
    code. own = 0 is FedAvg, own = 1 training alone.
    """

    name: ClassVar[str] = "apfl"
    source: ClassVar[str] = "Deng et al. 2020"
    gradients: ClassVar[int] = 2

    own: float = setting(0.5, "share of a client's own model in what it uses (alpha), at first where it adapts", ge=0, le=1)
    adaptive: bool = setting(False, "each client learns its own share")

    def __post_init__(self) -> None:
        if not self.train.plain:
            raise ValueError(f"`{self.name}` knows plain steps only; leave out train.optimizer, momentum, weight_decay and clip")

    def start_local(self, x: Tensor) -> Rows:
        return {"model": x.clone(), "mix": x.new_full((len(x), 1), self.own)}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start = received["model"]
        x, own, mix = start.clone(), memory["model"].clone(), memory["mix"].clone()
        for batch, w, v, a in local.batches(x, own, mix):
            slope = batch.gradient(torch.lerp(w, v, a), keep=False)
            if self.adaptive and batch.number == 0:
                rate = local.lr if isinstance(local.lr, float) else local.lr[: len(w)]
                a.sub_(rate * ((v - w) * slope).sum(1, keepdim=True)).clamp_(0, 1)
            local.step(v, a * slope)
            batch.descend(w, local.lr if isinstance(local.lr, float) else local.lr[: len(w)])
        return {"update": x - start}, {"model": own, "mix": mix}

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        return torch.lerp(received["model"], memory["model"], memory["mix"])
