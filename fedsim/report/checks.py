"""What must hold for the events of any run: checks over arrays, without a loop over events."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.federation.ledger import KINDS
from fedsim.run.folders import Columns

DISPATCH, ARRIVAL, MERGE, DROP, MIX, EVALUATE = range(len(KINDS))
PARTS = ("down", "work", "up")
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Check(NamedTuple):
    """One invariant: whether it holds, and if not, where it fails first."""

    name: str
    ok: bool
    detail: str = ""


class Log:
    """Events as arrays, with every row's dispatch looked up by its job."""

    def __init__(self, columns: Columns) -> None:
        if columns["kind"].dtype.kind == "U":
            words, place = np.unique(columns["kind"], return_inverse=True)
            columns = columns | {"kind": np.array([KINDS.index(word) for word in words], dtype=np.int8)[place]}
        self.columns = columns
        self.sent = np.flatnonzero(columns["kind"] == DISPATCH)
        order = np.argsort(columns["job"][self.sent], kind="stable")
        self.sent_jobs, self.sent_rows = columns["job"][self.sent][order], self.sent[order]

    def rows(self, *kinds: int) -> Ints:
        """int64: the rows of these kinds, in log order."""
        return np.flatnonzero(np.isin(self.columns["kind"], kinds))

    def find(self, name: str, rows: Ints) -> Ints:
        return self.columns[name][rows].astype(np.int64)

    def dispatches(self, rows: Ints) -> tuple[Ints, Mask]:
        """The dispatch row of each row's job, and whether there is one."""
        jobs = self.columns["job"][rows]
        place = np.searchsorted(self.sent_jobs, jobs)
        place = np.minimum(place, max(0, len(self.sent_jobs) - 1))
        if not len(self.sent_jobs):
            return np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool)
        return self.sent_rows[place], self.sent_jobs[place] == jobs


def parts_of(log: Log) -> dict[str, Ints]:
    """Ticks of each dispatched job's parts, int64 [jobs] in the order of `sent_rows`: as dispatched, or as its end tells."""
    parts = {name: log.find(name, log.sent_rows) for name in PARTS}
    ends = log.rows(ARRIVAL, DROP)
    known = log.dispatches(ends)[1]
    place = np.searchsorted(log.sent_jobs, log.columns["job"][ends[known]])
    for name, ticks in parts.items():
        np.add.at(ticks, place, log.find(name, ends[known]))
    return parts


def check_events(columns: Columns, info: Mapping[str, Any], records: Sequence[Mapping[str, Any]] = ()) -> list[Check]:
    """The invariants of a run's events (of `columns_of`, or a ledger's `columns`), in the order in which they are shown.

    `info` is run.json: `concurrency` and `max_staleness` (no check without), and `final`, the last metrics record, with whose traffic the
    bytes must agree; with `records` (all of metrics.jsonl) they must agree at each evaluation.
    """
    log = Log(columns)
    checks = [_clock(log), _arrivals(log), _ends(log), _jobs(log), _merges(log), _staleness(log, info), _bytes(log, info, records)]
    if "energy" in columns:
        checks.append(_energy(log, info, records))
    if (limit := info.get("concurrency")) is not None:
        checks.insert(4, _concurrency(log, int(limit)))
    return checks


def _first(name: str, bad: Mask, tell: Callable[[int], str]) -> Check:
    """Fails where anything is bad and tells of the first."""
    wrong = np.flatnonzero(bad)
    more = f" (and {len(wrong) - 1:,} more)" if len(wrong) > 1 else ""
    return Check(name, False, tell(int(wrong[0])) + more) if len(wrong) else Check(name, True)


def _clock(log: Log) -> Check:
    time = log.columns["time"]
    return _first("clock", np.diff(time) < 0, lambda at: f"event {at + 1} is at tick {time[at + 1]:,}, after tick {time[at]:,}")


def _arrivals(log: Log) -> Check:
    """Arrival = dispatch + down + work + up, of the same node; where only the way tells the parts, they stand in the arrival's row."""
    rows = log.rows(ARRIVAL)
    sent, known = log.dispatches(rows)
    rows, sent = rows[known], sent[known]
    due = log.find("time", sent) + sum(log.find(part, sent) + log.find(part, rows) for part in PARTS)
    time, job, node = log.find("time", rows), log.find("job", rows), log.find("node", rows)
    return _first(
        "arrivals",
        (time != due) | (node != log.find("node", sent)),
        lambda at: f"job {job[at]} of node {node[at]} arrived at tick {time[at]:,}; its dispatch and parts give {due[at]:,}",
    )


def _ends(log: Log) -> Check:
    """A job is dispatched once, and then arrives or is dropped at most once."""
    rows = log.rows(DISPATCH, ARRIVAL, DROP)
    starts = log.columns["kind"][rows] == DISPATCH
    job = log.find("job", rows)
    order = np.lexsort((rows, job))
    change = np.where(starts, 1, -1)[order]
    first = np.r_[True, np.diff(job[order]) != 0] if len(job) else np.zeros(0, dtype=bool)
    place = np.arange(len(job)) - np.maximum.accumulate(np.where(first, np.arange(len(job)), 0))
    bad = np.where(place == 0, change != 1, (place > 1) | (change != -1))
    return _first("ends", bad, lambda at: f"job {job[order][at]} does not go from one dispatch to one end")


def _flight(log: Log) -> tuple[Ints, Ints, Ints]:
    """The rows at which jobs begin and end, the nodes of their dispatches, and the change in the number of jobs in flight."""
    rows = log.rows(DISPATCH, ARRIVAL, DROP)
    sent, known = log.dispatches(rows)
    rows, sent = rows[known], sent[known]
    return rows, log.find("node", sent), np.where(log.columns["kind"][rows] == DISPATCH, 1, -1).astype(np.int64)


def _jobs(log: Log) -> Check:
    """At most one job a node in flight."""
    rows, node, change = _flight(log)
    order = np.lexsort((rows, node))
    total = np.cumsum(change[order])
    first = np.flatnonzero(np.diff(node[order], prepend=-2) != 0)
    before = np.repeat(np.r_[0, total[first[1:] - 1]], np.diff(np.r_[first, len(rows)])) if len(rows) else total
    return _first("jobs", total - before > 1, lambda at: f"node {node[order][at]} has two jobs in flight at event {rows[order][at]}")


def _concurrency(log: Log, limit: int) -> Check:
    rows, _, change = _flight(log)
    flying = np.cumsum(change)
    return _first("concurrency", flying > limit, lambda at: f"{flying[at]} jobs in flight at event {rows[at]}; the limit is {limit}")


def _merges(log: Log) -> Check:
    """What is merged has arrived before."""
    rows = log.rows(MERGE)
    rows = rows[log.columns["job"][rows] >= 0]
    arrived = log.rows(ARRIVAL)
    jobs, first = np.unique(log.columns["job"][arrived], return_index=True)
    job = log.find("job", rows)
    if not len(jobs):
        return _first("merges", np.ones(len(rows), dtype=bool), lambda at: f"job {job[at]} was merged but never arrived")
    place = np.minimum(np.searchsorted(jobs, job), len(jobs) - 1)
    bad = (jobs[place] != job) | (arrived[first[place]] > rows)
    return _first("merges", bad, lambda at: f"job {job[at]} was merged at event {rows[at]} but had not arrived")


def _staleness(log: Log, info: Mapping[str, Any]) -> Check:
    """Staleness = versions between the job's and the merge's, never negative, nor above what the schedule promises."""
    rows = log.rows(MERGE)
    sent, known = log.dispatches(rows)
    rows, sent = rows[known], sent[known]
    missed = log.find("version", rows) - 1 - log.find("version", sent)
    said, job = log.find("staleness", rows), log.find("job", rows)
    bad = (said != missed) | (said < 0)
    if bad.any() or (limit := info.get("max_staleness")) is None:
        return _first("staleness", bad, lambda at: f"job {job[at]} is logged with staleness {said[at]}; its versions give {missed[at]}")
    return _first("staleness", said > limit, lambda at: f"job {job[at]} was merged with staleness {said[at]}; the limit is {limit}")


def _bytes(log: Log, info: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Check:
    """Bytes of the events up to an evaluation = its record's counters; those of `mix` rows are between hearers."""
    kind, down, up = (log.columns[name] for name in ("kind", "bytes_down", "bytes_up"))
    mixed = kind == MIX
    sums = {
        "down": np.cumsum(np.where(mixed, 0, down)),
        "up": np.cumsum(np.where(mixed, 0, up)),
        "cross": np.cumsum(np.where(mixed, down + up, 0)),
    }
    at, said = _evaluations(log, info, records)
    if len(at) < len(said):
        return Check("bytes", False, "the log has no evaluation, the metrics have one")
    for way, total in sums.items():
        counted = np.array([record.get(f"traffic/bytes_{way}", 0) for record in said], dtype=np.int64)
        wrong = np.flatnonzero(total[at[: len(said)]] != counted)
        if len(wrong):
            place = int(wrong[0])
            seen, when = total[at[place]], said[place].get("round")
            return Check("bytes", False, f"{seen:,} bytes {way} in the events, {counted[place]:,} in the metrics of round {when}")
    return Check("bytes", True)


def _evaluations(log: Log, info: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> tuple[Ints, list[Mapping[str, Any]]]:
    """The rows of evaluations and what was said there: all records, or the last one."""
    at = log.rows(EVALUATE)[: len(records)] if records else log.rows(EVALUATE)[-1:]
    return at, list(records[: len(at)]) if records else [final for final in [info.get("final")] if final]


def _energy(log: Log, info: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> Check:
    """Joules of the events up to an evaluation = its record's; microjoules are counted whole."""
    at, said = _evaluations(log, info, records)
    total = np.cumsum(np.rint(log.columns["energy"] * 1e6).astype(np.int64))[at[: len(said)]]
    counted = np.rint(np.array([record.get("energy/joules", 0.0) for record in said[: len(at)]]) * 1e6).astype(np.int64)
    return _first("energy", total != counted, lambda row: f"{total[row] / 1e6:g} J in the events, {counted[row] / 1e6:g} J in the metrics")
