"""Who is asked: cohorts with known probabilities."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.keys import bits, fold, uniform
from fedsim.part import Part, setting
from fedsim.values import Floats, PerNode, Population, Share


class Cohort(NamedTuple):
    """Nodes to send to, int64 [m] rising, and the probability each had of being asked, float64 [m]; None where nobody sampled."""

    nodes: NDArray[np.int64]
    chance: Floats | None = None


def lowest(score: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where the `count` lowest scores stand, rising."""
    if count >= len(score):
        return np.arange(len(score))
    return np.sort(np.argpartition(score, count - 1)[:count]) if count else np.arange(0)


class Sampling(Part):
    """Draws a cohort of about `count` from those who are free; a pure function of the key."""

    slot: ClassVar[str] = "sampling"
    sized: ClassVar[bool] = True  # the schedule's `cohort` says how many

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        """Probability of each free node, float64 [len(free)]; `key` is the same in all rounds."""
        raise NotImplementedError

    def draw(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        """Each free node by its probability; `turn` is the round."""
        raise NotImplementedError


@dataclass(frozen=True)
class UniformSampling(Sampling):
    """Every free node with the same probability, without replacement."""

    name: ClassVar[str] = "uniform"

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        return np.full(len(free), min(1.0, count / max(1, len(free))))

    def draw(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        at = lowest(bits(fold(key, turn), people.nodes).numpy()[free], count)
        return Cohort(free[at], self.chances(free, count, share, people, key)[at])


@dataclass(frozen=True)
class Weighted(Sampling):
    """By share of the data, without replacement, inclusion probabilities exactly proportional up to 1 (systematic sampling, Madow 1949)."""

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        size, chance = share[free], np.zeros(len(free))
        sure = np.zeros(len(free), dtype=bool)
        while True:  # nodes whose proportional chance passes 1 are taken for sure, the rest share what is left
            rest = max(0, min(count, len(free)) - int(sure.sum()))
            chance = np.where(sure, 1.0, size * (rest / max(size[~sure].sum(), 1e-300)))
            if not (chance[~sure] > 1).any():
                return chance
            sure |= chance >= 1

    def draw(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        chance = self.chances(free, count, share, people, key)
        order = np.argsort(bits(fold(key, turn, "order"), people.nodes).numpy()[free])
        start = float(uniform(fold(key, turn, "start"), 1)[0])
        steps = np.floor(np.cumsum(chance[order]) + start + 1e-9).astype(np.int64)
        at = np.sort(order[np.diff(steps, prepend=0) > 0])
        return Cohort(free[at], chance[at])


@dataclass(frozen=True)
class BernoulliSampling(Sampling):
    """Every free node by its own coin; the size of a cohort varies."""

    name: ClassVar[str] = "bernoulli"
    sized: ClassVar[bool] = False

    chance: PerNode[Share] = setting(help="probability of being asked", ge=0, le=1)

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        return self.chance.floats(people, fold(key, "chance"))[free]

    def draw(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        chance = self.chances(free, count, share, people, key)
        asked = uniform(fold(key, turn, torch.from_numpy(free)), 1)[:, 0].double().numpy() < chance
        return Cohort(free[asked], chance[asked])
