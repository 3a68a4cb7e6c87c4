"""FedDyn: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, "Federated Learning Based on Dynamic Regularization",
https://arxiv.org/abs/2111.04263, Algorithm 1: a proximal pull whose bias each client's dual takes away."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.method.inbox import Weights
from fedsim.method.local import Ascent
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedDyn(FedAvg):
    """Clients descend F_i + pull/2 |w - w_t|^2 + pull <h_i, w>, then h_i += update; the server adds mean update and mean of ALL h_i.

    At rest h_i = -grad F_i(w) / pull and sum h_i = 0: the optimum of the mean loss, whatever the number of local steps. A client keeps
    its h_i (0 at first), the server only their mean, to which each update adds its n-th part; what travels is the model and an update.
    pull = 0 is not FedAvg: the h_i still add up, and the first full round moves twice as far.
    """

    name: ClassVar[str] = "feddyn"
    source: ClassVar[str] = "Acar et al. 2021"
    one_hearer: ClassVar[bool] = True

    weights: Weights = setting("uniform", "weight of a client in the mean update: the same for all, as in the paper, or by samples")
    pull: float = setting(0.1, "strength of the proximal term and of the dual (mu; the paper's alpha)", ge=0)

    def __post_init__(self) -> None:
        if not (self.schedule.rounds or self.schedule.peers):
            late = "each merge adds the mean dual, which runs away where clients answer to earlier models"
            raise ValueError(f"`{self.name}` works in `rounds`; under `{self.schedule.name}` {late}; `scaffold` works there")

    def start(self, x: Tensor, task: Task) -> Rows:
        return {"model": x, "dual": torch.zeros_like(x), "share": x.new_full((len(x), 1), 1 / task.nodes)}

    def start_local(self, x: Tensor) -> Rows:
        return {"dual": torch.zeros_like(x)}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        update = self.descended(received["model"], memory["dual"], local)
        return {"update": update}, {"dual": memory["dual"] + update}

    def descended(self, start: Tensor, dual: Tensor, local: Local, ascent: Ascent | None = None) -> Tensor:
        """What local training adds to the model it starts from, [m, d]."""
        return local.descend(start, anchor=start, pull=self.pull, dual=dual, ascent=ascent).sub_(start)

    def merge(self, state: Rows, inbox: Inbox, step: str = "update") -> Rows:
        dual = state["dual"] + inbox.sum(step, state["share"][0].expand_as(inbox.weight))
        return state | {"model": state["model"] + self.server_lr * self.mean(inbox) + dual, "dual": dual}
