"""FedBuff: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022, "Federated Learning with Buffered Asynchronous Aggregation",
https://arxiv.org/abs/2106.06639, Algorithm 1: the server steps when K updates are in, each discounted by its staleness."""

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim import Inbox, Rows, Schedule, setting
from fedsim.method.discount import Discount, Polynomial
from fedsim.method.inbox import Weights
from fedsim.schedule import Buffered
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedBuff(FedAvg):
    """x + server_lr x mean of s(age) x update, weights 1/K; an update is against the model that its client began from.

    Any other `average` takes the updates that are discounted already.
    """

    name: ClassVar[str] = "fedbuff"
    source: ClassVar[str] = "Nguyen et al. 2022"
    one_hearer: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Buffered)
    weights: Weights = setting("uniform", "1/K, or a client's share of the samples merged")
    discount: Discount = setting(Polynomial(), "factor s of a stale update")

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        step = self.mean(inbox, factor=self.discount.of(inbox.age))
        return self.moved(state, step)
