"""D2: Tang, Lian, Yan, Zhang, Liu 2018, "D2: Decentralized Training over Decentralized Data" (ICML), https://arxiv.org/abs/1803.07068,
Algorithm 1: D-SGD whose bias by unlike peers cancels between two rounds."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Rows, Schedule, Strategy
from fedsim.schedule import Gossip
from fedsim.task.task import Task


@dataclass(frozen=True)
class D2(Strategy):
    """x_next = W (2 x - x_last + u - u_last), u = the local update at x (-lr g for one step); the first round is D-SGD's.

    W's least eigenvalue must be above -1/3: `weights: lazy` makes it so on any graph. Who does not work in a round keeps its u.
    """

    name: ClassVar[str] = "d2"
    source: ClassVar[str] = "Tang et al. 2018"
    kind: ClassVar[str] = "peers"
    symmetric: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Gossip)

    def __post_init__(self) -> None:
        if self.schedule.peers and not self.schedule.rounds:
            raise ValueError(f"`d2` needs rounds of all peers; under `{self.schedule.name}` it has no meaning")

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "last": x.clone(), "update": torch.zeros_like(x)}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        x, u = state["model"], torch.where(inbox.reached, inbox.mean("update"), state["update"])
        return state | {"model": 2 * x - state["last"] + u - state["update"], "last": x, "update": u}
