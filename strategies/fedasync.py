"""FedAsync: Xie, Koyejo, Gupta 2019, "Asynchronous Federated Optimization", https://arxiv.org/abs/1903.03934, Algorithm 1:
each model that arrives is mixed into the server's, less the staler it is."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from fedsim import Inbox, Local, Rows, Schedule, Strategy, setting
from fedsim.method.discount import Discount, Polynomial
from fedsim.schedule import Buffered


@dataclass(frozen=True)
class FedAsync(Strategy):
    """x <- (1 - a) x + a x_new with a = alpha x s(age); clients send models, as in the paper. Several in one merge go in, one after the
    other, in the order of their ids."""

    name: ClassVar[str] = "fedasync"
    source: ClassVar[str] = "Xie et al. 2019"
    one_hearer: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=lambda: Buffered(size=1))
    alpha: float = setting(0.6, "weight of a fresh model", gt=0, le=1)
    discount: Discount = setting(Polynomial(), "factor s of a stale model")
    pull: float = setting(0.0, "strength of the proximal term of local training (rho)", ge=0)

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        return {"model": local.descend(received["model"], anchor=received["model"], pull=self.pull)}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        a = self.alpha * self.discount.of(inbox.age)
        kept = torch.cat([(1 - a).flip(0).cumprod(0).flip(0), a.new_ones(1)])  # what later arrivals leave of earlier ones
        return state | {"model": kept[0] * state["model"] + inbox.sum("model", a * kept[1:])}
