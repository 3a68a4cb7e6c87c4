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
    """FedDyn whose gradients are taken a little uphill: the proximal term's bias is taken away by the dual ghat_i that a client keeps.

    Algorithm 1, in the paper's symbols and order. alpha is `blend`, rho `ascent`, 1/lambda `pull`, beta `relax`:

        client i of S_t, which hears w^t:  w_0 = w^t
          for k = 0 .. K - 1:
            g_1 = grad F_i(w_k)
            g_2 = grad F_i(w_k + rho g_1)
            g   = (1 - alpha) g_1 + alpha g_2
            w_{k+1} = w_k - eta (g - ghat_i + (w_k - w^t) / lambda)
          ghat_i <- ghat_i - (w_K - w^t) / lambda
          what_i = w_K - lambda ghat_i
        server:  w^{t+1} = mean over S_t of what_i

    Kept here is h_i = -lambda ghat_i, so that a client's line is h_i <- h_i + (w_K - w^t) and what_i = w_K + h_i; a message is less
    w^t. The defaults deviate as the official code does: rho g_1 / |g_1| (`normalised`), alpha = 1, and w^{t+1} = mean over S_t of w_K +
    mean over ALL clients of h_i, which reaches the optimum also when some are absent; `duals: active`, `normalised: false` are the
    paper's. With `relax` w_0 = w^t + beta (w^t - the client's last w_K), which then stands in w^t's place in both lines. `train.clip`
    is for gradient and dual. The official code's clip also contains -pull x w_t without + pull x w, so that it acts on a model of
    length clip / pull even where all gradients are 0; ours does not. What travels is a model down and an update up, or with `relax` two
    updates up: against the server's model, and against the relaxed start.
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
        w_t = w_0 = received["model"]
        if self.relax:
            w_0 = w_t + self.relax * (w_t - memory["last"])
        step = self.descended(w_0, memory["dual"], local, Ascent(self.ascent, self.normalised, self.blend))  # w_K - w_0
        h = memory["dual"] + step
        update = w_0 + step - w_t if self.relax else step  # w_K - w^t
        kept = {"dual": h} | ({"last": w_t + update} if self.relax else {})
        if self.duals == "active":
            return {"update": update + h}, kept  # what_i - w^t
        return {"update": update} | ({"step": step} if self.relax else {}), kept

    def merge(self, state: Rows, inbox: Inbox, step: str = "update") -> Rows:
        if self.duals == "active":
            return FedAvg.merge(self, state, inbox)  # mean over S_t of what_i
        return super().merge(state, inbox, "step" if self.relax else step)  # of w_K, and the mean of all h_i beside it
