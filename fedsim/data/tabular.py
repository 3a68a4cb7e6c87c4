"""Tables as people have them: a line a sample, columns of numbers and texts, one of them the label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fedsim.base.reading import Reading
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.columns import check_mixed, gaps_of, kind_of, kinds_of, numbers_of, plain, read_columns, texts_of
from fedsim.data.files import anchored, find_file
from fedsim.data.scaling import Scaling
from fedsim.data.source import Source
from fedsim.data.sparse import check_size
from fedsim.settings.part import setting

LABELS = ("label", "target", "class", "y")


@dataclass(frozen=True)
class Table(Source):
    """A .csv, .tsv or .parquet whose rows are samples. Any column but the label can be the nodes' ids (`partition: {by: hospital}`).

    Columns of numbers are scaled by the rows that train, and test rows by the same numbers; one of texts becomes a number 0 or 1 for each
    of the file's texts. Ids of the partition, times, and texts of more than `categories` kinds are no features. Labels are classes where
    they are texts, truth values or whole numbers, and numbers otherwise.
    """

    kinds: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".parquet")

    file: str = setting(help="path, file's stem or folder")
    label: str = setting("", "column of the targets; by default `label`, `target`, `class` or `y`, else the last one")
    test: str | None = setting(None, "a second table, which is the test set")
    columns: tuple[str, ...] = setting((), "those that are features; by default all others")
    skip: tuple[str, ...] = setting((), "columns that are no features, such as an entry's number")
    fill: Literal["none", "mean", "median", "zero", "drop"] = setting(
        "none", "what a gap in a column of numbers becomes; `drop` leaves its row out; by default an error names the row"
    )
    scale: Literal["standard", "minmax", "none"] = setting("standard", "columns of numbers: mean 0 and deviation 1, 0 to 1, or as they are")
    categories: int = setting(50, "texts that a column has at most to be a feature", ge=1, le=10_000)
    encoding: str = setting("utf-8", "of a text file")

    def load(self, base: Path) -> Arrays:
        path = find_file(self.file, base, self.kinds)
        with Reading(path.name) as reading:
            made = self._load(path, base, reading)
            reading.what, reading.taken = f"{len(made.x):,} rows", made.x.nbytes
        return made

    def _load(self, path: Path, base: Path, reading: Reading) -> Arrays:
        train, tests = self._read(path, reading), self._read(find_file(self.test, base, self.kinds), reading) if self.test else None
        label = self._label(train, path.name)
        features = self._features(train, label, path.name)
        kept = [self._whole(train, label, features, path.name)]
        if tests is not None:
            kept.append(self._whole(tests, label, features, str(self.test)))
        x, names, rest, numbers = self._x(kept, features, path.name, reading)
        ys = [plain(one[label], kind_of(one[label])) for one in kept]
        ys, classes = _named(ys)
        keys = [{name: plain(column, kind_of(column)) for name, column in one.items() if name != label} for one in kept]
        made = Arrays(x[0], ys[0], keys=keys[0], columns=names, names=classes, note=f"label {label}{_only_ids(rest)}")
        made = replace(made, scaling=Scaling(numbers, self.fill, self.scale))
        return made if tests is None else replace(made, x_test=x[1], y_test=ys[1], test_keys=keys[1])

    def _read(self, path: Path, reading: Reading) -> dict[str, Any]:
        return read_columns(path, self.encoding, reading)

    def _label(self, table: Mapping[str, Any], origin: str) -> str:
        named = [name for name in table if name.lower() in LABELS]
        label = self.label or (named[0] if named else [*table][-1])
        for name in (label, *self.columns, *self.skip):
            if name not in table:
                raise complaint(f"{origin} has no column `{name}` (it has: {', '.join(table)})")
        if kind_of(table[label]) in ("empty", "other"):
            raise complaint(f"{origin}: the labels' column `{label}` holds {table[label].type}; texts or numbers are due")
        return label

    def _features(self, table: Mapping[str, Any], label: str, origin: str) -> list[str]:
        found = [name for name in self.columns or table if name not in (label, *self.skip)]
        if empty := [name for name in found if kind_of(table[name]) == "empty"]:
            raise complaint(f"{origin}: column `{empty[0]}` is empty: leave it out by `skip: [{empty[0]}]`")
        return found

    def _whole(self, table: dict[str, Any], label: str, features: Sequence[str], origin: str) -> dict[str, Any]:
        """Without rows that are left out. Raises SettingError where a gap is left."""
        if missing := [name for name in (label, *features) if name not in table]:
            raise complaint(f"{origin} has no column `{missing[0]}` (it has: {', '.join(table)})")
        gaps = {name: gaps_of(table[name]) for name in (label, *features)}
        if self.fill == "drop":
            keep = ~np.logical_or.reduce([*gaps.values()])
            if not keep.any():
                raise complaint(f"{origin}: each row has a gap, so `fill: drop` leaves none")
            return {name: column.filter(keep) for name, column in table.items()}
        for name, gap in gaps.items():
            if gap.any() and (name == label or (self.fill == "none" and kind_of(table[name]) == "number")):
                row = int(gap.argmax())
                more = f" and {gap.sum() - 1:,} more" if gap.sum() > 1 else ""
                cure = "`fill: drop`" if name == label else "`fill: mean`, `median`, `zero` or `drop`"
                raise complaint(f"{origin}: column `{name}` has a gap in row {row} (the first row is 0){more}; {cure} mends it")
        return table

    def _x(
        self, tables: Sequence[Mapping[str, Any]], features: Sequence[str], origin: str, reading: Reading
    ) -> tuple[list[Array], tuple[str, ...], list[str], Array]:
        """x [N, D] of each table, the column that each feature is of, the columns that are none, and which features are numbers, [D]."""
        parts: list[list[Array]] = [[] for _ in tables]
        names, rest, numbers = list[str](), list[str](), list[bool]()
        for place, name in enumerate(features):
            reading(place / len(features), "sorting the columns of")
            columns = [table[name] for table in tables]
            made = {"number": self._numbers, "text": self._kinds}.get(kind := kind_of(columns[0]))
            found = made(columns, name, origin) if made else None
            if found is None:
                rest.append(name)
                continue
            names += [name] * found[0].shape[1]
            numbers += [kind == "number"] * found[0].shape[1]
            for part, one in zip(parts, found, strict=True):
                part.append(one)
        if not names:
            raise complaint(f"{origin} has no column that can be a feature (it has: {', '.join(tables[0])})")
        check_size(sum(len(part[0]) for part in parts), len(names), origin)
        return [np.concatenate(part, 1) for part in parts], tuple(names), rest, np.array(numbers)

    def _numbers(self, columns: Sequence[Any], name: str, origin: str) -> list[Array]:
        return [numbers_of(column)[:, None] for column in columns]

    def _kinds(self, columns: Sequence[Any], name: str, origin: str) -> list[Array] | None:
        values = [texts_of(column) for column in columns]
        check_mixed(values[0], name, origin)
        kinds = kinds_of(columns[0])
        return None if len(kinds) > self.categories else [(one[:, None] == kinds).astype(np.float32) for one in values]

    def anchored(self, base: Path) -> "Table":
        return replace(self, file=anchored(self.file, base, self.kinds), test=self.test and anchored(self.test, base, self.kinds))


def _named(ys: list[Array]) -> tuple[list[Array], tuple[str, ...]]:
    """Whole numbers that come several times each, but are not 0, 1, 2, ..., as classes from 0, and what they are called."""
    both = np.concatenate(ys)
    if both.dtype.kind not in "iu":
        return ys, ()
    found, place = np.unique(both, return_inverse=True)
    if len(found) > len(both) // 2 or (found == np.arange(len(found))).all():
        return ys, ()
    return np.split(place.reshape(-1), np.cumsum([len(y) for y in ys])[:-1]), tuple(map(str, found.tolist()))


def _only_ids(names: Sequence[str]) -> str:
    return f"; no features: {', '.join(names)}" if names else ""
