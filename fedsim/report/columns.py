"""What the columns of the closing table say: of each variant's finished runs alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from statistics import fmean, median, stdev

from fedsim.base.text import count, duration, energy, short_percent, size, spread
from fedsim.report.style import Variant
from fedsim.run.crossing import FAR
from fedsim.run.folders import RunFolder

ACCURACIES = {
    "test/accuracy": "accuracy",
    "average/accuracy": "averaged",
    "nodes/accuracy_mean": "node mean",
    "clients/accuracy_mean": "client mean",
}
COSTS: dict[str, tuple[str, Callable[[float], str]]] = {  # as `crossing` calls them: the metric of the whole run, and how it is written
    "seconds": ("time/seconds", duration),
    "round": ("round", count),
    "bytes": ("traffic/bytes", size),
    "joules": ("energy/joules", energy),
    "updates": ("work/updates", count),
}
TITLES = {"seconds": "time", "round": "rounds", "bytes": "bytes", "joules": "energy", "updates": "updates"}


@dataclass(frozen=True)
class Column:
    """`group` stands above its neighbours of the same group; where lines are too long, the columns of least `rank` are left out first."""

    title: str
    cell: Callable[[Variant], str]
    rank: int
    group: str = ""


def final(run: RunFolder, name: str) -> list[float]:
    """The final value of a metric: one finite number or none."""
    value = (run.info.get("final") or (run.metrics[-1] if run.metrics else {})).get(name)
    return [float(value)] if value is not None and isfinite(value) else []


def accuracy_of(runs: Sequence[RunFolder]) -> str | None:
    """The first kind of accuracy that any run has: only one kind is compared."""
    return next((name for name in ACCURACIES if any(final(run, name) for run in runs)), None)


def target_of(variants: Sequence[Variant]) -> str:
    """`to 85 %`; `to target` where variants have several; "" without."""
    targets = {float(goal) for variant in variants for run in variant.runs if (goal := run.info.get("target")) is not None}
    return f"to {short_percent(*targets)}" if len(targets) == 1 else "to target" if targets else ""


def columns(variants: Sequence[Variant]) -> list[Column]:
    """What these variants' table shows, from left to right."""
    goal = target_of(variants)
    seeds = [Column("seeds", _seeds, 5)] if any(len(variant.runs) > 1 for variant in variants) else []
    if not goal:
        return [*seeds, *_ends(variants, ""), *_costs(variants, "", {"bytes": 7, "joules": 6, "updates": 3}, _total), *_spent(variants)]
    timed = any(_over(variant, "time/seconds") and max(_over(variant, "time/seconds")) > 0 for variant in variants)
    ranks = {"seconds" if timed else "round": 8, "bytes": 7, "joules": 6, "updates": 3}
    at = _costs(variants, goal, ranks, _reached)
    whole = _costs(variants, "in all", {"bytes": 2, "joules": 1, "updates": 0}, _total)
    return [*seeds, *_ends(variants, "at the end"), *at, *whole, *_spent(variants)]


def _seeds(variant: Variant) -> str:
    """`3`; `2 of 3` where the others have not finished."""
    done, all = len(variant.finished), len(variant.runs)
    return f"{done}" if done == all else f"{done} of {all}"


def _ends(variants: Sequence[Variant], group: str) -> list[Column]:
    """How good the last models are."""
    runs = [run for variant in variants for run in variant.runs]
    peers = [run for run in runs if run.info.get("peers")]
    kind = accuracy_of(runs)
    if kind is None:
        return [Column("loss", lambda v: _with_deviation(_over(v, "test/loss")), 9, group)]
    title = "node mean" if kind == "test/accuracy" and len(peers) == len(runs) else ACCURACIES[kind]
    found = {kind: (title, 9), "nodes/accuracy_worst": ("worst node", 5), "average/accuracy": ("averaged", 5)}
    found = {name: what for name, what in found.items() if name == kind or any(final(run, name) for run in peers)}
    found |= {"clients/accuracy_worst_10": ("worst 10 %", 4)} if any(final(run, "clients/accuracy_worst_10") for run in runs) else {}
    return [Column(title, partial(_share, name), rank, group) for name, (title, rank) in found.items()]


def _costs(variants: Sequence[Variant], group: str, ranks: dict[str, int], cell: Callable[[str, Variant], str]) -> list[Column]:
    counted = [name for name in ranks if name != "joules" or any(_over(variant, "energy/joules") for variant in variants)]
    return [Column(TITLES[name], partial(cell, name), ranks[name], group) for name in counted]


def _spent(variants: Sequence[Variant]) -> list[Column]:
    private = any(_over(variant, "privacy/epsilon") for variant in variants)
    return [Column("epsilon", lambda v: _mean(_over(v, "privacy/epsilon"), lambda spent: f"{spent:.3g}"), 6)] if private else []


def _over(variant: Variant, name: str) -> list[float]:
    return [value for run in variant.finished for value in final(run, name)]


def _mean(values: Sequence[float], write: Callable[[float], str]) -> str:
    return write(fmean(values)) if values else "-"


def _with_deviation(values: Sequence[float]) -> str:
    return _mean(values, lambda mean: f"{mean:.4g}") + (f" +- {stdev(values):.2g}" if len(values) > 1 else "")


def _share(name: str, variant: Variant) -> str:
    return spread(_over(variant, name))


def _total(name: str, variant: Variant) -> str:
    metric, write = COSTS[name]
    return _mean(_over(variant, metric), write)


def at_target(variant: Variant, name: str) -> float:
    """What was spent when the target was reached: the median over seeds, a miss being more than all; infinite where most missed."""
    hits = [run.info.get("target_reached") or {} for run in variant.finished]
    return median([float(hit.get(name, inf)) for hit in hits]) if hits else inf


def sparse(variant: Variant) -> bool:
    """Do evaluations around a crossing lie so far apart that little is known of where it is?"""
    return any((run.info.get("target_reached") or {}).get("apart", 0) > FAR for run in variant.finished)


def _reached(name: str, variant: Variant) -> str:
    """`3 min`; `~3 min` where evaluations are sparse; `3 min (4/5)` where one of five missed, `-` where most did."""
    spent, hits = at_target(variant, name), [run.info.get("target_reached") for run in variant.finished]
    some = f" ({sum(map(bool, hits))}/{len(hits)})" if name in ("seconds", "round") and any(hits) and not all(hits) else ""
    return ("-" if spent == inf else ("~" if sparse(variant) else "") + COSTS[name][1](spent)) + some
