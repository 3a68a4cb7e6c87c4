"""Who has which samples: a partition asked, and what it gives checked."""

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.arrays import Array, Arrays
from fedsim.data.partition import Ints, Keys, Partition
from fedsim.task.task import Drawn


def shared_out(
    partition: Partition, targets: Array, classes: int, arrays: Arrays, seed: int
) -> tuple[Tensor | Drawn, Tensor, Tensor | None]:
    """Samples, where each node's begin, and owners of the test samples: as a task has them."""
    counts = partition.draws(fold(seed, "partition"))
    if counts is not None:
        if counts.dtype.kind not in "iu" or counts.ndim != 1 or not len(counts) or counts.min() < 1:
            raise SettingError("task.partition", f"{partition.name} gives no whole number of samples, 1 or more, to each node")
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        return Drawn(fold(seed, "partition", "samples"), len(targets)), starts, None
    by = getattr(partition, "by", None)
    if isinstance(by, str) and by not in arrays.keys and by in arrays.shapes:
        what = f"`{by}` has shape {list(arrays.shapes[by])}, and one id for each of the {len(targets)} training samples is due"
        raise SettingError("task.partition.by", what)
    owner, nodes = split_by(partition, targets, classes, arrays.keys, seed)
    test_owner = partition.split_test(arrays.keys, owner, arrays.test_keys)
    return *by_node(owner, nodes), None if test_owner is None else torch.from_numpy(test_owner)


def split_by(partition: Partition, targets: Array, classes: int, keys: Keys, seed: int) -> tuple[Ints, int]:
    """Node of each sample and number of nodes, which each have a sample."""
    if partition.by_label and not classes:
        raise SettingError("task.partition", f"{partition.name} splits by class, and the targets are no classes")
    if partition.nodes is not None and partition.nodes > len(targets):
        raise SettingError("task.partition.nodes", f"{partition.nodes} nodes, but only {len(targets)} training samples")
    if partition.nodes is not None and partition.nodes * partition.least > len(targets):
        text = f"{partition.least} samples a node, but there are only {len(targets)} for {partition.nodes} nodes"
        raise SettingError("task.partition.least", text)
    if partition.by_label and targets.ndim > 1:
        raise SettingError("task.partition", f"{partition.name} splits by class, and a sample of this task has one at each of its places")
    labels = targets if classes and targets.ndim == 1 else np.zeros(len(targets), dtype=np.int64)
    try:
        owner = np.asarray(partition.split(labels, keys, fold(seed, "partition")))
    except SettingError:
        raise
    except Exception as error:
        raise SettingError("task.partition", f"{partition.name} raised {type(error).__name__}: {error}") from error
    if owner.shape != labels.shape or owner.dtype.kind not in "iu":
        raise SettingError("task.partition", f"{partition.name} gave {owner.dtype} of shape {list(owner.shape)}, not one node a sample")
    nodes = int(owner.max()) + 1 if partition.nodes is None else partition.nodes
    sizes = np.bincount(owner[owner >= 0], minlength=nodes)[:nodes]
    empty = np.flatnonzero(sizes == 0)
    if owner.max() >= nodes or len(empty) or not nodes:
        raise SettingError("task.partition", _complaint(partition, owner, nodes, empty))
    if sizes.min() < partition.least:
        text = f"{partition.name} gives node {sizes.argmin()} only {sizes.min()}, and {np.sum(sizes < partition.least)} of {nodes} nodes"
        raise SettingError("task.partition.least", f"{partition.least} samples a node, but {text} fewer than {partition.least}")
    return owner.astype(np.int64), nodes


def _complaint(partition: Partition, owner: Ints, nodes: int, empty: Ints) -> str:
    if not nodes:
        return f"{partition.name} leaves no node any sample"
    if owner.max() >= nodes:
        return f"{partition.name} gave a sample to node {owner.max()} of {nodes} (the first is 0)"
    some = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    return f"{partition.name} gives no sample to {len(empty)} of {nodes} nodes: {some}"


def by_node(owner: Ints, nodes: int) -> tuple[Tensor, Tensor]:
    """Sample numbers sorted by node, without those of no node, and where each node's begin: int64 [in use] and [nodes + 1]."""
    order = np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :]
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner[owner >= 0], minlength=nodes))])
    return torch.from_numpy(order), torch.from_numpy(starts)


def stray(partition: Partition, arrays: Arrays, test_owner: Tensor | None) -> str:
    """The name of the partition's ids where test samples have such ids, but none that a node has."""
    by, owns = getattr(partition, "by", None), type(partition).split_test is not Partition.split_test
    return by if isinstance(by, str) and owns and test_owner is None and by in arrays.test_keys else ""
