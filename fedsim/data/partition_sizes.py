"""Partitions that differ in how many samples a node has, whatever their labels: shuffled and cut."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.draws import dirichlet
from fedsim.data.partition import Ints, Keys, Partition, dealt, filled, shuffled
from fedsim.settings.part import setting
from fedsim.settings.values import MOST_NODES

# N: samples, n: nodes


def cut(order: Ints, sizes: Ints) -> Ints:
    """int64 [N]: the node of each sample where node i has the next sizes[i] of the order; -1 for those beyond the last."""
    owner = np.full(len(order), -1, dtype=np.int64)
    owner[order[: sizes.sum()]] = np.repeat(np.arange(len(sizes)), sizes)
    return owner


class ByPosition(Partition):
    """Sizes in proportion to `units` of a node's position; a node that would be empty is given one sample of the largest.

    What flwr-datasets' IdToSizeFncPartitioner takes as a function is a class here: derive from it a frozen dataclass with `nodes`.
    """

    def units(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64 [n]: what nodes have in proportion to; `position` counts from 1 to n."""
        raise NotImplementedError

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        assert self.nodes is not None
        units = self.units(np.arange(1.0, self.nodes + 1))
        sizes = (units / units.sum() * len(labels)).astype(np.int64)  # cut off, as the package does
        sizes[-1] += len(labels) - sizes.sum()
        return filled(cut(shuffled(fold(key, "order"), len(labels)), sizes), self.nodes, fold(key, "fill"), self.least)


@dataclass(frozen=True)
class LinearSizes(ByPosition):
    """Node i of 1 to n has i parts of the samples; what rounding leaves over goes to the last."""

    name: ClassVar[str] = "linear"
    source: ClassVar[str] = "flwr-datasets, LinearPartitioner"

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)

    def units(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return position


@dataclass(frozen=True)
class SquareSizes(ByPosition):
    """Node i of 1 to n has i x i parts of the samples; what rounding leaves over goes to the last."""

    name: ClassVar[str] = "square"
    source: ClassVar[str] = "flwr-datasets, SquarePartitioner"

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)

    def units(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        return position**2


@dataclass(frozen=True)
class ExponentialSizes(ByPosition):
    """Node i of 1 to n has e^i parts of the samples; what rounding leaves over goes to the last, which has most of them."""

    name: ClassVar[str] = "exponential"
    source: ClassVar[str] = "flwr-datasets, ExponentialPartitioner"

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)

    def units(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        units: NDArray[np.float64] = np.exp(position - position[-1])  # the same proportions, and no overflow
        return units


@dataclass(frozen=True)
class Size(Partition):
    """Shuffled; node i has sizes[i] samples. What is left over belongs to no node."""

    source: ClassVar[str] = "flwr-datasets, SizePartitioner"

    sizes: tuple[int, ...] = setting(help="samples of each node, one entry a node", ge=1)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        return cut(shuffled(fold(key, "order"), len(labels)), checked_sizes(self.sizes, len(labels)))


def checked_sizes(sizes: tuple[int, ...], samples: int) -> Ints:
    """int64 [n]. Raises SettingError where there are none, or more than there are samples."""
    if not sizes:
        raise SettingError("task.partition.sizes", "one size a node is due, not an empty list")
    if sum(sizes) > samples:
        raise SettingError("task.partition.sizes", f"{sum(sizes)} samples in all, but there are only {samples} training samples")
    return np.array(sizes, dtype=np.int64)


@dataclass(frozen=True)
class Quantity(Partition):
    """Quantity skew: shuffled and cut in proportions drawn from Dirichlet(alpha, ..., alpha), so that labels are alike, sizes not."""

    source: ClassVar[str] = "Li et al. 2022, Federated Learning on Non-IID Data Silos: An Experimental Study, arXiv 2102.02079"

    alpha: float = setting(0.5, "small: a few nodes have nearly all; large: equal sizes", gt=0)
    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        shares = dirichlet(fold(key, "sizes"), self.alpha, self.nodes)
        return filled(dealt(shuffled(fold(key, "order"), len(labels)), shares), self.nodes, fold(key, "fill"), self.least)
