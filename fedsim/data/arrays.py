"""What a source gives: NumPy arrays of samples, targets and natural ids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import SettingError

Array = NDArray[Any]


def complaint(message: str) -> SettingError:
    """An error about `task.data`."""
    return SettingError("task.data", message)


@dataclass(frozen=True)
class Arrays:
    """x [N, ...], y [N, ...], the same for the test set if there is one, and arrays of natural ids [N] and [M] by name.

    `vocabulary` is 0 where x holds numbers; else x is int [N, L] of token numbers 0 .. vocabulary - 1, where 0 is padding at the end. The
    targets of a sequence are then classes [N], or the next tokens [N, L] with -1 where there is none.
    """

    x: Array
    y: Array
    x_test: Array | None = None
    y_test: Array | None = None
    keys: Mapping[str, Array] = field(default_factory=dict)
    test_keys: Mapping[str, Array] = field(default_factory=dict)
    vocabulary: int = 0


def arrays_from(found: Mapping[str, Array], origin: str) -> Arrays:
    """Arrays by their names: x, y, x_test, y_test, and any other array of one axis and x's length as natural ids (`writer`) or property.

    `x_train`, `y_train`, `writer_train` count as x, y, writer. Test ids are called `writer_test`. Validation sets (`x_val`) are left
    out: nothing here is chosen by them. Raises SettingError where an array is missing; `origin` says whose.
    """
    named = {name.removesuffix("_train"): array for name, array in found.items()}
    _need("x", "x_train", named, found, origin)
    _need("y", "y_train", named, found, origin, "labels missing: ")
    if "x_test" in named:
        _need("y_test", "", named, found, origin, "test labels missing: ")
    x, x_test = named["x"], named.get("x_test")
    tests = {name.removesuffix("_test"): array for name, array in named.items() if name.endswith("_test")}
    return Arrays(x, named["y"], x_test, named.get("y_test") if x_test is not None else None, _ids(named, x), _ids(tests, x_test))


def _need(name: str, other: str, named: Mapping[str, Array], found: Mapping[str, Array], origin: str, why: str = "") -> None:
    if name not in named:
        wanted = f"{name} or {other}" if other else name
        raise complaint(f"{why}{origin} has no array {wanted} (it has: {', '.join(found) or 'none'})")


def _ids(named: Mapping[str, Array], x: Array | None) -> dict[str, Array]:
    """Those arrays that can be an id or a property of each sample of x."""
    if x is None:
        return {}
    return {k: v for k, v in named.items() if k not in ("x", "y") and v.shape == x.shape[:1] and v.dtype.kind in "iufUSb"}


def sampled(value: Any, name: str, origin: str) -> Array:
    """The value as an array with one entry a sample. Raises SettingError for objects, ragged lists and single numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.array(None)
    if array.dtype == object or not array.ndim:
        raise complaint(f"{origin}: `{name}` is not an array with one entry a sample")
    return array
