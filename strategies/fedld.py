"""FedLD: Zeng, Guo, Wang, Wang, Zhou, Qu 2024, "Federated Learning via Loss Decomposition" (MICCAI), https://arxiv.org/abs/2408.12300, as
in the authors' code: margin control in local training, and a server that follows the principal directions of the clients' updates."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.base.errors import SettingError
from fedsim.method.average import Mean, gram
from fedsim.method.inbox import Weights
from fedsim.task.task import Task
from strategies.fedavg import FedAvg

NONE, RIGHT_ANGLE = 1e-12, 1e-9  # s_j / s_1 of no direction, and a cosine that is 0, in float64

# t: tensors of a model, n: clients merged, k: directions kept


def spectrum(inner: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Lines 1 and 2: directions W_j = sum_i a_ij g_i of a tensor's updates g_i: |W_j|^2 [t, n], the largest first, and a [t, n, n].

    inner [t, n, n] has <g_i, g_m>, p [n] the clients' weights, whose sum is 1. The W_j are the eigenvectors of sum_i p_i g_i g_i'.
    """
    root = p.sqrt()
    s, e = torch.linalg.eigh(root[:, None] * inner * root)
    return s.flip(-1).clamp(min=0), root[:, None] * e.flip(-1)


def revised(inner: Tensor, p: Tensor, keep: float, orient: str) -> Tensor:
    """Lines 3 and 4, [t, n, n]: what of each g_m makes the revised r_i = |g_i| sum_{j <= k} s_j / S sign<g_i, W_j> W_j / |W_j|.

    A direction that the updates don't have counts nothing, and one at a right angle to g_i nothing for i.
    """
    k = max(1, int(len(p) * keep + 1e-9))
    s, a = spectrum(inner, p)
    share, found = s / s.sum(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny), s > NONE * s[..., :1]
    s, a, share = s[..., :k], a[..., :k], torch.where(found, share, 0)[..., :k]
    size, along, length = inner.diagonal(dim1=-2, dim2=-1).sqrt()[..., None], inner @ a, s.sqrt()[..., None, :]
    sign = torch.where(along.abs() > RIGHT_ANGLE * size * length, along.sign(), 0)
    if orient == "majority":  # of two equal halves neither is followed
        sign = sign.sum(-2, keepdim=True).sign()
    unit = torch.where(found[..., None, :k], a / length, 0)
    return size * (share[..., None, :] * sign) @ unit.mT


@dataclass(frozen=True)
class FedLd(FedAvg):
    """Clients' confidence costs something, and the server follows the principal directions of their updates.

    In the order of the authors' code, for each tensor of the model; lambda is `margin`, n clients are merged:

        client i:  L = CE(z, y) + lambda ln(1 + |P|_F^2)                    P: softmax(z) of the whole batch
                   g_i = w_i - w
        server:    1  M = 1/n G G' = U diag(s) E',  s_1 >= ... >= s_n       G: rows g_i
                   2  W_j = G' E_j,  j <= k = floor(n x keep)
                   3  the sign of W_j is that of most <g_i, W_j>            `orient: majority`; else it has no effect on 4
                   4  r_i = |g_i| sum_{j <= k} s_j / S sign<g_i, W_j> W_j / |W_j|,  S = s_1 + ... + s_n
                   5  w <- w + 1/n sum_i r_i                                times `server_lr`

    G is as wide as the tensor, so all is worked out from M alone: W_j = sum_i a_ij g_i, and so is each r_i. r_i keeps client i's length
    |g_i| for its signs along the directions W_j of all updates to a tensor, each by its share s_j / S of their energy: what few clients
    want is damped, and so is the whole step where they disagree (`server_lr` may make up for it). A tensor's first update is the plain
    mean, and so is that of a single number. The authors' code has a zero rate in the first round (so that the second is a plain mean
    too), sample weights that cancel and 0/0 for equal clients; here all learn from the first round, `weights: samples` counts a client
    like as many equal ones as it has samples, and directions of no length are skipped.
    """

    name: ClassVar[str] = "fedld"
    source: ClassVar[str] = "Zeng et al. 2024"
    one_hearer: ClassVar[bool] = True

    weights: Weights = setting("uniform", "weight of a client: the same for all, or its share of the samples merged")
    margin: float = setting(0.1, "strength of margin control (lambda); 0: cross entropy alone", ge=0)
    aggregate: Literal["principal", "mean"] = setting("principal", "how updates become one: along principal directions W_j, or as FedAvg")
    keep: float = setting(0.8, "share of the directions kept: k = floor(n x keep), at least 1", gt=0, le=1)
    orient: Literal["none", "majority"] = setting(
        "none", "each client's own sign along W_j (the authors' code), or that of most clients (a reconstruction of the paper's words)"
    )

    def __post_init__(self) -> None:
        if self.aggregate == "principal" and not isinstance(self.average, Mean):
            raise ValueError(f"`average: {self.average.name}` needs `aggregate: mean`; `principal` is an average of its own")
        if self.aggregate == "mean" and self.orient != "none":
            raise ValueError(f"`orient: {self.orient}` needs `aggregate: principal`; a mean has no directions")

    def loss(self, task: Task, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        local = super().loss(task, outputs, targets, weight)
        if not self.margin:
            return local
        squares = outputs.softmax(-1).square().sum(-1)
        return local + self.margin * torch.where(weight > 0, squares, 0).sum().log1p()  # of real samples, as one norm

    def start(self, x: Tensor, task: Task) -> Rows:
        """Beside the model, [h, t] whether each tensor has ever moved: 0 or 1."""
        if self.margin and not task.labelled:
            raise SettingError("strategy.margin", "margin control needs samples of one class each; `margin: 0` does without")
        return {"model": x} | ({"moved": x.new_zeros(len(x), len(task.layout.names))} if self.aggregate == "principal" else {})

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        if self.aggregate == "mean":
            return super().merge(state, inbox)
        p = inbox.weight.double() if self.weights == "samples" else torch.ones_like(inbox.weight, dtype=torch.float64)
        p = p / p.sum()
        tensors = [inbox["update"][:, part] for part in inbox.layout.slices.values()]
        inner = torch.stack([gram(g) for g in tensors]).nan_to_num(0, 0, 0)  # what diverged shows in the new model, as of any mean
        mix = p @ revised(inner, p, self.keep, self.orient)
        mean = (state["moved"][0] == 0) | torch.tensor([g.shape[1] == 1 for g in tensors], device=p.device)
        mix = torch.where(mean[:, None], p, mix)
        u = [one.to(g.dtype) @ g for one, g in zip(mix, tensors, strict=True)]  # line 5: 1/n sum_i r_i
        moved = torch.stack([part.count_nonzero() for part in u]).clamp(max=1).to(state["moved"])
        return state | {"model": state["model"] + self.server_lr * torch.cat(u), "moved": torch.maximum(state["moved"], moved)}
