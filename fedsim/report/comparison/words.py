"""What a comparison says in sentences: for a paper, for an engineer, and what a reader has to know of its numbers."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean, stdev
from textwrap import shorten

from fedsim.base.text import counted
from fedsim.report.columns import COSTS, TITLES
from fedsim.report.comparison.cells import costs_of, difference, goal, is_share, p_value, title_of
from fedsim.report.comparison.rows import Comparison, Row
from fedsim.report.comparison.statistics import LEVEL, Paired, enough
from fedsim.run.crossing import FAR
from fedsim.run.folders import RunFolder

NAMED = 6  # values, or rows, that are named one by one
LONGEST = 60  # letters of a setting's value
SENTENCES = 2  # in text; all of them elsewhere


def differences(found: Comparison) -> list[str]:
    """`strategy  fedavg (synchronous), fedbuff (buffered)`: a line a setting that differs."""
    lines = []
    for key in found.differ:
        names: dict[str, list[str]] = {}
        for row in found.rows:
            if key in row.settings:
                names.setdefault(row.settings[key], []).append(row.name)
        whose = [", ".join(rows) if len(rows) <= 2 else f"{len(rows)} of {len(found.rows)}" for rows in names.values()]
        told = [f"{shorten(value, LONGEST, placeholder='...')} ({rows})" for value, rows in zip(names, whose, strict=True)]
        more = [f"and {len(told) - NAMED} more"] if len(told) > NAMED else []
        lines.append(f"{key}  {', '.join([*told[:NAMED], *more])}")
    return lines


def cheapest(found: Comparison) -> list[str]:
    """A line each: what is cheapest to the target in time, rounds where nothing takes time, bytes and energy, and by how much."""
    if len({row.task for row in found.rows}) > 1 or goal(found) == "to target":
        return []  # what is cheap for one task says nothing of another
    lines, asked = [], [name for name in costs_of(found) if name != "updates"]
    for name in [one for one in asked if one != "round" or "seconds" not in asked]:
        met = [
            (value, row.name) for row in found.rows if row.ends and not (known := row.at_target(name))[1] and isfinite(value := known[0])
        ]
        if len(found.rows) < 2 or not met:
            continue
        (cost, best), *others = sorted(met)
        write = COSTS[name][1]
        next_ = f"; next {others[0][1]} ({write(others[0][0])})" if others else "; no other gets there in most seeds"
        lines.append(f"cheapest {goal(found)} in {TITLES[name]}: {best} ({write(cost)}){next_}")
    return lines


def sentences(found: Comparison) -> list[str]:
    """For a paper: a sentence a comparison, of final values."""
    return [_sentence(found, row, against) for row, against in found.several]


def _sentence(found: Comparison, row: Row, against: Paired) -> str:
    base, unit = found[row.baseline], " %" if is_share(found.metric) else ""
    both = [(end.value(found.metric), other.value(found.metric)) for end, other in row.pairs(base)]
    ends = [_over(found, values) for values in zip(*(pair for pair in both if all(map(isfinite, pair))), strict=True)]
    points = " points" if unit else ""
    interval = (
        f" (95 % t interval {' to '.join(difference(end, found.metric) for end in against.interval)})" if isfinite(against.half) else ""
    )
    several = f", Holm-corrected for {len(found.several)} comparisons" if len(found.several) > 1 else ""
    tests = f"p = {p_value(row.p)}" if isfinite(row.p) else "p is not defined, for all differences are the same"
    exact = f"; exact sign-flip p = {p_value(row.flip)}" if isfinite(row.flip) else ""
    return (
        f"Over {counted(against.number, 'seed')}, {row.name} ended at {ends[0]}{unit} {title_of(found.metric)} and {row.baseline} at "
        f"{ends[1]}{unit} (mean +- standard deviation): a seed-paired difference of {difference(against.mean, found.metric)}{points}"
        f"{interval}, paired t test {tests}{exact}{several}."
    ).replace("= <", "<")


def _over(found: Comparison, values: Sequence[float]) -> str:
    if is_share(found.metric):
        return f"{100 * fmean(values):.1f} +- {100 * stdev(values):.1f}"
    return f"{fmean(values):.4g} +- {stdev(values):.2g}"


def notes(found: Comparison, tests: bool = True) -> list[str]:
    """What is left out, of another task, known too little of, and, with `tests`, what their p values rest on."""
    return [*_left(found), *_tasks(found), *(_tests(found) if tests else []), *_reading(found)]


def _left(found: Comparison) -> list[str]:
    left = [(row.name, run, why) for row in found.rows for run, why in row.left]
    lines = [f"left out: {name} seed {run.info.get('seed')} ({why})" for name, run, why in left[:NAMED]]
    lines += [f"left out: {len(left) - NAMED} more runs that have not finished"] if len(left) > NAMED else []
    gaps = [(row.name, len(row.ends) - len(row.over(found.metric)), len(row.ends)) for row in found.rows]
    lines += [
        f"{name}: {gap} of {counted(all, 'seed')} ended without a finite {title_of(found.metric)}, in no mean"
        for name, gap, all in gaps
        if gap
    ]
    return [*lines, *(f"left out, damaged: {text}" for text in found.broken)]


def _tasks(found: Comparison) -> list[str]:
    if not found.tasks:
        return []
    each = "; ".join(f"{letter}: {text or 'without these settings'}" for letter, text in found.tasks.items())
    return [f"different tasks, never averaged and not set against each other: {each}"]


def _tests(found: Comparison) -> list[str]:
    """What is not paired, too few to decide, and which tests they are."""
    holm = " with Holm" if len(found.several) > 1 else ""
    which = [f"p: paired t test, sign flips: exact, both two-sided{holm}; differences are row less baseline"] if found.several else []
    return [*_pairs(found), *_few(found), *which]


def _pairs(found: Comparison) -> list[str]:
    """Where a row and its baseline have not the same seeds."""
    lines = []
    for row in found.rows:
        if not row.against:
            continue
        if changed := row.other_data(found[row.baseline]):
            which = ", ".join(map(str, changed))
            lines.append(f"{row.name} and {row.baseline} learnt from other data at seed {which}: not paired; a file has changed since")
        own, others = set(row.by_seed), set(found[row.baseline].by_seed)
        if own != others and own and others:
            which = f": {', '.join(map(str, sorted(own & others)))}" if own & others else ""
            lines.append(
                f"{row.name} has {counted(len(own & others), 'seed')} in common with {row.baseline}{which}; the others are not paired"
            )
    return lines[:NAMED]


def _few(found: Comparison) -> list[str]:
    against = [row.against for row in found.rows if row.against]
    if against and not found.several:
        return ["one seed tells nothing of chance: no interval and no p; six seeds can (`sweep: {seeds: 0..5}`)"]
    if not found.several or found.floor < LEVEL:
        return []
    pairs, several = max(one.number for _, one in found.several), len(found.several)
    holm = f" after Holm for {several} comparisons" if several > 1 else ""
    return [f"sign flips: {pairs} seeds cannot decide below {found.floor:.3g}{holm}; {enough(several)} seeds can"]


def _reading(found: Comparison) -> list[str]:
    runs, lines = found.runs, list[str]()
    if any(run.info.get("target") is not None for run in runs):
        misses = any(row.at_target("round")[1] for row in found.rows)
        lines.append(
            f"{goal(found)}: median over seeds, confirmed by {counted(_smooth(runs), 'evaluation')}; a miss is later than all"
            + ("; > T: the median missed it" if misses else "")
        )
    if any((end.hit or {}).get("apart", 0) > FAR for row in found.rows for end in row.ends):
        lines.append("evaluations around a crossing lie far apart: a shorter `evaluate.every` tells more")
    if found.best:
        lines.append("best: the best evaluation of each run, chosen on the test samples, so too good; results are those at the end")
    both = [bool(run.info.get("peers")) for run in runs]
    return lines + (["the accuracy of peers is the mean over their models"] if any(both) and not all(both) else [])


def _smooth(runs: Sequence[RunFolder]) -> int:
    return int(runs[0].parameters.get("evaluate.smooth", "3"))


def heading(found: Comparison) -> str:
    """`methods: 3 variants, 5 seeds`"""
    names = list(dict.fromkeys(str(run.info.get("name")) for row in found.rows for run in row.runs))
    seeds = {len(row.ends) for row in found.rows}
    each = counted(seeds.pop(), "seed") + " each" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds each"
    return f"{', '.join(names[:NAMED])}: {counted(len(found.rows), 'variant')}, {each}; mean +- deviation of finished runs"
