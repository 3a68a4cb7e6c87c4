"""Partitions by what the data say of their samples: a measured property, or natural ids put together."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal
from fedsim.data.partition import Ints, Keys, Partition, ids_by, nodes_of_tests, shuffled
from fedsim.settings.part import setting
from fedsim.settings.values import MOST_NODES

# N: samples, n: nodes


@dataclass(frozen=True)
class Continuous(Partition):
    """Sorted by strictness x property (standardised) + (1 - strictness) x normal noise, and cut into equal sizes."""

    source: ClassVar[str] = "flwr-datasets, ContinuousPartitioner"

    by: str = setting(help="name of the array with the property, a number a sample")
    nodes: int = setting(10, "number of nodes", ge=1, le=MOST_NODES)
    strictness: float = setting(1.0, "0: iid, 1: in the order of the property", ge=0, le=1)

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        found = ids_by(self.by, keys)
        if found.dtype.kind not in "iufb":
            raise SettingError("task.partition.by", f"`{self.by}` holds {found.dtype}, and a number a sample is due")
        values = found.astype(np.float64)
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise SettingError("task.partition.by", f"`{self.by}` has NaN or infinity in row {row} (the first row is 0)")
        deviation = values.std()
        if not deviation and self.strictness:
            raise SettingError("task.partition.by", f"`{self.by}` is the same for all samples, so they have no order")
        score = self.strictness * (values - values.mean()) / (deviation or 1.0)
        if self.strictness < 1:
            score += (1 - self.strictness) * normal(fold(key, "noise"), len(values)).double().numpy()
        owner = np.empty(len(labels), dtype=np.int64)
        # Equal sizes, the larger ones first, as numpy.array_split
        larger, least = len(labels) % self.nodes, len(labels) // self.nodes
        sizes = np.full(self.nodes, least) + (np.arange(self.nodes) < larger)
        owner[np.argsort(score, kind="stable")] = np.repeat(np.arange(self.nodes), sizes)
        return owner


@dataclass(frozen=True)
class GroupedNaturalId(Partition):
    """One node for `size` natural ids each, in the order of the ids or by lot: hospitals of writers instead of writers."""

    source: ClassVar[str] = "flwr-datasets, GroupedNaturalIdPartitioner"

    by: str = setting(help="name of the array of ids")
    size: int = setting(help="ids a node", ge=1)
    rest: Literal["smaller", "bigger", "drop", "strict"] = setting(
        "smaller", "ids over: a smaller last node, spread over the first nodes, left out, or an error"
    )
    shuffle: bool = setting(False, "ids by lot instead of in their order")

    def split(self, labels: Ints, keys: Keys, key: Tensor) -> Ints:
        ids, place = np.unique(ids_by(self.by, keys), return_inverse=True)
        whole, over = divmod(len(ids), self.size)
        if over and self.rest == "strict":
            raise SettingError("task.partition.size", f"{len(ids)} ids of `{self.by}` are no multiple of {self.size}")
        if not whole and self.rest != "smaller":
            raise SettingError("task.partition.size", f"{self.size} ids a node, but there are only {len(ids)} of `{self.by}`")
        position = np.arange(len(ids))
        node = position // self.size
        if self.rest == "bigger":  # as numpy.array_split
            least, larger = divmod(len(ids), whole)
            edge = larger * (least + 1)
            node = np.where(position < edge, position // (least + 1), larger + (position - edge) // least)
        elif self.rest == "drop":
            node = np.where(node < whole, node, -1)
        if self.shuffle:
            node = node[np.argsort(shuffled(fold(key, "lot"), len(ids)))]
        return node[place.reshape(-1)]

    def split_test(self, keys: Keys, owner: Ints, test_keys: Keys) -> Ints | None:
        return nodes_of_tests(self.by, keys, owner, test_keys)
