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
    """Evolution strategies: pairs of members W + s sigma A B'/sqrt(r), s = 1 and -1, are judged forward only; their fitness travels.

    Fitness R is minus the loss of a minibatch that a machine's members share in a round; noise is rebuilt from round and pair. With
    D = sum over members of F s A B'/sqrt(r): textbook W += lr / (N sigma) D; code W += lr sigma / sqrt(N) D. A pair that does not
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
        """[m, P]: F of + less F of -, of each pair."""
        if "better" in inbox.parts:
            return inbox["better"]
        fitness = inbox["fitness"]
        fitness = ranks(fitness) if self.shaping == "ranks" else fitness / (fitness.var(correction=0) + 1e-5).sqrt()
        return fitness[..., 0] - fitness[..., 1]

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        better = self.shaped(inbox)
        members, lr = 2 * better.numel(), float(self.lr.at(np.array([inbox.round]))[0])
        factor = lr / (members * self.sigma) if self.step == "textbook" else lr * self.sigma / members**0.5
        x, keys = state["model"], self.keys(inbox.shared, inbox.sender).flatten()
        return state | {"model": x + factor * self.noise(inbox.layout).sum(keys, better.flatten().to(x.dtype))}


def ranks(fitness: Tensor) -> Tensor:
    """Places in rising order, 0 to N - 1, as -1/2 to 1/2; equal ones share the mean of their places. [m, P, 2] as fitness."""
    ordered = fitness.flatten().sort().values
    below, upto = (torch.searchsorted(ordered, fitness.contiguous(), right=right) for right in (False, True))
    places: Tensor = (below + upto - 1).to(fitness.dtype) / 2
    return places / (fitness.numel() - 1) - 0.5
