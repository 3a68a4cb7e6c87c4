"""ZO-AdaMU: Jiang et al. 2024, "ZO-AdaMU Optimizer: Adapting Perturbation by the Momentum and Uncertainty in Zeroth-order Optimization"
(AAAI); the paper's rule, whose released code differs and does not run."""

# k: probes, d: parameters

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.method.inbox import State
from fedsim.task.task import Task
from strategies.one_byte import OneByte, together


@dataclass(frozen=True)
class ZoAdamu(OneByte):
    """Momentum m inside the perturbation, as one byte a probe: z1 ~ N(0, a), z2 ~ N(m, 1 - a), n = b1 z1 + (1 - b1) z2 is looked along,
    v = b2 z1^2 + (1 - b2) z2^2, and w <- w - lr/N sum p n / sqrt(v + 1e-8); m is the mean of the round's n, in the order of probes.

    a, b1 and b2 are 1 until round `first`, and go by a cosine to their last values at round `last` (the paper's constants in between are
    contradictory). The mean over probes is ours: the paper has one. Who joins by weights hears m too.
    """

    name: ClassVar[str] = "zo_adamu"
    source: ClassVar[str] = "Jiang et al. 2024"

    first: int = setting(0, "rounds before annealing (T1)", ge=0)
    last: int = setting(1000, "round from which values stay (T2)", ge=0)
    variance: float = setting(0.5, "last a: how much of the noise is fresh", ge=0, le=1)
    fresh: float = setting(0.9, "last b1: share of the fresh noise in the perturbation", ge=0, le=1)
    square: float = setting(0.01, "last b2: share of the fresh noise in the squares", ge=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last < self.first:
            raise SettingError("strategy.last", f"{self.last} is before `first`, {self.first}")

    def start(self, x: Tensor, task: Task) -> State:
        return super().start(x, task) | {"momentum": torch.zeros_like(x)}

    def broadcast(self, state: Rows) -> Rows:
        return state

    def annealed(self, round: int) -> tuple[float, float, float]:
        """a, b1 and b2 of a round; a pure function of it."""
        part = 0.0 if round < self.first else 1.0 if round >= self.last else (round - self.first) / (self.last - self.first)
        left = (1 + math.cos(math.pi * part)) / 2
        a, b1, b2 = (end + (1 - end) * left for end in (self.variance, self.fresh, self.square))
        return a, b1, b2

    def directions(self, key: Tensor, state: Rows, round: int) -> tuple[Tensor, Tensor]:
        m, (a, b1, b2) = state["momentum"], self.annealed(round)
        z1, z2 = (normal(fold(key, word), len(m)).to(m.dtype) for word in ("first", "second"))
        z1, z2 = z1 * a**0.5, m + z2 * (1 - a) ** 0.5
        n = b1 * z1 + (1 - b1) * z2
        return n, n / (b2 * z1**2 + (1 - b2) * z2**2 + 1e-8).sqrt()

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        keys, one, mean = self.keys(inbox.shared, inbox.sender), {name: rows[0] for name, rows in state.items()}, state["momentum"][0] * 0
        for _, key in together(keys, keys, len(mean)):
            for n in self.directions(key, one, inbox.round)[0]:
                mean.add_(n, alpha=1 / len(keys))
        return super().merge(state, inbox) | {"momentum": mean[None]}
