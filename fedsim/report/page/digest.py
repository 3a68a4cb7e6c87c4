"""What the page of `fedsim report` needs of one run: its curves, and what its events and clients come to, as short lists."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.errors import FedsimError
from fedsim.report.checks import MERGE
from fedsim.report.diagnosis import Diagnosis, diagnose
from fedsim.report.inspection import wasted_work
from fedsim.run.folders import RunFolder
from fedsim.run.streamed import MOST, events_of

COUNTERS = ("version", "traffic/bytes_up", "traffic/bytes_down", "traffic/bytes_cross", "work/steps", "check")  # no curves of their own
NUMBERS = 180_000  # of all curves of a page; what is more is thinned
POINTS = 101  # of what is sorted over clients
OLDEST = 40  # bins of staleness
MOST_NODES = 10**6  # that a foreign folder can make us count
DIGITS = 5  # that are kept of a number


@dataclass
class Digest:
    """One run. `curves`: values of each evaluation by metric, None where it has none; the others are None where a run has none.

    `staleness` [bins]: share of merged updates; `time`: where clients' time went;
    `merged` and `accuracies`: of clients, sorted, with the share of clients up to each.
    """

    run: RunFolder
    curves: dict[str, list[float | None]]
    evaluations: int
    staleness: list[float] | None = None
    mean_staleness: float | None = None
    merged: tuple[list[float], list[float]] | None = None
    wasted: float | None = None
    time: Diagnosis | None = None
    accuracies: tuple[list[float], list[float]] | None = None


@dataclass(frozen=True)
class Left:
    """A run that is listed and not counted: why."""

    label: str
    status: str
    why: str


@dataclass
class Sorted:
    """Runs whose numbers are results, and the others."""

    runs: list[RunFolder] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def sort_out(runs: Sequence[RunFolder]) -> Sorted:
    """Finished runs with whole files apart from all others, which may be missing. Reads no events."""
    found = Sorted()
    for run in runs:
        if not (run.path / "run.json").exists() and (run.path.parent / "sweep.json").exists():
            found.left.append(Left(run.path.name, "not begun", "its sweep was stopped before"))
            continue
        try:
            status = run.status
            run.check_end()
            why = _why(run)
            _ = run.parameters, run.label_counts, run.graph, run.clients
        except FedsimError as error:
            found.left.append(Left(run.path.name, "damaged", str(error)))
            continue
        if status == "finished":
            found.runs.append(run)
        else:
            found.left.append(Left(run.label, status, why))
    return found


def _why(run: RunFolder) -> str:
    last = run.metrics[-1] if run.metrics else {}
    at = f"round {last.get('round', 0):,}"
    return f"{run.info.get('reason')}, at {at}" if run.info.get("reason") and run.status != "running" else f"at {at}"


def digest(run: RunFolder, most: int) -> Digest:
    """Of a finished run, with at most so many evaluations. Raises FedsimError where its events are damaged."""
    read = RunFolder(run.path)  # whose events are not kept
    records = run.metrics
    shown = [records[place] for place in evenly(len(records), most)]
    names = list(dict.fromkeys(name for record in records for name in record if name not in COUNTERS))
    found = Digest(run, {name: [short(record.get(name)) for record in shown] for name in names}, len(records))
    if events_of(run) > MOST:
        found.time = diagnose(read)
    elif any((run.path / "events").glob("*.parquet")):
        columns = read.columns
        own = (columns["kind"] == MERGE) & (columns["job"] >= 0)
        ages, nodes = columns["staleness"][own], columns["node"][own]
        if len(ages):
            bins = np.bincount(np.clip(ages, 0, OLDEST))
            found.staleness = [short(share) or 0.0 for share in bins / len(ages)]
            found.mean_staleness = float(ages.mean())
            times = np.unique(nodes[nodes >= 0], return_counts=True)[1]
            never = min(int(run.info.get("nodes") or 0), MOST_NODES) - len(times)
            found.merged = over_clients(np.r_[np.zeros(max(0, never), dtype=np.int64), times])
        found.wasted, found.time = wasted_work(columns), diagnose(read)
    if run.clients is not None and len(run.clients[1]):
        found.accuracies = over_clients(run.clients[1])
    return found


def most_evaluations(runs: Sequence[RunFolder]) -> int:
    """How many evaluations of each run a page has room for."""
    columns = max((len(run.metrics[-1].keys() - set(COUNTERS)) for run in runs if run.metrics), default=1)
    return max(50, NUMBERS // max(1, columns * len(runs)))


def evenly(number: int, most: int) -> list[int]:
    """Places of at most so many, evenly, with the first and the last."""
    if number <= most:
        return list(range(number))
    places: list[int] = np.unique(np.linspace(0, number - 1, most).round().astype(int)).tolist()
    return places


def over_clients(values: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Shares of clients, and the values that so many of them have at most."""
    ordered = np.sort(values)
    at = (np.arange(len(ordered)) + 0.5) / len(ordered)
    places = evenly(len(ordered), POINTS)
    return [short(at[place]) or 0.0 for place in places], [short(ordered[place]) or 0.0 for place in places]


def short(value: Any) -> float | None:
    """As few letters as its first digits need; None for what is no finite number."""
    if value is None or not np.isfinite(value):
        return None
    number = float(f"{float(value):.{DIGITS}g}") if abs(value) < 10**DIGITS else float(round(value))
    return int(number) if number == int(number) else number
