"""FedFix: Fraboni, Vidal, Kameni, Lorenzi 2023, "A General Theory for Federated Optimization with Asynchronous and Heterogeneous Clients
Updates" (JMLR), https://arxiv.org/abs/2206.10189: stochastic aggregation weights, and a merge at fixed intervals."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from fedsim import Inbox, Rows, Schedule, Strategy, setting
from fedsim.method.discount import ConstantDiscount, Discount
from fedsim.schedule import Ticks
from fedsim.task.task import Task


@dataclass(frozen=True)
class FedFix(Strategy):
    """x + server_lr x sum of d_i x update_i with weights d_i, under any schedule of a server.

    unbiased: d_i = p_i / f_i; p_i is the client's share of the samples, f_i how often it takes part (times a merge), as the schedule
    knows it: 1 in full rounds, 1 / ceil(tau_i / interval) in `ticks`, (1/tau_i) / sum_j (1/tau_j) for single arrivals; or, estimated,
    its updates so far over the merges so far, this one included: 1 over its mean gap. naive: p_i in rounds and 1 / size in `buffered`,
    which counts fast clients more than their share. With a discount s, client i counts q_i = f_i d_i s(age_i): those that are often
    stale count less than they should, so that `unbiased` is so no more. That is the user's choice.
    """

    name: ClassVar[str] = "fedfix"
    source: ClassVar[str] = "Fraboni et al. 2023"
    one_hearer: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Ticks)
    weights: Literal["unbiased", "naive"] = setting("unbiased", "aggregation weights d_i")
    frequencies: Literal["known", "estimated"] = setting("known", "f_i of unbiased weights: from the schedule and the world, or counted")
    discount: Discount = setting(ConstantDiscount(), "factor s of a stale update; weights are unbiased without one only")
    server_lr: float = setting(1.0, "step of the server along the weighted sum", gt=0)

    def __post_init__(self) -> None:
        if self.weights == "naive" and self.frequencies == "estimated":
            raise ValueError("naive weights use no frequencies; leave `frequencies` out, or use `unbiased`")

    def start(self, x: Tensor, task: Task) -> Rows:
        if self.frequencies == "known":
            return {"model": x}
        return {"model": x, "merges": x.new_zeros(len(x), 1), "times": x.new_zeros(len(x), task.nodes)}

    def frequency(self, state: Rows, inbox: Inbox) -> Tensor:
        """f_i of each message, [m]; counts this merge where they are estimated."""
        if self.frequencies == "known":
            try:
                return inbox.frequency
            except ValueError as error:
                raise ValueError(f"{error}; `strategy.frequencies: estimated` counts them while running") from error
        state["merges"] += 1
        times = state["times"][0].index_add_(0, inbox.sender, inbox.weight.new_ones(len(inbox.sender)))
        return times[inbox.sender] / state["merges"][0]

    def factors(self, state: Rows, inbox: Inbox) -> Tensor:
        """d_i s(age_i) of each message, [m]."""
        if self.weights == "unbiased":
            d = inbox.weight / self.frequency(state, inbox)
        elif isinstance(self.schedule, Ticks):
            raise ValueError("naive weights are not defined; use `unbiased`")
        else:
            d = inbox.weight if self.schedule.rounds else inbox.weight * 0 + 1 / len(inbox.sender)
        return d * self.discount.of(inbox.age)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"model": state["model"] + self.server_lr * inbox.sum("update", self.factors(state, inbox))}

    def merge_nothing(self, state: Rows) -> Rows:
        if self.frequencies == "estimated":
            state["merges"] += 1
        return state
