"""Where a run's time went: whom its rounds waited for, how slow who was when, and what clients did; in one pass over its events.

After Jiang et al. 2024 (MegaScale, https://arxiv.org/abs/2402.15627) and the what-if analysis of Lin et al. 2025
(https://arxiv.org/abs/2505.05713).
"""

# n: nodes, b: blocks of nodes, s: stretches of time, e: events

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.report.checks import ARRIVAL, DISPATCH, DROP, MERGE, PARTS, Log
from fedsim.run.folders import Columns, RunFolder
from fedsim.run.streamed import stream, ticks_of
from fedsim.settings.values import MOST_NODES

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
NEEDED = ("time", "kind", "node", "job", "version", "staleness", *PARTS)
EVENTS = 1 << 20  # at a time
BLOCKS, STRETCHES = 4096, 96  # of the map: memory is the same however many nodes and events
SLOWEST = 0.01  # of each round's jobs, at least one
FOREVER = np.iinfo(np.int64).max


@dataclass
class Diagnosis:
    """Times in seconds. `work`, `transfer`, `wait` and `lost` are of all jobs that ended: what came back, what was on the way, from there
    until it is merged or its node starts again, and all of what was dropped. `rounds`: merges of two updates or more; `waits` [n]: those
    that ended with the arrival of a node; `alone` [n]: how long before that the one before it had arrived. `saved`: how much sooner
    rounds would have ended without the slowest 1 % of the jobs of each, at least one; None where updates are stale, and so rounds wait
    for nobody in particular. `logs` [b, s] and `count` [b, s]: sums over jobs of log2 of their seconds, for `slowness`.
    """

    seconds: float
    nodes: int
    work: float = 0.0
    transfer: float = 0.0
    wait: float = 0.0
    lost: float = 0.0
    rounds: int = 0
    waits: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    alone: Floats = field(default_factory=lambda: np.zeros(0))
    saved: float | None = 0.0
    logs: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    count: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def total(self) -> float:
        """Client seconds of all jobs that ended."""
        return self.work + self.transfer + self.wait + self.lost

    @property
    def effective(self) -> float:
        """Share of that in which work was done that came back."""
        return self.work / self.total if self.total else 0.0

    @property
    def faster(self) -> float | None:
        """How many times as fast the run would be without the slowest 1 % of each round's jobs."""
        left = self.seconds - (self.saved or 0.0)
        return self.seconds / left if self.saved is not None and self.rounds and left > 0 else None

    def top(self, most: int) -> list[tuple[int, float, float]]:
        """Nodes that rounds waited for, most often first: node, share of the rounds, seconds that they waited for it alone."""
        order = np.lexsort((np.arange(len(self.waits)), -self.alone, -self.waits))[:most]
        return [(int(node), self.waits[node] / self.rounds, float(self.alone[node])) for node in order if self.waits[node]]

    def slowness(self, rows: int) -> tuple[list[Ints], Floats]:
        """Nodes of each row, slowest first, and [rows, s]: log2 of how many times as long their jobs took as those of all in the stretch
        (both geometric means), NaN where none began. Rows are blocks of neighbouring ids, and of many blocks those equally slow."""
        with np.errstate(divide="ignore", invalid="ignore"):
            usual = self.logs.sum(0) / self.count.sum(0)
            excess = np.where(self.count > 0, self.logs - self.count * usual, 0.0)
            mean = np.where(self.count.sum(1) > 0, excess.sum(1) / self.count.sum(1), -np.inf)
            known = np.argsort(-mean, kind="stable")[: int((mean > -np.inf).sum())]
            parts = [part for part in np.array_split(known, min(rows, max(1, len(known)))) if len(part)]
            found = np.array([excess[part].sum(0) / self.count[part].sum(0) for part in parts]).reshape(len(parts), -1)
        width = -(-self.nodes // BLOCKS)
        ids = [(part[:, None] * width + np.arange(width)).ravel() for part in parts]
        return [np.sort(one[one < self.nodes]) for one in ids], found


def diagnose(run: RunFolder) -> Diagnosis | None:
    """None where nothing takes time, or no events are there. Raises FedsimError where they are damaged."""
    seconds = float((run.metrics[-1].get("time/seconds") if run.metrics else 0.0) or 0.0)
    nodes = int(run.info.get("nodes") or 0)
    if not any((run.path / "events").glob("*.parquet")) or not 0 < nodes <= MOST_NODES or not 0 < seconds < np.inf:
        return None
    reader = _Reader(nodes, seconds, ticks_of(run), "flower" in run.info)
    for columns in _batches(run):
        reader.read(columns)
    return reader.done()


def _batches(run: RunFolder) -> Iterator[Columns]:
    """Of EVENTS events or fewer: of columns that are in memory already, else as they are read."""
    if "columns" not in run.__dict__:
        yield from stream(run, NEEDED, EVENTS)
        return
    columns = Log(run.columns).columns
    for first in range(0, len(columns["time"]), EVENTS):
        yield {name: columns[name][first : first + EVENTS] for name in NEEDED}


class _Reader:
    """Reads events in their order. Kept between batches: of each node what it has done since its last dispatch, and the open round."""

    def __init__(self, nodes: int, seconds: float, per_second: int, late: bool) -> None:
        """`late`: merges are told when they are done, not when they begin, as Flower's are."""
        self.nodes, self.tick, self.late = nodes, 1.0 / per_second, late
        self.found = found = Diagnosis(seconds, nodes)
        found.waits, found.alone = np.zeros(self.nodes, dtype=np.int64), np.zeros(self.nodes)
        self.width = -(-self.nodes // BLOCKS)
        found.logs, found.count = (np.zeros((-(-self.nodes // self.width), STRETCHES)) for _ in range(2))
        self.open: Columns | None = None  # events since each node's last dispatch
        self.round: Columns | None = None  # arrivals and merges of the last round
        self.before = 0  # when the round before it was merged

    def read(self, columns: Columns, end: bool = False) -> None:
        columns = {name: columns[name].astype(np.int64, copy=False) for name in NEEDED}
        kind, node = columns["kind"], columns["node"]
        known = (columns["job"] >= 0) & (node >= 0) & (node < self.nodes)  # of a foreign log perhaps not all
        own = _take(columns, np.flatnonzero(known & np.isin(kind, (DISPATCH, ARRIVAL, DROP, MERGE))))
        self._jobs(_joined(self.open, own), end)
        self._rounds(_joined(self.round, _take(own, np.flatnonzero(np.isin(own["kind"], (ARRIVAL, MERGE))))), end)

    def done(self) -> Diagnosis | None:
        """What is found, once all is read."""
        self.read({name: np.zeros(0, dtype=np.int64) for name in NEEDED}, end=True)
        return self.found if self.found.total > 0 else None

    def _jobs(self, rows: Columns, end: bool) -> None:
        """From dispatch to the next of the same node: all but each node's last, or all at the end."""
        rows = _take(rows, np.argsort(rows["node"], kind="stable"))
        of = np.cumsum(rows["kind"] == DISPATCH) - 1  # each row's dispatch
        starts = np.flatnonzero(rows["kind"] == DISPATCH)
        node = rows["node"][starts]
        known = np.flatnonzero((of >= 0) & (np.r_[node, -1][of] == rows["node"]))
        if len(known) < len(of):  # a log that does not begin with dispatches
            return self._jobs(_take(rows, known), end)
        newest = np.r_[node[1:] != node[:-1], True] if len(node) else np.zeros(0, dtype=bool)
        after = np.full(len(starts), FOREVER)
        after[~newest] = rows["time"][starts[np.flatnonzero(~newest) + 1]]
        if not end:
            self.open = _take(rows, np.flatnonzero(newest[of]))
        self._ended(rows, starts, of, after, np.ones(len(starts), dtype=bool) if end else ~newest)

    def _ended(self, rows: Columns, starts: Ints, of: Ints, after: Ints, whole: NDArray[np.bool_]) -> None:
        own = whole[of] & (rows["job"] == rows["job"][starts][of])
        ends, merges = (np.flatnonzero(own & np.isin(rows["kind"], kinds)) for kinds in ((ARRIVAL, DROP), (MERGE,)))
        until = after.copy()
        until[of[merges]] = np.minimum(until[of[merges]], rows["time"][merges])
        came = ends[rows["kind"][ends] == ARRIVAL]
        first, found = starts[of[came]], self.found
        down, work, up = (rows[name][came] + rows[name][first] for name in PARTS)  # one of them tells
        wait = until[of[came]] - rows["time"][came]
        found.work += float(work.sum()) * self.tick
        found.transfer += float((down + up).sum()) * self.tick
        found.wait += float(wait[until[of[came]] < FOREVER].sum()) * self.tick
        dropped = ends[rows["kind"][ends] == DROP]
        found.lost += float((rows["time"][dropped] - rows["time"][starts[of[dropped]]]).sum()) * self.tick
        begun = rows["time"][first] * (self.tick / max(found.seconds, self.tick))
        cell = rows["node"][came] // self.width * STRETCHES + np.clip((begun * STRETCHES).astype(np.int64), 0, STRETCHES - 1)
        length = np.log2(np.maximum(down + work + up, 1) * self.tick)
        for sums, weight in ((found.logs, length), (found.count, None)):
            sums += np.bincount(cell, weight, sums.size).reshape(sums.shape)

    def _rounds(self, rows: Columns, end: bool) -> None:
        """All merges but the last, or all at the end, of which each ends a round."""
        merge = rows["kind"] == MERGE
        new = merge & np.r_[True, ~merge[:-1] | (np.diff(rows["version"]) != 0)] if len(merge) else merge
        first = np.flatnonzero(new)
        if not len(first):
            self.round = rows
            return
        last = np.r_[first[1:], len(rows["time"])]
        size = np.add.reduceat(merge.astype(np.int64), first)  # merged updates: its own run of merge rows
        begin = np.r_[0, first[:-1] + size[:-1]]  # where its arrivals begin
        if not end:
            self.round = _take(rows, np.arange(begin[-1], last[-1]))
            first, size, begin = first[:-1], size[:-1], begin[:-1]
        time, found = rows["time"], self.found
        if found.saved is not None and (rows["staleness"][merge] > 0).any():
            found.saved = None
        several = size > 1
        found.rounds += int(several.sum())
        waited = np.flatnonzero(several & (first > begin))
        waited = waited[self.late | (time[first[waited]] == time[first[waited] - 1])]
        end_, came = first[waited], first[waited] - begin[waited]
        starts = np.r_[self.before, time[first[:-1]]][waited] if len(first) else waited
        alone = (time[end_ - 1] - np.where(came > 1, time[np.maximum(end_ - 2, 0)], starts)) * self.tick
        np.add.at(found.waits, rows["node"][end_ - 1], 1)
        np.add.at(found.alone, rows["node"][end_ - 1], alone)
        some = np.maximum(1, np.ceil(SLOWEST * came - 1e-9).astype(np.int64))
        fair = came > some
        if found.saved is not None:
            found.saved += float((time[end_ - 1] - time[np.maximum(end_ - 1 - some, 0)])[fair].sum()) * self.tick
        if len(first):
            self.before = int(time[first[-1]])


def _take(columns: Columns, rows: Any) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _joined(left: Columns | None, right: Columns) -> Columns:
    return right if left is None else {name: np.concatenate([left[name], right[name]]) for name in right}
