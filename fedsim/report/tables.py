"""The table that closes a run or a sweep: a row a variant, then where everything is and what to type next."""

import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median

from rich.console import Console, Group, RenderableType
from rich.text import Text

from fedsim.report.folders import RunFolder
from fedsim.report.intact import read_json
from fedsim.report.style import Variant, variants_of
from fedsim.report.text import count, duration, short_percent, size, spread

ACCURACIES = ("test/accuracy", "average/accuracy", "nodes/accuracy_mean", "clients/accuracy_mean")
WORST = ("clients/accuracy_worst_10", "nodes/accuracy_worst")
WIDTH = 80


def print_summary(runs: Sequence[RunFolder], pictures: Sequence[Path] = (), console: Console | None = None) -> None:
    """Prints `summary`; where the output is no terminal it is plain text of at most 80 columns."""
    console = console or Console(highlight=False)
    console.print(summary(runs, pictures, min(console.width, 100)), crop=False, soft_wrap=False)


def summary(runs: Sequence[RunFolder], pictures: Sequence[Path] = (), width: int = WIDTH) -> RenderableType:
    """What `fedsim run` ends with; `runs` are all that began of a run or a sweep.

    Numbers of several seeds are means (+- deviation for shares), their time to target the median.

    Raises FedsimError where a run's run.json is missing or broken, ValueError without runs.
    """
    if not runs:
        raise ValueError("a summary needs at least one run")
    return Group(_head(runs, width), *_table(variants_of(runs), width), *_foot(runs, pictures, width))


def _head(runs: Sequence[RunFolder], width: int) -> Text:
    statuses = Counter(str(run.info.get("status", "running")) for run in runs)
    wall = sum(float(run.info.get("wall_seconds") or 0.0) for run in runs)
    left = f"{runs[0].info.get('name')}  finished {statuses['finished']} of {_planned(runs)}  in {duration(wall)}"
    targets = {target for run in runs if (target := run.info.get("target")) is not None}
    smooth = runs[0].parameters.get("evaluate.smooth", "3")
    right = f"target {short_percent(targets.pop())} (mean of {smooth})" if len(targets) == 1 else ""
    return Text(left + right.rjust(max(len(right) + 2, width - len(left))) if right else left, overflow="ellipsis", no_wrap=True)


def _planned(runs: Sequence[RunFolder]) -> int:
    """How many runs there were to be: a sweep that was stopped has not begun all of them."""
    sweep = upper_of(runs) / "sweep.json"
    return len(read_json(sweep).get("runs", [])) if sweep.exists() else len(runs)


def final(run: RunFolder, names: Sequence[str]) -> list[float]:
    """The final value of the first of these metrics that the run has: one number or none."""
    final = run.info.get("final") or (run.metrics[-1] if run.metrics else {})
    return [float(final[name]) for name in names if final.get(name) is not None][:1]


def _over(variant: Variant, *names: str) -> list[float]:
    return [value for run in variant.runs for value in final(run, names)]


def _mean(values: Sequence[float], write: Callable[[float], str]) -> str:
    return write(fmean(values)) if values else "-"


def _to_target(variant: Variant) -> str:
    """The median over seeds, a miss being later than all; `-` where most missed; with the number that reached it where some missed."""
    reached = [run.info.get("target_reached") for run in variant.runs]
    times = [float(hit["seconds"]) if hit else float("inf") for hit in reached]
    middle = median(times)
    some = f" ({sum(map(bool, reached))}/{len(reached)})" if not all(reached) and any(reached) else ""
    return ("-" if middle == float("inf") else duration(middle)) + some


def _ended(variant: Variant) -> str:
    """The reason; `failed: ...` where a run failed; several reasons with their numbers."""
    words = Counter(_reason(run) for run in variant.runs)
    return words.most_common(1)[0][0] if len(words) == 1 else ", ".join(f"{number}x {word}" for word, number in words.items())


def _reason(run: RunFolder) -> str:
    status, reason = str(run.info.get("status", "running")), str(run.info.get("reason") or "")
    return (reason or status) if status == "finished" else f"{status}: {reason}" if reason else status


def _columns(variants: Sequence[Variant]) -> list[tuple[str, Callable[[Variant], str]]]:
    shown: list[tuple[str, Callable[[Variant], str]]] = [("accuracy", lambda v: spread(_over(v, *ACCURACIES)))]
    if not any(_over(variant, *ACCURACIES) for variant in variants):
        shown = [("loss", lambda v: _mean(_over(v, "test/loss"), lambda loss: f"{loss:.4g}"))]
    if any(_over(variant, *WORST) for variant in variants):
        shown.append(("worst 10 %", lambda v: spread(_over(v, *WORST))))
    if any(run.info.get("target") is not None for variant in variants for run in variant.runs):
        shown.append(("to target", _to_target))
    shown.append(("bytes", lambda v: _mean(_over(v, "traffic/bytes"), size)))
    shown.append(("updates", lambda v: _mean(_over(v, "work/updates"), count)))
    if any(_over(variant, "privacy/epsilon") for variant in variants):
        shown.append(("epsilon", lambda v: _mean(_over(v, "privacy/epsilon"), lambda spent: f"{spent:.3g}")))
    return shown


def _table(variants: Sequence[Variant], width: int) -> list[Text]:
    """Numbers are never cut; names and reasons give way where a line is too long."""
    columns = _columns(variants)
    rows = [[title for title, _ in columns], *([cell(variant) for _, cell in columns] for variant in variants)]
    numbers = [
        "  ".join(cell.rjust(max(map(len, column))) for cell, column in zip(row, zip(*rows, strict=True), strict=True)) for row in rows
    ]
    names, reasons = ["", *(variant.name for variant in variants)], ["ended by", *map(_ended, variants)]
    left = width - len(numbers[0]) - 6
    reason = max(8, min(max(map(len, reasons)), left - min(14, max(map(len, names)))))
    name = max(4, min(max(map(len, names)), left - reason))
    lines = [f"  {_cut(n, name).ljust(name)}  {row}  {_cut(r, reason)}" for n, row, r in zip(names, numbers, reasons, strict=True)]
    return [Text(line, "bold" if not place else "", no_wrap=True, overflow="ignore") for place, line in enumerate(lines)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def _foot(runs: Sequence[RunFolder], pictures: Sequence[Path], width: int) -> list[Text]:
    upper = upper_of(runs)
    models = [str(run.info["model"])[:4] for run in runs if run.info.get("model")]
    beside = f"model {' '.join(models)}" if 0 < len(models) <= 6 else ""
    pairs = [(f"folder   {upper}", beside)]
    if models and not beside:
        pairs += [(line, "") for line in textwrap.wrap(" ".join(models), width - 2, initial_indent="models   ", subsequent_indent=" " * 9)]
    following = f"next: fedsim inspect {shlex.quote(call_of(upper, runs))}"
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
