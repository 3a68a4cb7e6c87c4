"""A comparison as numbers: a record a variant, for CSV, JSON and pandas."""

from collections.abc import Sequence
from math import isfinite, nan
from statistics import fmean, stdev
from typing import Any

from fedsim.report.columns import COSTS
from fedsim.report.comparison import words
from fedsim.report.comparison.rows import Comparison, Row

METRICS = {
    "worst_10": "clients/accuracy_worst_10",
    "worst_node": "nodes/accuracy_worst",
    "averaged": "average/accuracy",
    "staleness": "staleness/mean",
    "epsilon": "privacy/epsilon",
}
NAMES = {"round": "rounds"}


def records(found: Comparison) -> list[dict[str, Any]]:
    """All the same keys: `variant`, `task`, numbers of runs, means and deviations over seeds, medians at the target, differences.

    Shares are from 0 to 1, times in seconds, energy in joules. `to_target_..._more` is true where the number is only known to be more.
    A number that is not known is NaN.
    """
    return [_record(found, row) for row in found.rows]


def _record(found: Comparison, row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {"variant": row.name, "task": row.task, "finished": len(row.ends), "left_out": len(row.left)}
    record |= {"seeds": " ".join(map(str, row.by_seed)), "metric": found.metric}
    record |= _both("final", row.over(found.metric))
    for name, metric in METRICS.items():
        if metric != found.metric:
            record |= _both(name, row.over(metric))
    for name, (metric, _) in COSTS.items():
        record |= _both(NAMES.get(name, name), row.over(metric))
    record |= _both("wasted_work", [end.wasted for end in row.ends if isfinite(end.wasted)])
    record |= _both("best_chosen_on_test", [end.best for end in row.ends if isfinite(end.best)]) if found.best else {}
    record["reached"] = row.hits
    for name in COSTS:
        value, more = row.at_target(name)
        record |= {f"to_target_{NAMES.get(name, name)}": value, f"to_target_{NAMES.get(name, name)}_more": more}
    against, ends = row.against, (nan, nan)
    ends = against.interval if against else ends
    record |= {"baseline": row.baseline, "pairs": against.number if against else 0, "difference": against.mean if against else nan}
    return record | {"difference_low": ends[0], "difference_high": ends[1], "p_holm": row.p, "sign_flip_p_holm": row.flip}


def _both(name: str, values: Sequence[float]) -> dict[str, float]:
    mean, deviation = fmean(values) if values else nan, stdev(values) if len(values) > 1 else nan
    return {f"{name}_mean": mean, f"{name}_deviation": deviation}


def whole(found: Comparison) -> dict[str, Any]:
    """Records with all that is said beside them; null for what is not known."""
    rows = [{name: None if value != value else value for name, value in record.items()} for record in records(found)]
    differ = {key: {row.name: row.settings[key] for row in found.rows if key in row.settings} for key in found.differ}
    said = {"notes": words.notes(found), "sentences": words.sentences(found), "cheapest": words.cheapest(found)}
    return {"variants": rows, "differing": differ, "tasks": dict(found.tasks), **said}
