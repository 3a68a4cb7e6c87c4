"""MIFA: Gu, Huang, Zhang, Huang 2021, "Fast Federated Learning in the Presence of Arbitrary Device Unavailability",
https://arxiv.org/abs/2106.04159, Algorithm 1: the server steps along the mean of the last updates of all clients, absent ones too."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Strategy, setting
from fedsim.base.store import Table
from fedsim.method.inbox import State, Weights
from fedsim.task.task import Task
from strategies.fedstale import one_update_each


@dataclass(frozen=True)
class Mifa(Strategy):
    """G_i <- update_i for i in S; x <- x + server_lr x sum_all a_i G_i, where the a_i of all clients sum to 1. No probability is needed.

    The paper lets all clients take part in the first round. Here G_i is 0 until client i first comes, so early steps are short. The
    paper divides G_i by the learning rate and multiplies the mean by today's; here an update keeps the rate with which it was made.
    """

    name: ClassVar[str] = "mifa"
    source: ClassVar[str] = "Gu et al. 2021"
    one_hearer: ClassVar[bool] = True

    server_lr: float = setting(1.0, "step of the server along the mean", gt=0)
    weights: Weights = setting("uniform", "a_i: the same for all clients, or their shares of all samples")
    empty: Literal["skip", "stale"] = setting("skip", "a round without updates does nothing, or steps along the remembered ones (paper)")

    def __post_init__(self) -> None:
        one_update_each(self.schedule)

    def start(self, x: Tensor, task: Task) -> State:
        return {"model": x, "last": Table(task.nodes, x[0]), "mean": torch.zeros_like(x)}

    def merge(self, state: State, inbox: Inbox) -> State:
        last, sender = state["last"], inbox.sender
        a = inbox.weight if self.weights == "samples" else torch.full_like(inbox.weight, 1 / len(last))
        state["mean"] += inbox.sum("update", a) - a @ last[sender]
        last[sender] = inbox["update"]
        return state | {"model": state["model"] + self.server_lr * state["mean"]}

    def merge_nothing(self, state: State) -> State:
        return state if self.empty == "skip" else state | {"model": state["model"] + self.server_lr * state["mean"]}
