"""Epidemic learning: De Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, Sharma 2023, "Epidemic Learning: Boosting Decentralized Learning
with Randomized Communication" (NeurIPS), https://arxiv.org/abs/2310.01972, Algorithm 1: D-SGD that sends to others by lot."""

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim import Schedule
from fedsim.schedule import Gossip
from fedsim.topology.changing import Epidemic
from strategies.dsgd import Dsgd


@dataclass(frozen=True)
class EpidemicLearning(Dsgd):
    """x <- x + update; each sends x to s others by lot (topology `epidemic`: `sends`, `oracle`) and averages what it hears with its own."""

    name: ClassVar[str] = "epidemic"
    source: ClassVar[str] = "De Vos et al. 2023"

    schedule: Schedule = field(default_factory=lambda: Gossip(Epidemic()))
