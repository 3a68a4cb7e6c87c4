"""Targets that are masks: a class at each pixel of an image, and pixels or places that have none."""

import numpy as np

from fedsim.base.errors import SettingError
from fedsim.data.arrays import Array, Arrays, complaint

# N: samples, H, W: pixels


def are_masks(y: Array, x: Array) -> bool:
    """Is there a class at each pixel of an image?"""
    return x.ndim in (3, 4) and _plain(y).ndim == 3 and y.dtype.kind in "iub"


def masks(arrays: Arrays) -> tuple[Array, Array, int, tuple[str, ...]]:
    """Masks [N, H, W] as int64 [N, H W], -1 where there is no class, of training and test samples; the classes and their names.

    Numbers with wide gaps, such as 0 and 255, are classes in their order. Raises SettingError where a mask does not fit its image.
    """
    found = []
    for name, x, y in (("", arrays.x, arrays.y), ("_test", arrays.x_test, arrays.y_test)):
        assert x is not None and y is not None
        mask = _plain(y)
        if mask.shape[1:] not in (x.shape[1:3], x.shape[-2:]):
            raise complaint(f"masks of y{name} have {_sides(mask.shape[1:])} pixels, and samples of x{name} shape {list(x.shape[1:])}")
        mask = mask.reshape(len(mask), -1).astype(np.int64)
        check_some(mask, f"y{name}")
        found.append(np.maximum(mask, -1))
    numbers = np.unique(np.concatenate([one[one >= 0] for one in found]))
    if numbers[-1] < max(2, 2 * len(numbers)):
        return found[0], found[1], int(numbers[-1]) + 1, arrays.names
    train, test = (np.where(one < 0, -1, np.searchsorted(numbers, one)) for one in found)
    return train, test, len(numbers), tuple(map(str, numbers.tolist()))


def check_some(targets: Array, name: str) -> None:
    """Raises SettingError where a sample has no target anywhere."""
    empty = np.flatnonzero((targets < 0).all(1))
    if len(empty):
        raise complaint(f"{name} has no target in row {empty[0]} (the first row is 0): each is -1, or `task.ignore`")


def without(y: Array, ignore: int | None) -> Array:
    """Targets, -1 where they are `ignore`. Raises SettingError where samples have one class each, or numbers."""
    if ignore is None:
        return y
    if y.ndim < 2 or y[0].size < 2 or y.dtype.kind not in "iu":
        raise SettingError("task.ignore", f"is of masks and sequences, which have a class at each place; y holds {y.dtype} {list(y.shape)}")
    return np.where(y == ignore, -1, y.astype(np.int64))


def _plain(y: Array) -> Array:
    """Without the axis of one channel that masks in files may have."""
    axis = next((axis for axis in (1, 3) if y.ndim == 4 and y.shape[axis] == 1), None)
    return y if axis is None else y.squeeze(axis)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
