"""SGP: Assran, Loizou, Ballas, Rabbat 2019, "Stochastic Gradient Push for Distributed Deep Learning" (ICML),
https://arxiv.org/abs/1811.10792, Algorithm 1: D-SGD over directed graphs, whose bias push-sum takes away."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fedsim import Inbox, Rows, Schedule, Strategy
from fedsim.schedule import Gossip
from fedsim.task.task import Task
from fedsim.topology import Keep
from fedsim.topology.graphs import Exponential


@dataclass(frozen=True)
class Sgp(Strategy):
    """x <- P (x + update at z), w <- P w, z = x / w with w = 1 at first; columns of P sum to 1: senders split what they have.

    z is the model that is trained and evaluated. What is mixed away of x is mixed away of w too, so z is an average on any graph.
    """

    name: ClassVar[str] = "sgp"
    source: ClassVar[str] = "Assran et al. 2019"
    kind: ClassVar[str] = "peers"
    mixed: ClassVar[tuple[str, ...]] = ("mass", "model")
    stochastic: ClassVar[Keep] = "columns"

    schedule: Schedule = field(default_factory=lambda: Gossip(Exponential()))

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "mass": x.new_ones(len(x), 1)}

    def broadcast(self, state: Rows) -> Rows:
        return {"model": self.model(state)}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"model": state["model"] + inbox.mean("update")}

    def model(self, state: Rows) -> Tensor:
        return state["model"] / state["mass"]
