"""Where a learning curve crosses its target, and what had been spent by then."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SPENT = {"round": "round", "seconds": "time/seconds", "bytes": "traffic/bytes", "updates": "work/updates", "joules": "energy/joules"}
FAR = 0.2  # evaluations around a crossing that lie further apart, as a share of what was spent by then, are too sparse to tell


def crossing(
    records: Sequence[Mapping[str, Any]], target: float | None, smooth: int, metric: str = "test/accuracy"
) -> dict[str, float] | None:
    """What had been spent where the curve rises to the target: `round`, `seconds`, `bytes`, `updates` and, where counted, `joules`.

    The first evaluation at which the mean of the last `smooth` is at or above the target confirms a crossing. It lies where the curve
    itself rose to the target, of these evaluations at the first that is there or before it: on the straight line from the evaluation
    before, as the curve is drawn. So smoothing says whether there is a crossing and never shifts it. `apart`: how far these two
    evaluations lie from each other, as a share of the seconds spent by then, or of the rounds where nothing takes time. None where no
    crossing is confirmed, or there is no target. `records` are those of metrics.jsonl; those without the metric count for nothing.
    """
    known = [record for record in records if record.get(metric) is not None]
    values = np.array([record[metric] for record in known], dtype=np.float64)
    starts = range(len(values) + 1 - smooth) if target is not None else ()
    first = next((at for at in starts if values[at : at + smooth].mean() >= target), None)
    if first is None:
        return None
    level = min(float(target or 0), float(values[first : first + smooth].max()))  # a mean may be rounded up to the target
    above = values >= level
    below = np.flatnonzero(~above[: first + int(np.argmax(above[first : first + smooth]))])
    if not len(below):
        return _between(known[0], known[0], 0.0)
    at = int(below[-1])
    return _between(known[at], known[at + 1], float((level - values[at]) / (values[at + 1] - values[at])))


def _between(before: Mapping[str, Any], after: Mapping[str, Any], share: float) -> dict[str, float]:
    """What was spent a share of the way from one evaluation to another."""
    ends = {name: (float(before.get(key) or 0), float(after[key])) for name, key in SPENT.items() if after.get(key) is not None}
    spent = {name: float(start + share * (end - start)) for name, (start, end) in ends.items()}
    clock = "seconds" if spent.get("seconds") else "round"
    start, end = ends[clock]
    return spent | {"apart": (end - start) / spent[clock] if spent[clock] else 0.0}
