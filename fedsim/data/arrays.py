"""What a source gives: NumPy arrays of samples, targets and natural ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.errors import SettingError
from fedsim.data.scaling import Scaling

Array = NDArray[Any]
DENSE = "; `.toarray()` makes rows of it"


def complaint(message: str) -> SettingError:
    """An error about `task.data`."""
    return SettingError("task.data", message)


@dataclass(frozen=True)
class Arrays:
    """x [N, ...], y [N, ...], the same for the test set if there is one, and arrays of natural ids [N] and [M] by name.

    `vocabulary` is 0 where x holds numbers; else x is int [N, L] of token numbers 0 .. vocabulary - 1, where 0 is padding at the end. The
    targets of a sequence are then classes [N], or the next tokens [N, L] with -1 where there is none. `columns` is what each number of a
    sample of a table was called; those of a column by which nodes are told apart are no features. `names` are those of the classes 0, 1,
    ..., where y has these already. `note` is what the source has to say of how it was read. `scaling` is what is still to become of x,
    by the rows that train. `environment` is what episodes go on in, where samples are the states that they begin in.
    """

    x: Array
    y: Array
    x_test: Array | None = None
    y_test: Array | None = None
    keys: Mapping[str, Array] = field(default_factory=dict)
    test_keys: Mapping[str, Array] = field(default_factory=dict)
    vocabulary: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of all arrays that were there, to tell why one is no id
    columns: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    note: str = ""
    scaling: Scaling | None = None
    environment: Any = None

    def ready(self) -> "Arrays":
        """Scaled, where that is still due: the rows of x train, those of x_test are test samples."""
        if self.scaling is None:
            return self
        made = self.scaling(self.x, *([] if self.x_test is None else [self.x_test]))
        note = "; ".join(filter(None, [self.note, str(self.scaling)]))
        return replace(self, x=made[0], x_test=None if self.x_test is None else made[1], note=note, scaling=None)


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
    elif "y_test" in named:
        _need("x_test", "", named, found, origin, "test samples missing: ")
    for name in ("x", "y", "x_test", "y_test"):
        if name in named and not named[name].ndim:
            raise complaint(f"{origin}: `{name}` is a single {_kind(named[name])}, not an array with one entry a sample")
    x, x_test = named["x"], named.get("x_test")
    tests = {name.removesuffix("_test"): array for name, array in named.items() if name.endswith("_test")}
    ids, shapes = _ids(named, x), {name: array.shape for name, array in named.items() if not name.endswith("_test")}
    return Arrays(x, named["y"], x_test, named.get("y_test") if x_test is not None else None, ids, _ids(tests, x_test), shapes=shapes)


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
    """The value as an array with one entry a sample; lists of texts, as tables have them, become an array of texts.

    A list x of arrays of floats whose first axes differ (sequences of numbers) is filled up with 0 to the longest.

    Raises SettingError for single values, lists of otherwise unequal shapes, other objects and masked numbers, and says which row it is.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        row = int(np.argwhere(np.ma.getmaskarray(value))[0][0])
        raise complaint(f"{origin}: `{name}` is masked in row {row} (the first row is 0): fill gaps, or leave such rows out")
    try:
        array = _padded(value) if name.removesuffix("_train").removesuffix("_test") == "x" else None
        array = np.asarray(value) if array is None else array
    except Exception as error:
        raise complaint(
            f"{origin}: `{name}` is not an array with one entry a sample: it {_unequal(value) or f'is none: {error}'}"
        ) from error
    if array.dtype.kind in "OT" and array.ndim and all(isinstance(one, str) for one in array.flat):
        array = array.astype(np.str_)
    if array.dtype == object or not array.ndim:
        what = (_unequal(value) or _odd(array)) if array.ndim else f"is a single {_kind(array)}{DENSE * hasattr(value, 'toarray')}"
        raise complaint(f"{origin}: `{name}` is not an array with one entry a sample: it {what}")
    return array


def _kind(single: Array) -> str:
    return type(single.item()).__name__ if single.dtype == object else str(single.dtype)


def _unequal(rows: Any) -> str:
    """The first row of several whose shape is not that of row 0; "" where there is none."""
    if not isinstance(rows, Sequence | np.ndarray) or not len(rows):
        return ""
    shapes = [_shape(row) for row in rows]
    row = next((place for place, shape in enumerate(shapes) if shape is None or shape != shapes[0]), None)
    if row is None:
        return ""
    if (shape := shapes[row]) is None:
        return f"has unequal lengths within row {row} (the first row is 0)"
    return f"has rows of unequal shapes: row 0 has {list(shapes[0] or ())}, row {row} {list(shape)}; cut, pad or resize them to one"


def _padded(rows: Any) -> Array | None:
    """Sequences of floats, [T] or [T, C] each with unequal T, filled up with 0 at their ends, [N, longest(, C)]; None for all else."""
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, np.ndarray) and row.dtype.kind == "f" for row in rows):
        return None
    first = rows[0]
    if first.ndim not in (1, 2) or any(row.ndim != first.ndim or row.shape[1:] != first.shape[1:] for row in rows):
        return None
    lengths = np.array([len(row) for row in rows])
    if (lengths == lengths[0]).all():
        return None
    out = np.zeros((len(rows), lengths.max(), *first.shape[1:]), dtype=np.result_type(*{row.dtype for row in rows}))
    out[np.arange(lengths.max()) < lengths[:, None]] = np.concatenate(rows)
    return out


def _shape(row: Any) -> tuple[int, ...] | None:
    """None where parts of it are unequal too."""
    try:
        return tuple(np.shape(row))
    except ValueError:
        return None


def _odd(array: Array) -> str:
    """The first entry of an array of objects that does not go with the others: no number, or among texts no text."""
    fits = str if isinstance(array.flat[0], str) else int | float | np.number
    for place, one in zip(np.ndindex(array.shape), array.flat, strict=True):
        if not isinstance(one, fits):
            where = f"row {place[0]}" + (f", column {place[1]}" if len(place) == 2 else "")
            text = f"the text {one[:40]!r}" if isinstance(one, str) else "None" if one is None else f"a {type(one).__name__}"
            return f"has {text} in {where} (the first is 0), and only numbers, or only texts, go together"
    return "holds Python objects; `.astype(float)` makes numbers of them"
