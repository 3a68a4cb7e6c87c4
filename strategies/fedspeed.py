"""FedSpeed: Sun, Shen, Huang, Ding, Tao 2023, "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization
Accuracy" (ICLR), https://arxiv.org/abs/2302.10429, Algorithm 1: FedDyn with gradients a little uphill."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fedsim import Inbox, Local, Rows, setting
from fedsim.method.local import Ascent
from fedsim.task.task import Task
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn


@dataclass(frozen=True)
class FedSpeed(FedDyn):
    """g1 at w, g2 at w + ascent x g1 / |g1|; w <- w - lr ((1 - blend) g1 + blend g2 + pull (w - w_t + h_i)); then h_i += update.

    pull is the paper's 1/lambda, h_i its -lambda ghat_i. By default the rules of the official code, in which the server adds the mean
    of all clients' duals and reaches the optimum also when some are absent; `duals: active`, `normalised: false` are the paper's.
    `train.clip` is for gradient and dual. The official code's clip also contains -pull x w_t without + pull x w, so that it acts on a
    model of length clip / pull even where all gradients are 0; ours does not. What travels is a model down and an update up, or with
    `relax` two updates up: against the server's model, and against the relaxed start.
    """

    name: ClassVar[str] = "fedspeed"
    source: ClassVar[str] = "Sun et al. 2023"

    pull: float = setting(0.1, "strength of the proximal term and of the dual (mu = 1/lambda)", ge=0)
    ascent: float = setting(0.1, "length of the ascent step (rho); 0 is FedDyn", ge=0)
    normalised: bool = setting(True, "divide the first gradient by its length, as the official code, or not, as the paper")
    blend: float = setting(1.0, "share of the second gradient (alpha); 1 in the official code", ge=0, le=1)
    duals: Literal["all", "active"] = setting("all", "whose duals the server's mean is of: the official code's rule, or the paper's")
    relax: float = setting(0.0, "beta: local training starts, and is held, at w_t + beta (w_t - the client's last local model)", ge=0)

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return 2 if self.ascent > 0 and self.blend > 0 else 1

    def start(self, x: Tensor, task: Task) -> Rows:
        return super().start(x, task) if self.duals == "all" else {"model": x}

    def start_local(self, x: Tensor) -> Rows:
        return super().start_local(x) | ({"last": x} if self.relax else {})

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        model = start = received["model"]
        if self.relax:
            start = model + self.relax * (model - memory["last"])
        step = self.descended(start, memory["dual"], local, Ascent(self.ascent, self.normalised, self.blend))
        dual, update = memory["dual"] + step, start + step - model if self.relax else step
        sent = {"update": update + dual} if self.duals == "active" else {"update": update} | ({"step": step} if self.relax else {})
        return sent, {"dual": dual} | ({"last": model + update} if self.relax else {})

    def merge(self, state: Rows, inbox: Inbox, step: str = "update") -> Rows:
        if self.duals == "active":
            return FedAvg.merge(self, state, inbox)
        return super().merge(state, inbox, "step" if self.relax else step)
