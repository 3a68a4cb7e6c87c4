"""FedStale: Rodio, Neglia 2024, "FedStale: leveraging Stale Client Updates in Federated Learning", https://arxiv.org/abs/2405.04171:
a mix of fresh updates and the remembered ones of absent clients, between FedAvg (beta = 0) and FedVARP (beta = 1)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Schedule, Strategy, setting
from fedsim.base.store import Table
from fedsim.method.inbox import State
from fedsim.task.task import Task


@dataclass(frozen=True)
class FedStale(Strategy):
    """u = beta x sum_all alpha_i h_i + sum_S (alpha_i / p_i) (update_i - beta h_i); x <- x + server_lr x u; then h_i <- update_i in S.

    alpha_i is the share of samples, p_i the probability of being asked, h_i the last update of client i (0 before the first). The sum
    over all clients is kept running, and h has rows only of clients that ever took part, so that a round costs what its cohort costs.
    """

    name: ClassVar[str] = "fedstale"
    source: ClassVar[str] = "Rodio & Neglia 2024"
    one_hearer: ClassVar[bool] = True

    beta: float = setting(0.5, "how much remembered updates count", ge=0, le=1)
    server_lr: float = setting(1.0, "step of the server along u", gt=0)
    chances: Literal["known", "estimated"] = setting("known", "p_i from the schedule's sampling, or from past gaps (FedAU, Wang & Ji 2024)")
    empty: Literal["skip", "stale"] = setting(
        "skip", "a round without updates does nothing (as the authors' code), or takes the stale step"
    )

    def __post_init__(self) -> None:
        one_update_each(self.schedule)

    def start(self, x: Tensor, task: Task) -> State:
        state: State = {"model": x}
        if self.beta:
            state |= {"last": Table(task.nodes, x[0]), "stale": torch.zeros_like(x)}
        if self.chances == "estimated":
            zeros = x.new_zeros(len(x), task.nodes)
            state |= {"round": x.new_zeros(len(x), 1), "seen": zeros, "gaps": zeros.clone(), "times": zeros.clone()}
        return state

    def merge(self, state: State, inbox: Inbox) -> State:
        alpha, fresh = inbox.weight, inbox.weight / self.chance(state, inbox)
        u = inbox.sum("update", fresh)
        if self.beta:
            fresh_h, alpha_h = torch.stack([fresh, alpha]) @ state["last"][inbox.sender]  # one pass over h
            u = u + self.beta * (state["stale"] - fresh_h)
            state["stale"] += inbox.sum("update", alpha) - alpha_h
            state["last"][inbox.sender] = inbox["update"]
        return state | {"model": state["model"] + self.server_lr * u}

    def merge_nothing(self, state: State) -> State:
        if self.chances == "estimated":
            state["round"] += 1
        if self.empty == "stale" and self.beta:
            return state | {"model": state["model"] + self.server_lr * self.beta * state["stale"]}
        return state

    def chance(self, state: State, inbox: Inbox) -> Tensor:
        """[m]: p_i of the senders. Raises ValueError where it is to be known and is not."""
        if self.chances == "estimated":
            return self.estimate(state, inbox)
        try:
            return inbox.chance
        except ValueError as error:
            raise ValueError(f"{error}; or set `chances: estimated`") from error

    def estimate(self, state: State, inbox: Inbox) -> Tensor:
        """[m]: 1 over the mean gap between a client's participations before this round, 1 before its first gap ended; counts this round."""
        state["round"] += 1
        at, times, gaps = inbox.sender, state["times"][0], state["gaps"][0]
        chance = torch.where(times[at] > 0, times[at] / gaps[at], 1.0)
        gaps[at] += state["round"][0] - state["seen"][0, at]
        times[at] += 1
        state["seen"][0, at] = state["round"][0]
        return chance


def one_update_each(schedule: Schedule) -> None:
    """Raises ValueError where one merge may hold two updates of a client: which is its last one has no rule."""
    if schedule.repeats() > 1:
        raise ValueError("a client could stand in a merge twice, for which the method has no rule; use `restart: merge`")
