"""Measured times of jobs, by node and job: the setting, and the files that it reads."""

# j: jobs, n: nodes

import csv
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from fedsim.base.clock import Ints, whole
from fedsim.settings.anchored import anchored_file
from fedsim.settings.part import Part, setting
from fedsim.settings.traces import find_trace, lots
from fedsim.settings.values import Floats, Time

KINDS = (".csv", ".json", ".npy", ".pkl")
PASSED = {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"), ("numpy", "dtype"), ("builtins", "list")}
LONG = ("node", "job", "seconds")
BROKEN = (OSError, EOFError, MemoryError, OverflowError, RecursionError, IndexError, KeyError, AttributeError, TypeError, ValueError)


class JobTimes(Part):
    """Measured seconds of each job of each node, added to `job`."""

    slot: ClassVar[str] = "trace"
    default: ClassVar[str] = "file"


@dataclass(frozen=True)
class FileTimes(JobTimes):
    """A matrix with a line a job and a column a node (.csv, with or without a line of names; .npy; .json), where nodes may have fewer
    jobs than others (empty cells at the end); a .csv with the columns `node`, `job`, `seconds`; a .json {node: [times]}; or a profile of
    the authors of M-SGC, as their pickle (.pkl) or as JSON: a list of rounds whose `results` say of each worker `started` and `finished`.
    """

    name: ClassVar[str] = "file"
    source: ClassVar[str] = "Krishnan et al. 2023"

    file: str = setting(help="path, beside the scenario or under FEDSIM_DATA")
    unit: Time = setting(Fraction(1), "what 1 in the file means", gt=0)
    end: Literal["repeat", "error"] = setting("repeat", "a node's jobs after its last: from its first again, or an error")
    lot: int | None = setting(None, "nodes take the file's by this lot, each once before any again; by default node i has the i-th", ge=0)

    def anchored(self, base: Path) -> "FileTimes":
        """The same wherever the scenario lies: a file beside it by its absolute path."""
        return replace(self, file=anchored_file(self.file, base))

    def course(self, nodes: int, per_second: int) -> "Course":
        """For so many nodes. Raises ValueError, naming file and place, where the file is broken or has too few."""
        times = read_times(self.file)
        known = times.shape[1]
        if self.lot is None and known < nodes:
            raise ValueError(f"{self.file} has the times of {known} nodes, and there are {nodes}; with `lot: 0` nodes share them by lot")
        of = np.arange(nodes) if self.lot is None else lots(self.file, self.lot, known, range(nodes))
        ticks = whole(np.nan_to_num(times) * float(self.unit) * per_second, per_second)
        count = np.isfinite(times).sum(0)
        return Course(ticks, count, np.rint(ticks.sum(0) / count).astype(np.int64), of, self.end == "repeat", self.file)


@dataclass(frozen=True, eq=False)
class Course:
    """`ticks` [j, columns] of which each column has its first `count`, their mean, and the column `of` each node [n]."""

    ticks: Ints
    count: Ints
    mean: Ints
    of: Ints
    repeats: bool
    file: str

    def of_jobs(self, nodes: Ints, turn: Ints | None) -> Ints:
        """int64 [m]: ticks of the nodes' `turn`-th jobs [m], the first being 1; None: the mean. Raises ValueError after an end."""
        column = self.of[nodes]
        if turn is None:
            return self.mean[column]
        row, count = turn - 1, self.count[column]
        if not self.repeats and len(over := np.flatnonzero(row >= count)):
            node, jobs = nodes[over[0]], count[over[0]]
            raise ValueError(
                f"node {node} begins its job {jobs + 1}, and {self.file} has {jobs} of it; `end: repeat` goes on with the first"
            )
        found: Ints = self.ticks[row % count, column]
        return found


@lru_cache(maxsize=4)
def _read(path: Path, changed: int) -> Floats:
    kind = path.suffix.lower()
    try:
        if kind == ".csv":
            return _table(path)
        if kind == ".npy":
            return _filled(np.load(path, allow_pickle=False))
        if kind == ".json":
            return _content(json.loads(path.read_bytes()))
        with path.open("rb") as stream:
            return _content(_Profile(stream).load())
    except _Wrong as error:
        raise ValueError(f"{path}{error}") from None
    except (*BROKEN, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} can't be read as {kind}: {str(error) or type(error).__name__}") from error


def read_times(name: str) -> Floats:
    """float64 [j, n] >= 0, as they stand in the file, NaN after a node's last. Raises ValueError, naming file and place."""
    path = find_trace(name)
    if path.suffix.lower() not in KINDS:
        raise ValueError(f"{path}: a file of {', '.join(KINDS)} is due")
    return _read(path, path.stat().st_mtime_ns)


class _Wrong(ValueError):
    """What is wrong with a file, and where in it; to stand after the file's name."""


class _Profile(pickle.Unpickler):
    """Reads plain values only, and passes over NumPy's numbers (workers' ids) and the name of the kind of an answer that was thrown away:
    a pickle that may name functions could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in PASSED:
            return _Passed
        raise pickle.UnpicklingError(f"it names `{module}.{name}`; plain numbers, texts, lists and mappings are due")


class _Passed:
    """A value that nobody asks for."""

    def __init__(self, *given: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _table(path: Path) -> Floats:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = [(number, row) for number, row in enumerate(csv.reader(stream), 1) if any(cell.strip() for cell in row)]
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if set(LONG) <= set(names):
        return _listed(rows[1:], [names.index(name) for name in LONG])
    rows = rows[1:] if any(map(_no_number, names)) else rows
    return _square([[_cell(cell, f":{number}", at) for at, cell in enumerate(row, 1)] for number, row in rows], [n for n, _ in rows])


def _listed(rows: Sequence[tuple[int, list[str]]], places: Sequence[int]) -> Floats:
    """Of lines of node (from 0), job and seconds; a node's jobs are in the order of their numbers."""
    found: dict[int, dict[int, float]] = {}
    for number, row in rows:
        cells = [_cell(row[at] if at < len(row) else "", f":{number}", at + 1) for at in places]
        node, job = (int(cell) if cell == cell // 1 else -1 for cell in cells[:2])  # NaN is no number either
        if node < 0 or job < 0:
            raise _Wrong(f":{number}: a node and a job are whole numbers from 0")
        if job in (own := found.setdefault(node, {})):
            raise _Wrong(f":{number}: job {job} of node {node} stands there twice")
        own[job] = cells[2]
    if missing := sorted(set(range(max(found, default=-1) + 1)) - set(found)):
        raise _Wrong(f": there is no job of node {missing[0]}")
    return _ragged([[own[job] for job in sorted(own)] for _, own in sorted(found.items())])


def _content(content: Any) -> Floats:
    """Of what a JSON file or a pickle holds."""
    if isinstance(content, Mapping):
        return _ragged(content.values(), list(content))
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        raise _Wrong(": a list of jobs or rounds is due, or a mapping of nodes")
    if isinstance(content[0], Mapping):
        return _square([_round(one, at) for at, one in enumerate(content)])
    return _square([list(row) if isinstance(row, list | tuple) else row for row in content])


def _round(one: Any, at: int) -> list[float]:
    """Seconds of the workers of one round of a profile."""
    results = one.get("results") if isinstance(one, Mapping) else None
    if not isinstance(results, list) or not results:
        raise _Wrong(f": round {at} has no list `results`")
    for place, worker in enumerate(results):
        if not isinstance(worker, Mapping) or not all(_is_number(worker.get(key)) for key in ("started", "finished")):
            raise _Wrong(f": round {at}, worker {place}: numbers `started` and `finished` are due")
    return [float(worker["finished"]) - float(worker["started"]) for worker in results]


def _square(rows: Sequence[Any], numbers: Sequence[int] = ()) -> Floats:
    """Of lines of equal length. Raises _Wrong for others."""
    where = [f":{number}" for number in numbers] or [f": job {at}" for at in range(len(rows))]
    for place, row in zip(where, rows, strict=True):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise _Wrong(f"{place}: {len(row) if isinstance(row, list) else 'no'} times, and {len(rows[0])} nodes in the first line")
    return _filled(np.array([[np.nan if cell is None else cell for cell in row] for row in rows]))


def _ragged(columns: Iterable[Any], names: Sequence[Any] = ()) -> Floats:
    """Of nodes with a list of times each."""
    found = list(columns)
    for at, column in enumerate(found):
        if not isinstance(column, list | tuple):
            raise _Wrong(f": node {names[at] if names else at}: a list of times is due")
    out = np.full((max(map(len, found), default=0), len(found)), np.nan)
    for at, column in enumerate(found):
        out[: len(column), at] = column
    return _filled(out)


def _filled(times: Any) -> Floats:
    """Raises _Wrong where it is no matrix of times, or a node has a gap or no job."""
    if times.ndim != 2 or not times.size or times.dtype.kind not in "iuf":
        raise _Wrong(f": a matrix [jobs, nodes] of numbers is due, not {times.dtype} {list(times.shape)}")
    times = times.astype(np.float64)
    known = ~np.isnan(times)
    late = known & ~np.logical_and.accumulate(known)
    for bad, why in ((known & ~((times >= 0) & (times < np.inf)), "a time from 0 is due"), (late, "a gap before it; times may end early")):
        if len(at := np.argwhere(bad)):
            job, node = at[0]
            raise _Wrong(f": job {job} of node {node} (the first are 0): {times[job, node]:g}: {why}")
    if len(none := np.flatnonzero(~known[0])):
        raise _Wrong(f": there is no job of node {none[0]}")
    out: Floats = times
    return out


def _no_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return True
    return False


def _cell(text: str, line: str, column: int) -> float:
    if _no_number(text.strip()):
        raise _Wrong(f"{line}: column {column}: `{text}` is no number")
    return float(text) if text.strip() else np.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
