"""What is compared of each run: how it ended, what it had spent, when it met its target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite, nan

import numpy as np

from fedsim.base.errors import FedsimError
from fedsim.report.columns import ACCURACIES
from fedsim.report.inspection import wasted_work
from fedsim.run.folders import RunFolder


@dataclass(frozen=True)
class End:
    """A finished run's last evaluation, finite numbers by metric name, and what had been spent at its target (None for a miss)."""

    run: RunFolder
    final: Mapping[str, float]
    hit: Mapping[str, float] | None
    wasted: float  # share of the work of ended jobs, NaN where no events are there
    best: float = nan  # the greatest accuracy of any evaluation, chosen on the test samples themselves, where it was asked for

    @property
    def seed(self) -> int:
        return int(self.run.info.get("seed") or 0)

    def value(self, metric: str) -> float:
        """NaN where it was not measured, or is not finite."""
        return self.final.get(metric, nan)

    def reached(self, name: str) -> float:
        """What had been spent at the target, named as `crossing` names it; infinite for a miss."""
        return inf if self.hit is None else float(self.hit.get(name, inf))


def end_of(run: RunFolder, best: bool) -> End:
    """Raises FedsimError where a file that tells the end (with `best`, all evaluations) is missing, damaged, or contradicts another."""
    run.check_end()
    final = {name: float(value) for name, value in (run.info.get("final") or {}).items() if value is not None and isfinite(value)}
    end = End(run, final, run.info.get("target_reached"), _wasted(run, final))
    return replace(end, best=_best(run)) if best else end


def _best(run: RunFolder) -> float:
    for name in ACCURACIES:
        values = run.column(name)
        if np.isfinite(values).any():
            return float(np.nanmax(values))
    return nan


def _wasted(run: RunFolder, final: Mapping[str, float]) -> float:
    """Where nothing was dropped nothing is wasted, and the events need not be read."""
    if not final.get("work/dropped", 1.0):
        return 0.0
    if not any((run.path / "events").glob("*.parquet")):
        return nan
    return wasted_work(run.columns)


def why_not(run: RunFolder) -> str:
    """Why a run's numbers are no results; "" where it has finished. Raises FedsimError where run.json is broken."""
    status, reason = run.status, str(run.info.get("reason") or "")
    if status == "finished":
        return ""
    if status in ("running", "killed"):
        try:
            last = run.last
        except FedsimError:
            last = None
        return f"{status}, at round {last['round']:,}" if last else status
    return f"{status}: {reason}" if reason else status
