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
    """Each local step is corrected by a control variate: where all clients go (c) less where this one goes (c_i).

    Algorithm 1 with option II, in the paper's symbols and order. eta_l is `train.lr`, eta_g `server_lr`:

        client i of S, which hears x and c:  y_i = x
          for k = 1 .. K:
            y_i <- y_i - eta_l (g_i(y_i) - c_i + c)
          c_i+ = c_i - c + (x - y_i) / (K eta_l)
          sends (dy_i, dc_i) = (y_i - x, c_i+ - c_i);  c_i <- c_i+
        server:  (dx, dc) = mean over S of (dy_i, dc_i)
          x <- x + eta_g dx;  c <- c + |S| / N dc

    Where rates change within a job, K eta_l is their sum; a client whose sum is 0 leaves dc_i at 0. K is the number of steps of the job
    itself. (FedSpeed's official code takes epochs x samples / batch of client 0, not rounded, for all clients.) Model and c travel
    down, update and change of c up: twice FedAvg's bytes both ways.
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
        x, c, c_i = received["model"], received["control"], memory["control"]
        drift = c - c_i
        dy = local.descend(x, drift=drift).sub_(x)
        slope = dy / -local.length  # (x - y_i) / (K eta_l)
        if bool((still := local.length[:, 0] == 0).any()):  # a rate of 0 tells nothing new about the gradients
            slope[still] = c[still]
        c_plus = torch.sub(slope, drift, out=drift)
        dc = slope.sub_(c)  # c_i+ - c_i, without c_i in it
        return {"update": dy, "change": dc}, {"control": c_plus}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        c = state["control"] + inbox.sum("change", state["share"][0].expand_as(inbox.weight))  # |S| / N of a mean over S: a sum / N
        return super().merge(state, inbox) | {"control": c}
