"""FedLEx: Internò, Olhofer, Jin, Hammer 2024, "Federated Loss Exploration for Improved Convergence on Non-IID Data" (IJCNN),
https://arxiv.org/abs/2506.18640: explorers show which parameters move; what they left alone, later training leaves alone too."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.base.rows import Layout
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


def min_max(spread: Tensor, layout: Layout) -> Tensor:
    """[h, d] in 0 to 1: (D - min D) / (max D - min D) of each tensor of D [h, d]; 1 where all its entries are alike (the code: 0/0)."""
    out = torch.ones_like(spread)
    for part in layout.slices.values():
        low, high = spread[:, part].aminmax(dim=1, keepdim=True)
        out[:, part] = torch.where(high > low, (spread[:, part] - low) / (high - low), 1)
    return out


@dataclass(frozen=True)
class FedLex(FedAvg):
    """Explorers: the clients of the first `exploration` merges train from w_base, where the server's model stays meanwhile.

    D = mean over explorers i of (theta_i - w_base)^2, G = MinMax of D tensor by tensor; after that each local gradient is
    G x (gradient + pull (w - w_start)), and the server steps by v <- beta v + (1 - beta) mean update. `pull` is FedProx's; beta 0 with
    exploration 0 is FedAvg. `each_round` forms G anew from each merge's models for the next, with exploration 0 unguided in the first.

    The abstract has the explorers, the matrix, and the gradients multiplied by it; D, MinMax and v are the published code's. Reconstructed:
    G = 1 in a constant tensor; w_base is the first model; exploration by rounds, so that explorers train as long as `train` says, without
    early stopping, and their time, steps and bytes are counted. Not taken over: the code's faults (explorers that share one
    model, guidance that is w_base or made of placeholders) and RobustScaler, whose entries can be negative: steps uphill. Sent is G
    with the model in every round, d numbers more each, because clients keep nothing; one that kept G would need it once.
    """

    name: ClassVar[str] = "fedlex"
    source: ClassVar[str] = "Internò et al. 2024"
    one_hearer: ClassVar[bool] = True

    exploration: int = setting(1, "first rounds, whose clients are the explorers; those without news don't count", ge=0)
    guidance: Literal["once", "each_round"] = setting("once", "G from the exploration alone, or formed anew in each merge for the next")
    deviation: Literal["squared", "root"] = setting("squared", "D as it is, or its square root (ablation)")
    beta: float = setting(0.9, "server momentum: the part of the last step in the next", ge=0, lt=1)
    pull: float = setting(0.0, "strength of FedProx's proximal term (mu), which G multiplies too", ge=0)

    @property
    def guides(self) -> bool:
        """Is there a G at all?"""
        return self.exploration > 0 or self.guidance == "each_round"

    def start(self, x: Tensor, task: Task) -> Rows:
        state = {"model": x, "step": torch.zeros_like(x)}
        if self.guides:
            state |= {"base": x.clone(), "G": torch.ones_like(x), "spread": torch.zeros_like(x), "merges": x.new_zeros(len(x), 1)}
        return state

    def broadcast(self, state: Rows) -> Rows:
        return {name: state[name] for name in ("model", "G") if name in state}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start, G = received["model"], received.get("G")
        if G is None:
            return {"update": local.descend(start, anchor=start, pull=self.pull) - start}, memory
        x = start.clone()
        for batch, w in local.batches(x):
            live, slope = len(w), batch.gradient(w)
            if self.pull:
                slope = slope + self.pull * (w - start[:live])
            local.step(w, G[:live] * slope)
        return {"update": x - start}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        update = self.mean(inbox)
        if self.guides:
            state["merges"] += 1
            exploring = bool(state["merges"] <= self.exploration)
            if exploring or self.guidance == "each_round":
                state = self.explore(state, inbox)
            if exploring:
                return state
        v = self.beta * state["step"] + (1 - self.beta) * update
        return state | {"model": state["model"] + self.server_lr * v, "step": v}

    def explore(self, state: Rows, inbox: Inbox) -> Rows:
        """Adds the deviations from w_base (their sum: MinMax of it is that of the mean), and forms G once all explorers are heard.

        All explorers count the same, whatever `average` makes of updates.
        """
        moved = (state["model"] - state["base"] + inbox["update"]).square().sum(0, keepdim=True)
        spread = moved if state["merges"] > self.exploration else state["spread"] + moved
        state |= {"spread": spread}
        if state["merges"] >= self.exploration:
            state |= {"G": min_max(spread.sqrt() if self.deviation == "root" else spread, inbox.layout)}
        return state

    def measure(self, state: Rows, task: Task) -> dict[str, float]:
        """The mean of G, over all parameters and tensor by tensor: small means short steps."""
        if not self.guides:
            return {}
        each = {f"guidance/{name}": float(part.mean()) for name, part in task.layout.views(state["G"]).items()}
        return {"guidance": float(state["G"].mean())} | each
