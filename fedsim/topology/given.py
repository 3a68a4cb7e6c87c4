"""Mixing weights from a file: a matrix, a list of weighted edges, or several of them in turn."""

# n: nodes, t: matrices

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.settings.anchored import anchored_file
from fedsim.settings.part import setting
from fedsim.settings.traces import find_trace
from fedsim.topology.base import Topology
from fedsim.topology.graphs import apart
from fedsim.topology.mixing import CLOSE, Keep, Mixing

KINDS = (".npy", ".csv", ".edges", ".txt")


@dataclass(frozen=True, kw_only=True)
class Weights(Topology):
    """Weights of a file: row i says how much node i takes of whom. `.npy` [n, n] or [t, n, n]; `.csv` n lines of n numbers; `.edges` or
    `.txt`: `hearer sender weight` a line, # for remarks, where what a row lacks to 1 is the node's own. In text an empty line begins the
    next matrix. Several take turns, from the first again after the last.
    """

    file: str = setting(help="path, beside the scenario or under FEDSIM_DATA")
    every: int = setting(1, "rounds that each of several matrices holds for", ge=1)
    connected: bool = setting(True, "refuse nodes that don't hear of each other, over all matrices")

    def anchored(self, base: Path) -> "Weights":
        """The same wherever the scenario lies: a file beside it by its absolute path."""
        return replace(self, file=anchored_file(self.file, base))

    def _all(self, nodes: int) -> tuple[Any, ...]:
        path = find_trace(self.file)
        return _read(path, nodes, path.stat().st_mtime_ns)

    @property
    def changes(self) -> bool:  # type: ignore[override]
        """How many there are only the file knows, and that is not read before the run."""
        return True

    def mixing(self, nodes: int, step: int, key: Tensor) -> Mixing:
        return super().mixing(nodes, step // self.every % len(self._all(nodes)) * self.every, key)

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        found = self._all(nodes)
        return found[step // self.every % len(found)]

    def check(self, nodes: int, key: Tensor) -> None:
        found = self._all(nodes)
        for at in range(len(found)):
            mixing = self.mixing(nodes, at * self.every, key)
            if not (mixing.averages or mixing.keeps_sums):
                raise ValueError(f"{_where(self.file, at, len(found))}{_unlike_1(mixing.weights, 'rows')}")
        if self.connected:
            apart(Mixing(sum(found[1:], found[0])).components())

    def suits(self, nodes: int, key: Tensor, stochastic: Keep, symmetric: bool) -> None:
        """Raises ValueError, naming matrix and entry, where one has not the sums, or not the symmetry, that a method needs."""
        found = self._all(nodes)
        for at in range(len(found)):
            mixing, place = self.mixing(nodes, at * self.every, key), _where(self.file, at, len(found))
            if not (mixing.averages if stochastic == "rows" else mixing.keeps_sums):
                raise ValueError(f"{place}{_unlike_1(mixing.weights, stochastic)}")
            if symmetric and not mixing.symmetric:
                row, column = np.argwhere((abs(mixing.weights - mixing.weights.T) >= CLOSE).toarray())[0]
                ends = f"{mixing.weights[row, column]:.6g} and {mixing.weights[column, row]:.6g}"
                raise ValueError(f"{place}rows and columns {row} and {column} have {ends}; a symmetric matrix is due")


def _where(file: str, at: int, count: int) -> str:
    return f"{file}: matrix {at}: " if count > 1 else f"{file}: "


def _unlike_1(weights: Any, keep: Keep) -> str:
    """The first row, or column, whose sum is none."""
    sums = np.asarray(weights.sum(1 if keep == "rows" else 0)).ravel()
    at = int(np.flatnonzero(abs(sums - 1) >= CLOSE)[0])
    return f"{keep[:-1]} {at} sums to {sums[at]:.9g}, not to 1 (the first is 0)"


@lru_cache(maxsize=4)
def _read(path: Path, nodes: int, changed: int) -> tuple[Any, ...]:
    """t csr matrices [n, n]. Raises ValueError, naming the file, the matrix and the entry."""
    from scipy.sparse import csr_array

    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"{path}: a file of {', '.join(KINDS)} is due")
    try:
        if kind == ".npy":
            whole = np.load(path, allow_pickle=False)
            found = list(whole[None] if whole.ndim == 2 else whole)
        else:
            found = list(_texts(path, nodes))
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not found:
        raise ValueError(f"{path}: it has no matrix")
    for at, one in enumerate(found):
        if one.shape != (nodes, nodes) or one.dtype.kind not in "iuf":
            shape = " x ".join(map(str, one.shape))
            raise ValueError(f"{_where(str(path), at, len(found))}{nodes} x {nodes} numbers are due, not {shape} of {one.dtype}")
        dense = not hasattr(one, "coords")
        bad = np.argwhere(~((one >= 0) & (one < np.inf))) if dense else np.stack(one.coords, 1)[~((one.data >= 0) & (one.data < np.inf))]
        if len(bad):
            row, column = bad[0]
            value = one[row, column] if dense else one.tocsr()[row, column]
            raise ValueError(f"{_where(str(path), at, len(found))}row {row}, column {column} is {value:g}; weights are numbers from 0")
    return tuple(csr_array(one) for one in found)


def _texts(path: Path, nodes: int) -> Iterator[Any]:
    """A matrix for each run of lines without an empty one between."""
    lines = [(number, line.split("#")[0], line) for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)]
    lines = [one for one in lines if one[1].strip() or not one[2].strip()]  # a remark ends no matrix
    table = path.suffix.lower() == ".csv"
    for empty, group in groupby(lines, lambda one: not one[1].strip()):
        if not empty:
            rows = [(number, [_number(cell, path, number) for cell in _cells(text, table)]) for number, text, _ in group]
            yield _square(rows, path) if table else _edges(rows, path, nodes)


def _cells(text: str, table: bool) -> list[str]:
    return text.split(",") if table else text.replace(",", " ").split()


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}:{line}: `{text.strip()}` is no number") from None


def _square(rows: list[tuple[int, list[float]]], path: Path) -> Any:
    for number, row in rows:
        if len(row) != len(rows):
            raise ValueError(f"{path}:{number}: {len(row)} numbers in a matrix of {len(rows)} rows")
    return np.array([row for _, row in rows])


def _edges(rows: list[tuple[int, list[float]]], path: Path, nodes: int) -> Any:
    """coo [n, n]; what a row lacks to 1 is on its diagonal, where that was not written."""
    from scipy.sparse import coo_array

    seen = dict[tuple[int, int], float]()
    for number, row in rows:
        if len(row) != 3:
            raise ValueError(f"{path}:{number}: `hearer sender weight` is due")
        if not all(end == end // 1 and 0 <= end < nodes for end in row[:2]):
            raise ValueError(f"{path}:{number}: nodes are whole numbers from 0 to {nodes - 1}")
        if (edge := (int(row[0]), int(row[1]))) in seen:
            raise ValueError(f"{path}:{number}: {edge[0]} hears {edge[1]} on a line before")
        seen[edge] = row[2]
    sums = np.bincount([hearer for hearer, _ in seen], list(seen.values()), minlength=nodes)
    for node in range(nodes):
        if (node, node) not in seen and sums[node] < 1:
            seen[node, node] = 1 - float(sums[node])
    ends = np.array(list(seen)).reshape(-1, 2)
    return coo_array((np.array(list(seen.values())), (ends[:, 0], ends[:, 1])), shape=(nodes, nodes))
