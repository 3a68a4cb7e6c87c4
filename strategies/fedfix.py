"""FedFix: Fraboni, Vidal, Kameni, Lorenzi 2023, "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
Updates" (JMLR), https://arxiv.org/abs/2206.10189: stochastic aggregation weights, and a merge at fixed intervals."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from fedsim.part import setting
from fedsim.rows import Rows
from fedsim.schedule import Gossip, Pairwise, Rounds, Schedule, Ticks
from fedsim.strategy import Inbox, Strategy


@dataclass(frozen=True)
class FedFix(Strategy):
    """x + server_lr x sum of d_i x update_i with fixed weights d_i, under any schedule of a server.

    unbiased: d_i = p_i / f_i; p_i is the client's share of the samples, f_i how often it takes part (times a merge), as the schedule
    knows it: 1 in full rounds, 1 / ceil(tau_i / interval) in `ticks`, (1/tau_i) / sum_j (1/tau_j) for single arrivals. naive: p_i in
    rounds and 1 / size in `buffered`, which counts fast clients more than their share.
    """

    name: ClassVar[str] = "fedfix"
    source: ClassVar[str] = "Fraboni et al. 2023"
    one_hearer: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Ticks)
    weights: Literal["unbiased", "naive"] = setting("unbiased", "aggregation weights d_i")
    server_lr: float = setting(1.0, "step of the server along the weighted sum", gt=0)

    def __post_init__(self) -> None:
        if self.weights == "naive" and isinstance(self.schedule, Ticks | Gossip | Pairwise):
            raise ValueError(f"naive weights are not defined under schedule `{self.schedule.name}`; use `unbiased`")

    def factors(self, inbox: Inbox) -> Tensor:
        """d_i of each message, [m]."""
        if self.weights == "unbiased":
            return inbox.weight / inbox.frequency
        return inbox.weight if isinstance(self.schedule, Rounds) else inbox.weight * 0 + 1 / len(inbox.sender)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"model": state["model"] + self.server_lr * inbox.sum("update", self.factors(inbox))}
