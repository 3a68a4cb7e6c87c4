"""Samples that are sequences of token numbers, and targets that are the next token at every place."""

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.models import Model


def vocabulary_of(arrays: Arrays, model: Model) -> int:
    """How many token numbers there are, 0 where x holds other numbers: what the source says, else what a model that takes tokens finds.

    Raises SettingError where such a model is given something else.
    """
    if arrays.vocabulary or not model.takes_tokens():
        return arrays.vocabulary
    if arrays.x.dtype.kind not in "iu" or arrays.x.ndim != 2:
        found = f"x holds {arrays.x.dtype} of shape {list(arrays.x.shape)}"
        raise SettingError("task.model", f"{model.title()} takes token numbers, whole numbers in two axes; {found}")
    texts = [arrays.x, *([] if arrays.x_test is None else [arrays.x_test])]
    return (
        int(max(array.max() for array in (*texts, *(y for y in (arrays.y, arrays.y_test) if y is not None and are_next(y, arrays.x))))) + 1
    )


def are_next(y: Array, x: Array) -> bool:
    """Is there a target at every place of a sample?"""
    return y.ndim == 2 and x.ndim == 2 and y.shape[1] == x.shape[1] > 1 and y.dtype.kind in "iu" and x.dtype.kind in "iu"


def token_samples(x: Array, name: str, vocabulary: int) -> Tensor:
    """[N, L] of the smallest type that holds the vocabulary, which `decoded` makes int64. Raises SettingError for other numbers."""
    if x.dtype.kind not in "iu" or x.ndim != 2:
        raise complaint(f"{name} is to hold token numbers in two axes, not {x.dtype} of shape {list(x.shape)}")
    _within(x, name, 0, vocabulary)
    return torch.from_numpy(x.astype(np.int16 if vocabulary < 1 << 15 else np.int32))


def whole_numbers(x: Array) -> Tensor:
    """int64, for models that look up numbers themselves."""
    return torch.from_numpy(np.ascontiguousarray(x.astype(np.int64)))


def next_tokens(y: Array, x: Array | None, name: str, classes: int) -> Array:
    """int64 [N, L] from -1 (no target, as where the sample is padded). Raises SettingError where a number is none of the classes."""
    if x is None or y.shape != x.shape:
        raise complaint(f"{name} has shape {list(y.shape)}, its samples {None if x is None else list(x.shape)}")
    _within(y, name, -1, classes)
    empty = np.flatnonzero((y < 0).all(1))
    if len(empty):
        raise complaint(f"{name} has no target in row {empty[0]} (the first row is 0): each is -1")
    return y.astype(np.int64)


def _within(values: Array, name: str, least: int, limit: int) -> None:
    bad = np.flatnonzero(((values < least) | (values >= limit)).any(1))
    if len(bad):
        row = values[bad[0]]
        wrong = row[(row < least) | (row >= limit)][0]
        raise complaint(f"{name} holds {wrong} in row {bad[0]} (the first row is 0); token numbers are {least} to {limit - 1}")
