"""Samples that no node has: the test set where the source has none, and public ones, whose labels nobody sees."""

# N: training samples, P: public samples

import dataclasses
from collections.abc import Callable

import numpy as np
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import permutation
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.public import part_of
from fedsim.task.masks import are_masks
from fedsim.task.tokens import are_next


def held_out(arrays: Arrays, key: Tensor) -> Arrays:
    """A fifth of each class, by lot, becomes the test set (of all samples where targets are no classes)."""
    one_class = arrays.y.dtype.kind != "f" and not are_next(arrays.y, arrays.x) and not are_masks(arrays.y, arrays.x)
    labels = arrays.y.reshape(len(arrays.y), -1)[:, 0] if one_class else np.zeros(len(arrays.y))
    test = np.zeros(len(arrays.y), dtype=np.bool_)
    test[np.lexsort((permutation(key, len(labels)).numpy(), labels))[4::5]] = True
    if not test.any():
        raise complaint(f"{len(test)} samples are too few to hold out a test set: give x_test and y_test")
    test_keys = {name: ids[test] for name, ids in arrays.keys.items()}
    return dataclasses.replace(part_of(arrays, ~test), x_test=arrays.x[test], y_test=arrays.y[test], test_keys=test_keys)


def shown_to_all(public: Array, x: Tensor, read: Callable[[Array, str], Tensor]) -> Tensor:
    """Public samples [P, ...] as `read` makes those of the nodes, x [N, ...]. Raises SettingError where they are no such samples."""
    found = read(public, "x")
    if found.shape[1:] != x.shape[1:] or found.dtype != x.dtype or not len(found):
        given, due = (f"{len(one):,} of {str(one.dtype).removeprefix('torch.')} {list(one.shape[1:])}" for one in (found, x))
        raise SettingError("task.public", f"samples like those of the nodes are due: these are {given}, and nodes have {due}")
    return found
