"""What a source gave, as its owner knows it: before classes became numbers and samples tensors."""

from dataclasses import dataclass

import numpy as np

from fedsim.data.arrays import Array, Arrays

MANY = 100_000  # targets that are looked at to see what they may mean


@dataclass(frozen=True)
class Given:
    """`x` and `y` are type and shape of a sample and its target; `names` of the classes, where these are no numbers from 0."""

    x: str
    y: str
    names: tuple[str, ...] = ()
    held_out: bool = False  # is the test set a part of the one set that there was?
    named_loss: bool = False  # does the scenario name the loss?
    whole: tuple[float, ...] = ()  # of a regression on few different whole numbers, those
    one_hot: bool = False  # has each target one 1 and else 0?
    note: str = ""  # what the source has to say of how it was read
    stray_ids: str = ""  # the partition's ids, where test samples have them too and none of a node's


def given_by(arrays: Arrays, held_out: bool, named_loss: bool) -> Given:
    """`arrays` with their test set; what it says of classes is known later."""
    y = arrays.y[:MANY]
    plain = y.reshape(len(y), -1)
    numbers = y.dtype.kind == "f" and plain.shape[1] == 1 and not arrays.environment
    whole = _few_whole(plain[:, 0]) if numbers else ()
    hot = plain.shape[1] > 1 and y.dtype.kind in "iufb" and bool(((plain == 0) | (plain == 1)).all() and (plain.sum(1) == 1).all())
    return Given(_kind(arrays.x), _kind(arrays.y), (), held_out, named_loss, whole, hot, arrays.note)


def _kind(array: Array) -> str:
    shape = f" {list(array.shape[1:])}" if array.ndim > 1 else ""
    return f"{'texts' if array.dtype.kind in 'US' else array.dtype}{shape}"


def _few_whole(values: Array) -> tuple[float, ...]:
    """The different values, where these are up to twenty whole numbers that come several times each."""
    if not np.isfinite(values).all():
        return ()
    different = np.unique(values)
    few = 1 < len(different) <= min(20, len(values) // 2) and bool((different == np.rint(different)).all())
    return tuple(different.tolist()) if few else ()
