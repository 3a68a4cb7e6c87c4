"""Who is asked: cohorts with known probabilities."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.keys import below, bits, bits_array, fold, uniform
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Floats, PerNode, Population, Share

LARGE, SPARSE = 4096, 32  # see `few`


class Cohort(NamedTuple):
    """Nodes to send to, int64 [m] rising, and the probability each had of being asked, float64 [m]; None where nobody sampled."""

    nodes: NDArray[np.int64]
    chance: Floats | None = None


def lowest(score: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Where the `count` lowest scores stand, rising."""
    if count >= len(score):
        return np.arange(len(score))
    return np.sort(np.argpartition(score, count - 1)[:count]) if count else np.arange(0)


def few(count: int, free: int, nodes: int) -> bool:
    """Are lots of `count` of the free nodes drawn number by number, which costs nothing over the rest? So few of so many: a fixed rule."""
    return nodes >= LARGE and SPARSE * count <= free


class Free:
    """Nodes that are there and have no job: `job` int64 [nodes] is below 0, as it is but for `busy`; `present` bool [nodes], None: all."""

    def __init__(self, job: NDArray[np.int64], busy: int, present: NDArray[np.bool_] | None = None) -> None:
        self.job, self.busy, self.present = job, busy, present

    def __len__(self) -> int:
        return len(self.job) - self.busy if self.present is None else len(self.nodes)

    @cached_property
    def nodes(self) -> NDArray[np.int64]:
        """int64, rising."""
        idle = self.job < 0
        return np.flatnonzero(idle if self.present is None else idle & self.present)

    def lot(self, count: int, key: Tensor, turn: int) -> NDArray[np.int64]:
        """`count` of them, or all where there are no more; rising, and each set of them equally likely over keys and turns.

        Those with the lowest keyed scores; a few of very many are instead the first ones that come up among keyed numbers.
        """
        if count <= 0:
            return np.arange(0)
        if self.present is None and few(count, len(self), len(self.job)):
            return self._first(count, fold(int(key), turn))
        if count >= len(self):
            return self.nodes
        score = bits_array(int(fold(int(key), turn)), len(self.job))
        return self.nodes[lowest(score[self.nodes], count)]

    def _first(self, count: int, key: Tensor) -> NDArray[np.int64]:
        draws = 2 * count + 16
        while True:
            drawn = below(key, draws, len(self.job)).numpy()
            nodes, first = np.unique(drawn[self.job[drawn] < 0], return_index=True)
            if len(nodes) >= count:
                return np.sort(nodes[np.argsort(first)[:count]])
            draws *= 2


class Sampling(Part):
    """Draws a cohort of about `count` from those who are free; a pure function of the key."""

    slot: ClassVar[str] = "sampling"
    sized: ClassVar[bool] = True  # the schedule's `cohort` says how many
    coins: ClassVar[bool] = False  # each node is drawn by its own coin, whatever becomes of the others (Poisson sampling)

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        """Probability of each free node, float64 [len(free)]; `key` is the same in all rounds."""
        raise NotImplementedError

    def draw(self, free: Free, count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        """Each free node by its probability; `turn` is the round."""
        raise NotImplementedError


@dataclass(frozen=True)
class UniformSampling(Sampling):
    """Every free node with the same probability, without replacement."""

    name: ClassVar[str] = "uniform"

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        return np.full(len(free), min(1.0, count / max(1, len(free))))

    def draw(self, free: Free, count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        nodes = free.lot(count, key, turn)
        return Cohort(nodes, np.full(len(nodes), min(1.0, count / max(1, len(free)))))


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

    def draw(self, free: Free, count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        chance = self.chances(free.nodes, count, share, people, key)
        order = np.argsort(bits(fold(key, turn, "order"), people.nodes).numpy()[free.nodes])
        start = float(uniform(fold(key, turn, "start"), 1)[0])
        steps = np.floor(np.cumsum(chance[order]) + start + 1e-9).astype(np.int64)
        at = np.sort(order[np.diff(steps, prepend=0) > 0])
        return Cohort(free.nodes[at], chance[at])


@dataclass(frozen=True)
class BernoulliSampling(Sampling):
    """Every free node by its own coin; the size of a cohort varies. A drawn chance above 1 is 1."""

    name: ClassVar[str] = "bernoulli"
    sized: ClassVar[bool] = False
    coins: ClassVar[bool] = True

    chance: PerNode[Share] = setting(help="probability of being asked", ge=0, le=1)

    def chances(self, free: NDArray[np.int64], count: int, share: Floats, people: Population, key: Tensor) -> Floats:
        return np.minimum(self.chance.floats(people, fold(key, "chance"))[free], 1.0)

    def draw(self, free: Free, count: int, share: Floats, people: Population, key: Tensor, turn: int = 0) -> Cohort:
        chance = self.chances(free.nodes, count, share, people, key)
        asked = uniform(fold(key, turn, torch.from_numpy(free.nodes)), 1)[:, 0].double().numpy() < chance
        return Cohort(free.nodes[asked], chance[asked])
