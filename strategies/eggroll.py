"""EGGROLL: Sarkar, Fellows, Duque et al. 2025, "Evolution Strategies at the Hyperscale", https://arxiv.org/abs/2511.16652."""

# m: machines, P: pairs a machine, Q: pairs merged, N = 2 Q: members merged, d: parameters

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.base.rows import Layout
from fedsim.method.evolution import Evolution
from fedsim.method.population import Noise
from fedsim.settings.values import Constant, Curve


@dataclass(frozen=True)
class Eggroll(Evolution):
    """Evolution strategies whose noise is of low rank: members are judged forward only, and their fitness travels, a number each.

    A round, in the paper's symbols and order; r is `rank`, alpha `lr`, i runs over N members, two a pair with s_i = 1 and -1:

        machine:  E_i = 1 / sqrt(r) A_i B_i'            A_i, B_i normal, the same for both members of a pair
                  R_i = fitness of W + sigma s_i E_i    minus the loss of a minibatch that a machine's members share
        all:      F_i = R_i as `shaping` has it
                  W <- W + alpha / (N sigma) sum_i F_i s_i E_i

    Noise is never sent: all rebuild it from round and pair. Both members of a pair have the same E_i, so that the sum is over pairs
    of (F_+ - F_-) E. `step: code` has alpha sigma / sqrt(N) in place of alpha / (N sigma), as the released code. A pair that does not
    arrive is left out, and N counts those that did.
    """

    name: ClassVar[str] = "eggroll"
    source: ClassVar[str] = "Sarkar et al. 2025"

    rank: int | Literal["full"] = setting(1, "of the noise of matrices (r); full: all numbers normal, the plain evolution strategy", ge=1)
    sigma: float = setting(0.05, "size of the noise", gt=0)
    step: Literal["textbook", "code"] = setting("textbook", "divided by N sigma, or times sigma / sqrt(N) as the released code has it")
    shaping: Literal["none", "zscore", "ranks", "sign"] = setting(
        "none",
        "F: R itself; less a mean (of all or of a group, which cancels in a pair), by the deviation over all members; R's rank among all, "
        "-1/2 to 1/2; or 1, 0 or -1, a pair's comparison",
    )
    lr: Curve = setting(Constant(0.1), "step, by round if it changes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trained(self.population, self.batch, self.lr)

    @property
    def size(self) -> float:
        return self.sigma

    def noise(self, layout: Layout) -> Noise:
        return Noise(layout, None if self.rank == "full" else self.rank)

    def said(self, fitness: Tensor) -> Rows:
        if self.shaping in ("zscore", "ranks"):
            return {"fitness": fitness}
        better = fitness[..., 0] - fitness[..., 1]
        return {"better": better if self.shaping == "none" else better.sign()}

    def shaped(self, inbox: Inbox) -> Tensor:
        """[m, P]: F_+ - F_- of each pair."""
        if "better" in inbox.parts:
            return inbox["better"]
        R = inbox["fitness"]
        F = ranks(R) if self.shaping == "ranks" else R / (R.var(correction=0) + 1e-5).sqrt()
        return F[..., 0] - F[..., 1]

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        F, W = self.shaped(inbox), state["model"]
        N, alpha = 2 * F.numel(), float(self.lr.at(np.array([inbox.round]))[0])
        factor = alpha / (N * self.sigma) if self.step == "textbook" else alpha * self.sigma / N**0.5
        keys = self.keys(inbox.shared, inbox.sender).flatten()
        return state | {"model": W + factor * self.noise(inbox.layout).sum(keys, F.flatten().to(W.dtype))}  # sum over pairs of F E


def ranks(fitness: Tensor) -> Tensor:
    """Places in rising order, 0 to N - 1, as -1/2 to 1/2; equal ones share the mean of their places. [m, P, 2] as fitness."""
    ordered = fitness.flatten().sort().values
    below, upto = (torch.searchsorted(ordered, fitness.contiguous(), right=right) for right in (False, True))
    places: Tensor = (below + upto - 1).to(fitness.dtype) / 2
    return places / (fitness.numel() - 1) - 0.5
