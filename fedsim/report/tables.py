"""The table that closes a run or a sweep: a row a variant, then where everything is and what to type next."""

import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from math import inf
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from fedsim.base.text import counted, duration, short_percent
from fedsim.report.columns import COSTS, TITLES, Column, at_target, columns, final, sparse, target_of
from fedsim.report.style import Variant, variants_of
from fedsim.run.folders import RunFolder
from fedsim.run.intact import read_json

WIDTH = 80
REASON, SHORT, LEAST = 14, 4, 2  # letters of reasons and names that are always shown, and columns


def print_summary(runs: Sequence[RunFolder], pictures: Sequence[Path] = (), console: Console | None = None) -> None:
    """Prints `summary`; where the output is no terminal it is plain text of at most 80 columns."""
    console = console or Console(highlight=False, emoji=False)
    console.print(summary(runs, pictures, min(console.width, 100)), crop=False, soft_wrap=False)


def summary(runs: Sequence[RunFolder], pictures: Sequence[Path] = (), width: int = WIDTH) -> RenderableType:
    """What `fedsim run` ends with; `runs` are all that began of a run or a sweep.

    Numbers are of finished runs alone. Of several seeds they are means (+- deviation for shares), those at the target medians.

    Raises FedsimError where a run's run.json is missing or broken, ValueError without runs.
    """
    if not runs:
        raise ValueError("a summary needs at least one run")
    variants = variants_of(runs)
    return Group(_head(runs, width), *_table(variants, width), *_notes(variants, width), *_foot(runs, pictures, width))


def _head(runs: Sequence[RunFolder], width: int) -> Text:
    statuses = Counter(run.status for run in runs)
    wall = sum(float(run.info.get("wall_seconds") or 0.0) for run in runs)
    beside = max(int(run.info.get("beside") or 1) for run in runs)
    took = f"in {duration(wall)}{f' of runs, {beside} at a time' if beside > 1 else ''}"
    left = f"{runs[0].info.get('name')}  finished {statuses['finished']} of {_planned(runs)}  {took}"
    targets = {target for run in runs if (target := run.info.get("target")) is not None}
    held = f", confirmed by {counted(int(_smooth(runs)), 'evaluation')}"
    right = f"target {short_percent(targets.pop())}{held}" if len(targets) == 1 else ""
    rest = right.rjust(width - len(left)) if len(left) + len(right) + 2 <= width else f"\n  {right}"
    return Text(left + rest if right else left, overflow="ellipsis", no_wrap=True)


def _smooth(runs: Sequence[RunFolder]) -> str:
    return runs[0].parameters.get("evaluate.smooth", "3")


def _planned(runs: Sequence[RunFolder]) -> int:
    """How many runs there were to be: a sweep that was stopped has not begun all of them."""
    sweep = upper_of(runs) / "sweep.json"
    return len(read_json(sweep).get("runs", [])) if sweep.exists() else len(runs)


def _ended(variant: Variant) -> str:
    """The reason; `failed: ...` where a run failed; several reasons with their numbers."""
    words = Counter(_reason(run) for run in variant.runs)
    return words.most_common(1)[0][0] if len(words) == 1 else ", ".join(f"{number}x {word}" for word, number in words.items())


def _reason(run: RunFolder) -> str:
    status, reason = run.status, str(run.info.get("reason") or "")
    return (reason or status) if status == "finished" else f"{status}: {reason}" if reason else status


def _table(variants: Sequence[Variant], width: int) -> list[Text]:
    """Numbers are never cut. Where lines are too long reasons give way, then whole columns, and names at last."""
    names, reasons = ["", *(variant.name for variant in variants)], ["ended by", *map(_ended, variants)]
    longest, room = max(map(len, names)), min(REASON, max(map(len, reasons)))
    shown = columns(variants)
    while len(shown) > LEAST and longest + len(_lines(shown, variants)[-1]) + room + 6 > width:
        least = min(reversed(shown), key=lambda column: column.rank)
        shown = [column for column in shown if column is not least]
    numbers = _lines(shown, variants)
    left = width - len(numbers[0]) - 6
    reason = max(REASON, min(max(map(len, reasons)), left - longest))
    name = max(SHORT, min(longest, left - min(reason, room)))
    above = [""] if len(numbers) > len(names) else []
    rows = zip(above + names, numbers, above + reasons, strict=True)
    lines = [f"  {_cut(n, name).ljust(name)}  {row}  {r if len(r) <= reason else r[: reason - 2] + '..'}".rstrip() for n, row, r in rows]
    return [Text(line, "bold" if place <= len(above) else "", no_wrap=True, overflow="ignore") for place, line in enumerate(lines)]


def _lines(shown: Sequence[Column], variants: Sequence[Variant]) -> list[str]:
    """The columns' groups, where they have any, titles, and cells, to the right of their columns."""
    rows = [[column.title for column in shown], *([column.cell(variant) for column in shown] for variant in variants)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    spans = list[str]()
    for group, members in groupby(range(len(shown)), lambda place: shown[place].group):
        places = list(members)
        widths[places[0]] += max(0, len(group) - sum(widths[place] + 2 for place in places) + 2)
        own = sum(widths[place] + 2 for place in places) - 2
        spans.append(f" {group} ".center(own, "-") if group and len(group) + 2 <= own else group.rjust(own))
    lines = ["  ".join(cell.rjust(room) for cell, room in zip(row, widths, strict=True)) for row in rows]
    return ["  ".join(spans), *lines] if any(map(str.strip, spans)) else lines


def _cut(text: str, width: int) -> str:
    """Both ends: names of a sweep often differ in the last one."""
    return text if len(text) <= width else f"{text[: (width - 1) // 2]}..{text[len(text) - (width - 2) // 2 :]}"


def _notes(variants: Sequence[Variant], width: int) -> list[Text]:
    """What is cheapest to the target, and what is known too little of."""
    lines = [cheapest] if (cheapest := _cheapest(variants)) else []
    if any(map(sparse, variants)):
        lines.append("~ the evaluations around the crossing lie far apart: a shorter `evaluate.every` tells more")
    late = [variant.name for variant in variants if any(map(_late, variant.finished))]
    if late:
        smooth = counted(int(_smooth(variants[0].runs)), "evaluation")
        lines.append(f"ended above the target before {smooth} confirmed it: {', '.join(late)}")
    both = [bool(run.info.get("peers")) for variant in variants for run in variant.runs]
    if any(both) and not all(both):
        lines.append("the accuracy of peers is the mean over their models")
    wrapped = [line for text in lines for line in textwrap.wrap(text, width - 2, initial_indent="  ", subsequent_indent="    ")]
    return [Text(line, no_wrap=True, overflow="ignore") for line in wrapped]


def _cheapest(variants: Sequence[Variant]) -> str:
    """`cheapest to 85 %: time buffered (3 min), bytes synchronous (12.0 MB)`, where there is a choice."""
    reached = [variant for variant in variants if at_target(variant, "round") < inf]
    words = []
    for name in ("seconds", "bytes", "joules"):
        cost, best = min(((at_target(variant, name), variant.name) for variant in reached), default=(inf, ""))
        if 0 < cost < inf:
            words.append(f"{TITLES[name]} {best} ({COSTS[name][1](cost)})")
    return f"cheapest {target_of(variants)}: {', '.join(words)}" if len(reached) > 1 and words else ""


def _late(run: RunFolder) -> bool:
    """Was it above the target in the end, too late for the crossing to be confirmed?"""
    target, last = run.info.get("target"), final(run, "test/accuracy")
    return target is not None and not run.info.get("target_reached") and bool(last) and last[0] >= target


def _foot(runs: Sequence[RunFolder], pictures: Sequence[Path], width: int) -> list[Text]:
    upper = upper_of(runs)
    models = [str(run.info["model"])[:4] for run in runs if run.info.get("model")]
    beside = f"model {' '.join(models)}" if 0 < len(models) <= 6 else ""
    pairs = [(f"folder   {upper}", beside)]
    if models and not beside:
        pairs += [(line, "") for line in textwrap.wrap(" ".join(models), width - 2, initial_indent="models   ", subsequent_indent=" " * 9)]
    following = f"next: fedsim {'compare' if len(runs) > 1 else 'inspect'} {shlex.quote(call_of(upper, runs))}"
    first = next(iter(pictures), None)
    if first is None:
        pairs.append((following, ""))
    else:
        shown = f".../{first.relative_to(upper)}" if first.is_relative_to(upper) else str(first)
        pairs.append((f"picture  {shown}", following))
    return [line for left, right in pairs for line in _beside(left, right, width)]


def _beside(left: str, right: str, width: int) -> list[Text]:
    """Both in one line if they fit."""
    one = f"  {left.ljust(width - len(right) - 4)}  {right}".rstrip()
    lines = [one] if not right or len(left) + len(right) + 4 <= width else [f"  {left}", f"  {right}"]
    return [Text(line, no_wrap=True, overflow="ignore") for line in lines]


def upper_of(runs: Sequence[RunFolder]) -> Path:
    """The run's folder, or the sweep's to which the runs belong."""
    upper = runs[0].path.parent
    return upper if (upper / "sweep.json").exists() else runs[0].path


def call_of(upper: Path, runs: Sequence[RunFolder]) -> str:
    """What to type for these runs: the scenario's name if they are its latest under runs/, else the folder."""
    name = str(runs[0].info.get("name"))
    latest = Path("runs") / name / "latest"
    return name if latest.exists() and latest.resolve() == upper.resolve() else str(upper)
