"""Time series cut into windows."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.files import anchored, find_file
from fedsim.data.source import Source, read_npz
from fedsim.data.table import check_names, texts
from fedsim.data.unpacking import check_bytes, check_text
from fedsim.settings.part import setting

OTHER = "; a table whose lines are samples is read by `data: {name: table, file: ...}`"

# T: steps of time, C: channels, N: windows


@dataclass(frozen=True)
class Windows(Source):
    """A time series [T, C] cut into windows [length, C]: the next `horizon` steps are the target, or the class at the window's end.

    An .npz has it as one array; in a .csv, columns are channels, named by the first line. With `by`, no window goes over a change of
    the id. The last fifth of each id's windows is the test set, and training windows that reach into it are left out.
    """

    kinds: ClassVar[tuple[str, ...]] = (".csv", ".npz")

    file: str = setting(help="path, file's stem or folder")
    series: str = setting("x", "name of the array [T] or [T, C] in an .npz")
    columns: tuple[str, ...] = setting((), "columns of a .csv that are channels; by default all but `by` and `labels`")
    length: int = setting(24, "steps a window", ge=1, le=1_000_000)
    stride: int = setting(1, "steps from one window to the next", ge=1)
    horizon: int = setting(1, "steps that are to be foretold, as horizon x channels numbers", ge=1, le=1_000_000)
    labels: str | None = setting(None, "array or column of classes, one a step, to be told instead")
    by: str | None = setting(None, "array or column of ids, one a step: the natural ids of the windows")

    def load(self, base: Path) -> Arrays:
        path = find_file(self.file, base, self.kinds)
        found = _columns(path) if path.suffix == ".csv" else read_npz(path)
        series = self._table(found, path.name) if path.suffix == ".csv" else self._array(found, path.name)
        self._finite(series, path.name)
        ids, classes = (self._steps(found, name, len(series), path.name) for name in (self.by, self.labels))
        ahead = 0 if classes is not None else self.horizon
        first, run = self._starts(ids, len(series), ahead)
        if not len(first):
            raise complaint(f"{path.name}: no stretch of the series has the {self.length + ahead} steps of a window and its target")
        last = _last_fifth(run)
        # A training window with its target ends before the first test window of its run begins
        border = np.full(int(run.max()) + 1, len(series) + self.length + ahead)
        np.minimum.at(border, run[last], first[last])
        train = ~last & (first + self.length + ahead <= border[run])
        if not (last.any() and train.any()):
            raise complaint(
                f"{path.name}: {len(first)} windows are too few to leave some for testing: shorter ones or a smaller stride are due"
            )
        check_bytes(4 * len(first) * self.length * series.shape[1], f"{path.name}: {len(first):,} windows of {self.length} steps take")
        x = series[first[:, None] + np.arange(self.length)]
        if classes is not None:
            y: Array = classes[first + self.length - 1]
        else:
            y = series[(first + self.length)[:, None] + np.arange(ahead)].reshape(len(first), -1)
        keys, tests = ({} if ids is None or self.by is None else {self.by: ids[first[part]]} for part in (train, last))
        return Arrays(x[train], y[train], x[last], y[last], keys, tests)

    def _starts(self, ids: Array | None, steps: int, ahead: int) -> tuple[Array, Array]:
        """Where windows begin and the number of their run (a stretch of one id), int64 [N]."""
        run = np.zeros(steps, dtype=np.int64) if ids is None else np.cumsum(np.r_[False, ids[1:] != ids[:-1]])
        begin = np.flatnonzero(np.r_[True, run[1:] != run[:-1]])
        first = np.arange(steps)
        first = first[(first - begin[run]) % self.stride == 0]
        end = first + self.length + ahead - 1
        first = first[(end < steps) & (run[np.minimum(end, steps - 1)] == run[first])]
        return first, run[first]

    def _array(self, found: Mapping[str, Array], origin: str) -> Array:
        if self.series not in found:
            raise complaint(f"{origin} has no array `{self.series}` (it has: {', '.join(found) or 'none'})")
        series = found[self.series]
        if series.ndim not in (1, 2) or series.dtype.kind not in "iufb" or not len(series):
            raise complaint(
                f"{origin}: `{self.series}` is no series [T] or [T, C] of numbers but {series.dtype} of shape {list(series.shape)}"
            )
        return series.reshape(len(series), -1).astype(np.float32)

    def _finite(self, series: Array, origin: str) -> None:
        """Raises SettingError where a number is none: while steps have the numbers that the user knows."""
        if len(bad := np.argwhere(~np.isfinite(series))):
            raise complaint(f"{origin}: the series has NaN or infinity in step {bad[0, 0]}, channel {bad[0, 1]} (the first are 0)")

    def _table(self, found: Mapping[str, Array], origin: str) -> Array:
        names = self.columns or tuple(name for name in found if name not in (self.by, self.labels))
        numbers = []
        for name in names:
            if name not in found:
                raise complaint(f"{origin} has no column `{name}` (its first line names: {', '.join(found)})")
            numbers.append(_numbers(found[name], name, found, origin))
        if not numbers:
            raise complaint(f"{origin} has no column of numbers")
        return np.stack(numbers, 1)

    def _steps(self, found: Mapping[str, Array], name: str | None, steps: int, origin: str) -> Array | None:
        """The array of that name, one entry a step."""
        if name is None:
            return None
        if name not in found:
            raise complaint(f"{origin} has no `{name}` (it has: {', '.join(found)})")
        if found[name].shape != (steps,):
            raise complaint(f"{origin}: `{name}` has shape {list(found[name].shape)}, and one entry for each of {steps} steps is due")
        return found[name]

    def anchored(self, base: Path) -> "Windows":
        return replace(self, file=anchored(self.file, base, self.kinds))


def _last_fifth(run: Array) -> Array:
    """bool [N]: the last fifth of each run's windows; `run` rises."""
    count = np.bincount(run)
    fifth: Array = np.arange(len(run)) >= (np.cumsum(count) - count // 5)[run]
    return fifth


def _columns(path: Path) -> dict[str, Array]:
    """Columns of text by name. Raises SettingError where a line has another number of columns than the first."""
    check_text(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise complaint(f"{path.name} can't be read as a table: {error}") from error
    if len(lines) < 2:
        raise complaint(f"{path.name} can't be read as a table: it has no line{' below its names' if lines else ''}")
    (_, head), *rows = lines
    check_names(head, path.name)
    for number, row in rows:
        if len(row) != len(head):
            raise complaint(f"{path.name}, line {number}: {len(head)} columns are due ({', '.join(head)}), not {len(row)}")
    return {name: texts([row[place] for _, row in rows], path.name, name) for place, name in enumerate(head)}


def _numbers(column: Array, name: str, found: Mapping[str, Array], origin: str) -> Array:
    """float32 [steps]"""
    try:
        return column.astype(np.float32)
    except ValueError as error:
        what = f"a .csv is read as a time series, a step a line; of the columns {', '.join(found)} `columns` says which are channels"
        raise complaint(f"{origin}: column `{name}` holds no numbers ({error}); {what}{OTHER}") from error
