"""Partitions that differ in which labels a node has: label quantity, a drawn mix a node, and given shares of each label."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import bits, fold, normal, uniform
from fedsim.data.draws import log_gamma
from fedsim.data.partition import Ints, Keys, Partition, shuffled
from fedsim.data.partition_sizes import checked_sizes
from fedsim.settings.part import setting
from fedsim.settings.values import MOST_NODES

# N: samples, n: nodes, C: classes found, R: requests (one a sample that a node still wants)


def grouped(labels: Ints, key: Tensor) -> tuple[Ints, Ints, Ints, Ints]:
    """The classes found [C], the class of each sample as its place among them [N], sizes [C], and samples by class, each by lot [N]."""
    found, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return found, place.reshape(-1), sizes, np.lexsort((shuffled(key, len(labels)), place.reshape(-1)))


def rank_within(group: Ints, groups: int) -> Ints:
    """int64 as `group`: how many equal entries stand before each one."""
    order, sizes = np.argsort(group, kind="stable"), np.bincount(group, minlength=groups)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


@dataclass(frozen=True)
class LabelQuantity(Partition):
    """Each node has exactly `labels` labels: one in turn (node i has class i mod classes), the others by lot; a class is cut evenly.

    As flwr-datasets' PathologicalPartitioner in its mode `first-deterministic`.
    """

    source: ClassVar[str] = "Li et al. 2022, Federated Learning on Non-IID Data Silos: An Experimental Study, arXiv 2102.02079"
    by_label: ClassVar[bool] = True

    nodes: int = setting(10, "number of nodes, at least as many as classes", ge=1, le=MOST_NODES)
    labels: int = setting(2, "labels a node has", ge=1)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        found, place, sizes, order = grouped(labels, fold(key, "order"))
        self._check(len(found))
        has = self._classes(len(found), key)
        holders = has.sum(0)
        if (short := np.flatnonzero(holders > sizes)).size:
            few = short[0]
            text = f"{holders[few]} nodes were to share class {found[few]}, which has {sizes[few]} samples: fewer nodes or labels are due"
            raise SettingError("task.partition.labels", text)
        node_of_class = np.argsort(~has.T, axis=1, kind="stable")  # [C, n]: its holders first, in the order of their ids
        owner = np.empty(len(labels), dtype=np.int64)
        sorted_class = place[order]
        rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        owner[order] = node_of_class[sorted_class, _even(rank, sizes[sorted_class], holders[sorted_class])]
        return owner

    def _check(self, classes: int) -> None:
        if self.labels > classes:
            raise SettingError("task.partition.labels", f"{self.labels} labels a node, but the data have {classes}")
        if self.nodes < classes:
            text = f"{self.nodes} nodes for {classes} classes: a class could have no node; `pathological` shares all among few nodes"
            raise SettingError("task.partition.nodes", text)

    def _classes(self, found: int, key: Tensor) -> NDArray[np.bool_]:
        """bool [n, C]: which classes each node has."""
        score = bits(fold(key, "labels", torch.arange(self.nodes)), found).numpy()
        own = np.arange(self.nodes) % found
        score[np.arange(self.nodes), own] = np.iinfo(np.int64).min  # its own is its first
        has = np.zeros((self.nodes, found), dtype=np.bool_)
        np.put_along_axis(has, np.argsort(score, axis=1, kind="stable")[:, : self.labels], True, axis=1)
        return has


def _even(rank: Ints, size: Ints, parts: Ints) -> Ints:
    """The part, 0 to parts - 1, of the rank-th of `size` items cut as evenly as can be, larger parts first; elementwise."""
    least, larger = size // parts, size % parts
    edge = larger * (least + 1)
    after: Ints = larger + (rank - edge) // np.maximum(least, 1)
    return np.where(rank < edge, rank // (least + 1), after)


@dataclass(frozen=True)
class InnerDirichlet(Partition):
    """Each node draws its mix of labels from Dirichlet(alpha, ..., alpha), and its samples by that mix while the classes last.

    Samples that want a class of which none is left draw again from the node's mix over the classes that are; `dirichlet` instead cuts
    each class over the nodes, so that sizes differ too.
    """

    source: ClassVar[str] = "Hsu et al. 2019, arXiv 1909.06335; Acar et al. 2021, FedDyn; flwr-datasets, InnerDirichletPartitioner"
    by_label: ClassVar[bool] = True

    alpha: float = setting(help="small: few classes a node; large: the classes alike", gt=0)
    nodes: int = setting(10, "number of nodes, of equal sizes where `sizes` is not set", ge=1, le=MOST_NODES)
    sizes: tuple[int, ...] | None = setting(None, "samples of each node, one entry a node", ge=1)

    def __post_init__(self) -> None:
        if self.sizes:
            object.__setattr__(self, "nodes", len(self.sizes))

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        _, _, left, order = grouped(labels, fold(key, "order"))
        ends = np.cumsum(left)
        sizes = np.diff(np.arange(self.nodes + 1) * len(labels) // self.nodes)
        if self.sizes is not None:
            sizes = checked_sizes(self.sizes, len(labels))
        mixes = log_gamma(fold(key, "mix"), self.alpha, self.nodes * len(left)).reshape(self.nodes, len(left))
        request = np.repeat(np.arange(self.nodes), sizes)[shuffled(fold(key, "lot"), int(sizes.sum()))]
        owner, turn = np.full(len(labels), -1, dtype=np.int64), 0
        while len(request):  # a class is used up in every turn but the last
            wanted = _drawn(mixes[request], left > 0, fold(key, "draw", turn))
            rank = rank_within(wanted, len(left))
            served = rank < left[wanted]
            owner[order[(ends - left)[wanted[served]] + rank[served]]] = request[served]
            left = left - np.bincount(wanted[served], minlength=len(left))
            request, turn = request[~served], turn + 1
        return owner


def _drawn(logs: NDArray[np.float64], open_: NDArray[np.bool_], key: Tensor) -> Ints:
    """int64 [R]: a class for each row of logarithms of weights [R, C], among the open ones [C]."""
    logs = np.where(open_, logs, -np.inf)
    weights = np.exp(logs - logs.max(1, keepdims=True))
    ends = weights.cumsum(1)
    draw = uniform(fold(key, torch.arange(len(logs))), 1)[:, 0].double().numpy() * ends[:, -1]
    drawn: Ints = (ends <= draw[:, None]).sum(1)
    return drawn


@dataclass(frozen=True)
class Distribution(Partition):
    """Node i has the labels i, i + 1, ..., i + labels - 1 (mod classes), and of each the next of that class's `shares`.

    Without `shares` they are drawn: exp(sigma x normal). `least` samples are set aside first for each node and label that it has.
    """

    source: ClassVar[str] = "Li et al. 2020, FedProx (its MNIST: 1,000 nodes, 2 labels, sigma 2); flwr-datasets, DistributionPartitioner"
    by_label: ClassVar[bool] = True

    nodes: int = setting(10, "number of nodes, a multiple of the number of classes", ge=1, le=MOST_NODES)
    labels: int = setting(2, "labels a node has", ge=1)
    shares: tuple[tuple[float, ...], ...] | None = setting(None, "a row a class, nodes x labels / classes numbers each", ge=0)
    sigma: float = setting(2.0, "deviation of the logarithm where shares are drawn", ge=0)
    least: int = setting(1, "samples of each of its labels that a node has at least", ge=0, kw_only=True)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        found, _, sizes, order = grouped(labels, fold(key, "order"))
        shares = self._shares(len(found), fold(key, "shares"))
        columns = shares.shape[1]
        if (short := np.flatnonzero(sizes < columns * self.least)).size:
            few = short[0]
            text = f"{columns} nodes with {self.least} samples each of class {found[few]}, which has {sizes[few]}"
            raise SettingError("task.partition.least", text)
        ends = np.rint(shares.cumsum(1) / shares.sum(1, keepdims=True) * (sizes - columns * self.least)[:, None]).astype(np.int64)
        counts = np.diff(ends, axis=1, prepend=0) + self.least
        # Node i takes the next column of each of its labels: labels in turn, so those before i that have it count.
        node = np.repeat(np.arange(self.nodes), self.labels)
        label = (node + np.tile(np.arange(self.labels), self.nodes)) % len(found)
        holder = np.empty((len(found), columns), dtype=np.int64)
        holder[label, rank_within(label, len(found))] = node
        owner = np.empty(len(labels), dtype=np.int64)
        owner[order] = np.repeat(holder.reshape(-1), counts.reshape(-1))
        return owner

    def _shares(self, classes: int, key: Tensor) -> NDArray[np.float64]:
        """float64 [C, nodes x labels / C]"""
        if self.labels > classes:
            raise SettingError("task.partition.labels", f"{self.labels} labels a node, but the data have {classes}")
        if self.nodes % classes:
            raise SettingError("task.partition.nodes", f"{self.nodes} is no multiple of the {classes} classes")
        columns = self.nodes * self.labels // classes
        if self.shares is None:
            return np.exp(self.sigma * normal(fold(key, torch.arange(classes)), columns).double().numpy())
        if len(self.shares) != classes or any(len(row) != columns for row in self.shares):
            text = f"{classes} rows (one a class) of {columns} numbers are due, not {len(self.shares)} of {len(self.shares[0])}"
            raise SettingError("task.partition.shares", text)
        shares = np.array(self.shares)
        if (shares.sum(1) == 0).any():
            raise SettingError("task.partition.shares", f"row {int(np.flatnonzero(shares.sum(1) == 0)[0])} is 0 throughout")
        return shares
