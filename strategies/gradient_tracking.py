"""Gradient tracking: Nedić, Olshevsky, Shi 2017, "Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs"
(DIGing), https://arxiv.org/abs/1607.03218; Qu, Li 2018, https://arxiv.org/abs/1605.07112: peers follow the mean gradient of all."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Rows, Schedule, Strategy, setting
from fedsim.schedule import Gossip
from fedsim.task.task import Task
from fedsim.topology import Mixing


@dataclass(frozen=True)
class GradientTracking(Strategy):
    """A tracker y of each peer follows the mean gradient of all, and its model x steps along y.

    In the papers' symbols and order, for a step alpha, g^k = grad f(x^k), y^0 = g^0:

        combine_then_adapt (DIGing):    x^{k+1} = W x^k - alpha y^k
                                        y^{k+1} = W y^k + g^{k+1} - g^k
        adapt_then_combine (Qu & Li):   x^{k+1} = W (x^k - alpha y^k)
                                        y^{k+1} = W (y^k + g^{k+1} - g^k)

    A round begins where the second line does, since it works out g at the x that it has. In place of -alpha g stands u, what local
    training adds to x (-lr g for one step), so y here is the papers' -alpha y. Qu & Li mix y before they add g^{k+1} - g^k.

    The mean of the y is the mean of the u, so that with full gradients x goes to the optimum at a constant rate, where D-SGD stops
    beside it. adapt_then_combine takes two exchanges a round, whose latency counts once; combine_then_adapt takes one. Model and y
    travel: twice D-SGD's bytes. Who does not work in a round keeps its u.
    """

    name: ClassVar[str] = "gradient_tracking"
    source: ClassVar[str] = "Nedić et al. 2017"
    kind: ClassVar[str] = "peers"
    mixed: ClassVar[tuple[str, ...]] = ("model", "tracker")

    schedule: Schedule = field(default_factory=Gossip)
    order: Literal["adapt_then_combine", "combine_then_adapt"] = setting("adapt_then_combine", "mix after the own change or before it")

    def __post_init__(self) -> None:
        if self.schedule.peers and not self.schedule.rounds:
            raise ValueError(f"trackers change in rounds of all peers; under `{self.schedule.name}` they have no meaning")

    @property
    def combine_first(self) -> bool:  # type: ignore[override]
        return self.order == "combine_then_adapt"

    def start(self, x: Tensor, task: Task) -> Rows:
        none = torch.zeros_like(x)
        return {"model": x, "tracker": none, "last": none.clone(), "begun": x.new_zeros(len(x), 1)}

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        u = torch.where(inbox.reached, inbox.mean("update"), state["last"])
        y = state["tracker"] + u - state["last"]
        state = state | {"tracker": y, "last": u}
        return state | {"model": state["model"] + y} if self.combine_first else state

    def mix(self, state: Rows, heard: Rows, mixing: Mixing) -> Rows:
        y = super().mix(state, {"tracker": heard["tracker"]}, mixing)["tracker"]
        y = torch.where(state["begun"] > 0, y, state["tracker"])  # y^0 = u^0, not mixed
        state = state | {"tracker": y, "begun": torch.ones_like(state["begun"])}
        if self.combine_first:
            return super().mix(state, {"model": heard["model"]}, mixing)
        ahead = state | {"model": state["model"] + y}
        return super().mix(ahead, {"model": ahead["model"] + (heard["model"] - state["model"])}, mixing)
