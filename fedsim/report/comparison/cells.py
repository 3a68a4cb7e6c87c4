"""What the tables of a comparison say: blocks of columns, a cell a row, as text for people."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from statistics import fmean, stdev

from fedsim.base.text import count, short_percent, spread
from fedsim.report.columns import ACCURACIES, COSTS, TITLES
from fedsim.report.comparison.rows import Comparison, Row

SPREAD = " +- "
Cell = Callable[[Row], str]


@dataclass(frozen=True)
class Block:
    """A table: what it tells of, and its columns; `rows` are those that it has something to say of."""

    title: str
    columns: tuple[tuple[str, Cell], ...]
    rows: tuple[Row, ...]

    @property
    def titles(self) -> list[str]:
        return [title for title, _ in self.columns]

    def cells(self) -> list[list[str]]:
        """[rows][columns]"""
        return [[cell(row) for _, cell in self.columns] for row in self.rows]


def blocks(found: Comparison) -> list[Block]:
    """How they end, what that cost in all, what the target cost, and how they differ from the baseline."""
    rows = found.rows
    kept = [
        Block("at the end", (*_marks(found), ("seeds", _seeds), *_ends(found)), rows),
        Block("in all", (*_costs(found, _mean), *_work(found)), rows),
    ]
    if any(end.run.info.get("target") is not None for row in rows for end in row.ends):
        kept.append(Block(goal(found), (("reached", _reached), *_costs(found, _at_target)), rows))
    against = tuple(row for row in rows if row.against)
    if found.several:
        bases = {row.baseline for row in against}
        title = f"against {bases.pop()}" if len(bases) == 1 else "against the baseline"
        kept.append(Block(title, _against(found, several=title == "against the baseline"), against))
    return kept


def goal(found: Comparison) -> str:
    """`to 85 %`, or `to target` where runs have several."""
    targets = {float(target) for run in found.runs if (target := run.info.get("target")) is not None}
    return f"to {short_percent(*targets)}" if len(targets) == 1 else "to target"


def title_of(metric: str) -> str:
    """`accuracy`, `client mean`, `test loss`"""
    return ACCURACIES.get(metric, metric.replace("/", " "))


def is_share(metric: str) -> bool:
    return "accuracy" in metric


def difference(value: float, metric: str) -> str:
    """`+1.2`, in points of per cent for accuracy."""
    return f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3g}"


def p_value(value: float) -> str:
    """`0.0125`, `< 0.001`, `-` where nothing is known."""
    return "-" if not isfinite(value) else "< 0.001" if value < 0.001 else f"{value:.3g}" if value < 0.1 else f"{value:.2f}"


def _marks(found: Comparison) -> list[tuple[str, Cell]]:
    return [("task", lambda row: row.task)] if found.tasks else []


def _seeds(row: Row) -> str:
    all = len(row.ends) + len(row.left)
    return f"{len(row.ends)}" if not row.left else f"{len(row.ends)} of {all}"


def _ends(found: Comparison) -> list[tuple[str, Cell]]:
    """Accuracy or loss, and who fares worst; of peers also the worst node and the averaged model."""
    metrics = dict.fromkeys([found.metric, "average/accuracy", "nodes/accuracy_worst", "clients/accuracy_worst_10"])
    titles = {found.metric: title_of(found.metric), "average/accuracy": "averaged", "nodes/accuracy_worst": "worst node"}
    there = [metric for metric in metrics if metric == found.metric or any(row.over(metric) for row in found.rows)]
    shown: list[tuple[str, Cell]] = [(titles.get(metric, "worst 10 %"), partial(_final, metric)) for metric in there]
    return [*shown, ("best (chosen on test)", _best)] if found.best else shown


def _final(metric: str, row: Row) -> str:
    return spread(row.over(metric)) if is_share(metric) else with_deviation(row.over(metric), "{:.4g}".format, "{:.2g}".format)


def _best(row: Row) -> str:
    return spread([end.best for end in row.ends if isfinite(end.best)])


def with_deviation(values: Sequence[float], write: Callable[[float], str], aside: Callable[[float], str] | None = None) -> str:
    """`12.0 MB +- 400 kB`, the deviation by `aside` if given; `12.0 MB` for one, or where they do not differ."""
    if not values:
        return "-"
    deviation = stdev(values) if len(values) > 1 else 0.0
    return write(fmean(values)) + (f"{SPREAD}{(aside or write)(deviation)}" if deviation > 1e-9 * abs(fmean(values)) else "")


def costs_of(found: Comparison) -> list[str]:
    """What is counted in these runs, as `crossing` names it: time and energy only where anything takes any."""
    return [
        name for name in COSTS if name not in ("seconds", "joules") or any(max(row.over(COSTS[name][0]), default=0) for row in found.rows)
    ]


def _costs(found: Comparison, cell: Callable[[str, Row], str]) -> list[tuple[str, Cell]]:
    return [(TITLES[name], partial(cell, name)) for name in costs_of(found)]


def _mean(name: str, row: Row) -> str:
    metric, write = COSTS[name]
    return with_deviation(row.over(metric), write)


def _at_target(name: str, row: Row) -> str:
    """`3 min`; `> 20 min` where the median lies on runs that missed it."""
    value, missed = row.at_target(name)
    return ("> " if missed else "") + COSTS[name][1](value) if isfinite(value) else "-"


def _reached(row: Row) -> str:
    return f"{row.hits}/{len(row.ends)}"


def _work(found: Comparison) -> list[tuple[str, Cell]]:
    stale = any(max(row.over("staleness/mean"), default=0) for row in found.rows)
    wasted = any(end.wasted > 0 for row in found.rows for end in row.ends)
    private = any(row.over("privacy/epsilon") for row in found.rows)
    cells: list[tuple[str, Cell]] = [
        ("staleness", lambda row: with_deviation(row.over("staleness/mean"), lambda mean: f"{mean:.1f}"))
    ] * stale
    cells += [("wasted work", lambda row: spread([end.wasted for end in row.ends if isfinite(end.wasted)]))] * wasted
    return cells + [("epsilon", lambda row: with_deviation(row.over("privacy/epsilon"), lambda spent: f"{spent:.3g}"))] * private


def _against(found: Comparison, several: bool) -> tuple[tuple[str, Cell], ...]:
    def interval(row: Row) -> str:
        if row.against is None or not isfinite(row.against.half):
            return "-"
        return " to ".join(difference(end, found.metric) for end in row.against.interval)

    def mean(row: Row) -> str:
        return difference(row.against.mean, found.metric) if row.against and isfinite(row.against.mean) else "-"

    columns: list[tuple[str, Cell]] = [("baseline", lambda row: row.baseline)] * several
    columns += [("pairs", lambda row: count(row.against.number) if row.against else "-")]
    columns += [(f"{title_of(found.metric)}{', points' * is_share(found.metric)}", mean), ("95 % interval", interval)]
    return (*columns, ("p", lambda row: p_value(row.p)), ("sign flips", lambda row: p_value(row.flip)))
