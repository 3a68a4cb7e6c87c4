"""AD-PSGD: Lian, Zhang, Zhang, Liu 2018, "Asynchronous Decentralized Parallel Stochastic Gradient Descent" (ICML),
https://arxiv.org/abs/1710.06952, Algorithm 1: D-SGD in pairs, without a barrier."""

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim import Schedule
from fedsim.schedule import Pairwise
from strategies.dsgd import Dsgd


@dataclass(frozen=True)
class AdPsgd(Dsgd):
    """A peer that is done averages with one neighbour, then adds its update, made at the model it had when it began."""

    name: ClassVar[str] = "adpsgd"
    source: ClassVar[str] = "Lian et al. 2018"

    schedule: Schedule = field(default_factory=Pairwise)
