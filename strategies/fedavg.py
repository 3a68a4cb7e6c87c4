"""FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", https://arxiv.org/abs/1602.05629, Algorithm 1, with a server learning rate (Reddi et al. 2021)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim import Inbox, Rows, Strategy, setting
from fedsim.method.average import Average, Mean
from fedsim.method.inbox import Weights


@dataclass(frozen=True)
class FedAvg(Strategy):
    """Clients train from the server's model (plain local SGD, what every strategy does by default); the server adds the mean update."""

    name: ClassVar[str] = "fedavg"
    source: ClassVar[str] = "McMahan et al. 2017"

    server_lr: float = setting(1.0, "step of the server along the mean update", gt=0)
    weights: Weights = setting("samples", "weight of a client: its share of the samples merged, or the same for all")
    average: Average = setting(Mean(), "what the server makes of the updates")

    def mean(self, inbox: Inbox, name: str = "update", factor: Tensor | None = None) -> Tensor:
        """[h, ...]: the average of one part of the messages, discounted by `factor` [m]."""
        return self.average.of(inbox, name, self.weights, factor)

    def check(self, messages: int) -> None:
        self.average.check(messages)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return self.moved(state, self.mean(inbox))

    def moved(self, state: Rows, step: Tensor) -> Rows:
        """The server's model, `server_lr` along a step [h, d]."""
        return state | {"model": state["model"] + (step if self.server_lr == 1 else self.server_lr * step)}  # a copy of a model less
