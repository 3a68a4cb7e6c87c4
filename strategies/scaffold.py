"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
https://arxiv.org/abs/1910.06378, Algorithm 1, option II: each local step is corrected by where all clients go and where this one goes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.method.inbox import Weights
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """y <- y - lr (g_i(y) - c_i + c); then c_i <- c_i - c - update / (K lr), and the server adds the n-th part of each change to c.

    K is the number of steps of the job itself. (FedSpeed's official code takes epochs x samples / batch of client 0, not rounded, for
    all clients.) Model and c travel down, update and change of c up: twice FedAvg's bytes both ways.
    """

    name: ClassVar[str] = "scaffold"
    source: ClassVar[str] = "Karimireddy et al. 2020"
    one_hearer: ClassVar[bool] = True

    weights: Weights = setting("uniform", "weight of a client in the mean update: the same for all, as in the paper, or by samples")

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "control": torch.zeros_like(x), "share": x.new_full((len(x), 1), 1 / task.nodes)}

    def start_local(self, x: Tensor) -> Rows:
        return {"control": torch.zeros_like(x)}

    def broadcast(self, state: Rows) -> Rows:
        return {"model": state["model"], "control": state["control"]}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start, everyone, own = received["model"], received["control"], memory["control"]
        drift = everyone - own
        update = local.descend(start, drift=drift).sub_(start)
        slope = update / -local.length  # mean of the job's gradients plus drift
        if bool((still := local.length[:, 0] == 0).any()):  # a rate of 0 tells nothing new about the gradients
            slope[still] = everyone[still]
        control = slope - drift
        return {"update": update, "change": slope.sub_(everyone)}, {"control": control}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        control = state["control"] + inbox.sum("change", state["share"][0].expand_as(inbox.weight))
        return super().merge(state, inbox) | {"control": control}
