"""Partitions: which node has each sample. Arrays over samples; nothing loops over nodes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import below, fold, normal, permutation
from fedsim.data.draws import dirichlet
from fedsim.settings.part import Part, setting
from fedsim.settings.values import MOST_NODES

# N: samples, n: nodes, S: shards

Ints = NDArray[np.int64]
Keys = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Partition(Part):
    """`split` gives each sample its node. `nodes` is how many there are; None means the highest that occurs, plus one.

    `by_label`: it makes sense only where targets are classes. Partitions whose sizes are drawn give nodes below `least` samples of the
    largest; where what a node has is fixed by something else, a node with fewer is an error.
    """

    slot: ClassVar[str] = "partition"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.data.partition_sizes", "fedsim.data.partition_labels", "fedsim.data.partition_keys")
    default: ClassVar[str] = "iid"
    by_label: ClassVar[bool] = False
    abstract: ClassVar[bool] = True
    nodes = None  # type: int | None  # no field, so that those below may say their own where they like

    least: int = setting(1, "fewest samples of a node", ge=1)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        """int64 [N]: node of each sample, -1 for none. `labels` int64 [N]; `keys` natural ids by name, [N] each."""
        raise NotImplementedError

    def draws(self, key: Tensor) -> Ints | None:
        """int64 [n]: how many samples each node draws from all, shared with others; None where `split` gives each sample its node."""
        return None

    def split_test(self, keys: Keys, owner: Ints, test_keys: Keys) -> Ints | None:
        """int64 [M]: node of each test sample, -1 for none; None where test samples belong to no node. `owner` is what `split` gave."""
        return None


def shuffled(key: Tensor, count: int) -> Ints:
    return permutation(key, count).numpy()


def dealt(order: Ints, weights: NDArray[np.float64]) -> Ints:
    """int64 [N]: `order` cut into runs in proportion to weights [n], each boundary rounded to a whole sample; sizes add up to N."""
    ends = np.rint(np.cumsum(weights) / weights.sum() * len(order))
    owner = np.empty(len(order), dtype=np.int64)
    owner[order] = np.minimum(np.searchsorted(ends, np.arange(len(order)), side="right"), len(weights) - 1)
    return owner


def filled(owner: Ints, nodes: int, key: Tensor, least: int = 1) -> Ints:
    """The same, but each node with fewer than `least` samples is given as many as it lacks, by lot, of the largest nodes at that time.

    There are nodes x least samples or more.
    """
    sizes = np.bincount(owner, minlength=nodes)
    small = np.repeat(np.arange(nodes), np.maximum(least - sizes, 0))
    if not len(small):
        return owner
    level = _level(sizes, len(small), least)
    gifts = np.maximum(sizes - level, 0)
    gifts[np.flatnonzero(sizes >= level)[: len(small) - gifts.sum()]] += 1
    lot = shuffled(key, len(owner))
    by_owner = np.lexsort((lot, owner))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = by_owner[place < gifts[owner[by_owner]]]
    owner = owner.copy()
    owner[moved[np.argsort(lot[moved])]] = small
    return owner


def _level(sizes: Ints, wanted: int, least: int) -> int:
    """The least size, `least` or more, such that cutting all larger nodes down to it frees at most `wanted` samples."""
    low, high = least, int(sizes.max())
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if np.maximum(sizes - middle, 0).sum() <= wanted else (middle + 1, high)
    return low


@dataclass(frozen=True)
class Iid(Partition):
    """Shuffled and cut into equal sizes (they differ by one at most)."""

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        owner = np.empty(len(labels), dtype=np.int64)
        owner[shuffled(key, len(labels))] = np.arange(len(labels)) * self.nodes // max(1, len(labels))
        return owner


@dataclass(frozen=True)
class LogNormalSizes(Partition):
    """Shuffled and cut into sizes in proportion to exp(sigma x normal)."""

    name: ClassVar[str] = "log_normal"

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)
    sigma: float = setting(1.0, "deviation of the logarithm of a node's size", ge=0)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        sizes = np.exp(self.sigma * normal(fold(key, "sizes"), self.nodes).double().numpy())
        return filled(dealt(shuffled(fold(key, "order"), len(labels)), sizes), self.nodes, fold(key, "fill"), self.least)


@dataclass(frozen=True)
class Dirichlet(Partition):
    """Each class is cut over the nodes in proportions drawn from Dirichlet(alpha, ..., alpha), so sizes differ too.

    Hsu et al. 2019 instead draw proportions of classes for each node, with equal sizes.
    """

    source: ClassVar[str] = "Yurochkin et al. 2019, Bayesian Nonparametric Federated Learning of Neural Networks, arXiv 1905.12022"
    by_label: ClassVar[bool] = True

    alpha: float = setting(help="small: few classes a node; large: near iid", gt=0)
    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            drawn = fold(key, "class", int(label))
            members = np.flatnonzero(labels == label)
            order = shuffled(fold(drawn, "order"), len(members))
            owner[members] = dealt(order, dirichlet(fold(drawn, "proportions"), self.alpha, self.nodes))
        return filled(owner, self.nodes, fold(key, "fill"), self.least)


@dataclass(frozen=True)
class Pathological(Partition):
    """Each node has samples of `classes` classes, by lot; a class is cut evenly over its nodes. Every class has a node."""

    by_label: ClassVar[bool] = True

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)
    classes: int = setting(2, "classes a node has", ge=1)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        found = np.unique(labels)
        if not len(found) / self.nodes <= self.classes <= len(found):
            raise SettingError(
                "task.partition.classes", f"{self.nodes} nodes of {self.classes} classes can't share {len(found)} classes among them"
            )
        has = self._classes(len(found), key)
        owner = np.empty(len(labels), dtype=np.int64)
        for place, label in enumerate(found):
            members = np.flatnonzero(labels == label)
            order = shuffled(fold(key, "class", int(label)), len(members))
            owner[members] = dealt(order, has[:, place].astype(np.float64))
        return filled(owner, self.nodes, fold(key, "fill"))

    def _classes(self, found: int, key: Tensor) -> NDArray[np.bool_]:
        """[n, classes found]: the first nodes of a lot go through all classes once, so that none is left over; the others draw."""
        chosen = permutation(fold(key, "draw", torch.arange(self.nodes)), found)[:, : self.classes].numpy()
        first = -(-found // self.classes)
        lap = (np.arange(first)[:, None] * self.classes + np.arange(self.classes)) % found
        chosen[shuffled(fold(key, "first"), self.nodes)[:first]] = shuffled(fold(key, "lap"), found)[lap]
        has = np.zeros((self.nodes, found), dtype=np.bool_)
        np.put_along_axis(has, chosen, True, axis=1)
        return has


@dataclass(frozen=True)
class Shards(Partition):
    """Samples sorted by label are cut into nodes x each shards; node i has shards i, i + nodes, ..., or as dealt by lot."""

    source: ClassVar[str] = "McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data"
    by_label: ClassVar[bool] = True

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)
    each: int = setting(2, "shards a node has", ge=1)
    shuffle: bool = setting(False, "deal the shards by lot, so that a node's id says nothing about its labels")

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        shards = self.nodes * self.each
        order = np.lexsort((shuffled(fold(key, "order"), len(labels)), labels))
        holder = np.arange(shards) % self.nodes
        if self.shuffle:
            holder = holder[shuffled(fold(key, "deal"), shards)]
        owner = np.empty(len(labels), dtype=np.int64)
        owner[order] = holder[np.arange(len(labels)) * shards // len(labels)]
        return filled(owner, self.nodes, fold(key, "fill"))


def ids_by(name: str, keys: Keys) -> NDArray[Any]:
    """The array of that name, [N]. Raises SettingError, for the setting `by`, where the data have none."""
    if name not in keys:
        known = ", ".join(sorted(keys)) or "none"
        raise SettingError("task.partition.by", f"the data have no ids `{name}` (ids they have: {known})")
    return keys[name]


def nodes_of_tests(by: str, keys: Keys, owner: Ints, test_keys: Keys) -> Ints | None:
    """int64 [M]: the node whose training samples have the test sample's id, -1 for none; None where no test sample has a node."""
    if by not in test_keys:
        return None
    ids, first = np.unique(keys[by], return_index=True)
    found = np.minimum(np.searchsorted(ids, test_keys[by]), len(ids) - 1)
    node = np.where(ids[found] == test_keys[by], owner[first[found]], -1)
    return node if (node >= 0).any() else None


@dataclass(frozen=True)
class Natural(Partition):
    """One node for each id (writer, speaker, hospital) that the data carry, in the order of the ids."""

    by: str = setting(help="name of the array of ids")
    nodes: int | None = setting(None, "so many of the others, by lot; all by default", ge=1, le=MOST_NODES)
    least: int = setting(1, "ids with fewer samples are left out", ge=1, kw_only=True)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        _, place, sizes = np.unique(ids_by(self.by, keys), return_inverse=True, return_counts=True)
        large = np.flatnonzero(sizes >= self.least)
        if len(large) < (self.nodes or 1):
            text = f"{self.nodes or 1} nodes wanted, but only {len(large)} ids of `{self.by}` have {self.least} samples or more"
            raise SettingError("task.partition.nodes" if self.nodes else "task.partition.least", text)
        if self.nodes is not None:
            large = np.sort(large[shuffled(fold(key, "lot"), len(large))[: self.nodes]])
        node = np.full(len(sizes), -1, dtype=np.int64)
        node[large] = np.arange(len(large))
        return node[place.reshape(-1)]

    def split_test(self, keys: Keys, owner: Ints, test_keys: Keys) -> Ints | None:
        return nodes_of_tests(self.by, keys, owner, test_keys)


@dataclass(frozen=True)
class Draw(Partition):
    """Each node draws its samples by lot from all of them, with replacement, so nodes share samples and there may be any number of nodes.

    How many a node has is uniform between two numbers. No table is kept of who has what: a million nodes are their counts and a key.
    """

    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)
    most: int = setting(100, "most samples of a node", ge=1)

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"`least` is {self.least} and `most` only {self.most}")

    def draws(self, key: Tensor) -> Ints:
        drawn = below(fold(key, "sizes", torch.arange(self.nodes)), 1, self.most - self.least + 1)[:, 0]
        return (self.least + drawn).numpy()


@dataclass(frozen=True)
class Own(Partition):
    """In a deployment each worker's own data are its nodes', and never leave it.

    Evaluated is at the server where it has a test set, else each node's model is tested where the node's data are: on the test samples of
    the worker's file, or a fifth of its samples, held out by lot. Where the server has no file at all, `shape` and `labels` say what
    samples are like.
    """

    nodes: int = setting(help="number of nodes", ge=1, le=MOST_NODES)
    shape: tuple[int, ...] = setting((), "of a sample, for a server without data: `[64]`, `[28, 28, 1]`", ge=1)
    labels: tuple[int | str, ...] = setting(
        (), "classes as the workers' files call them, for a server without data; none: one number is predicted"
    )

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        raise SettingError(
            "task.partition", "`own` data exist in a deployment alone (`fedsim serve`); a simulation needs another, as `iid`"
        )
