"""One chart as a paper wants it: any measure against any other, of some variants, as wide as a column of text."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.errors import FedsimError
from fedsim.report.figures.curves import AXES, CURVES, ENERGY, FALLING, Axis, draw_panel, log_if_wide, metric_for, note_of, scale_of
from fedsim.report.figures.plots import figures_of
from fedsim.report.style import JOULES, SIZES, TIMES, Variant, drawn, figure, legend_below, legend_columns, unit_for
from fedsim.run.folders import RunFolder
from fedsim.run.links import keep_inside
from fedsim.scenario.leaves import nearest

COLUMN = (3.4, 2.8)  # inches: a column of two, and its height with LINES lines of a legend
LINES, LINE = 2, 0.17  # each more of them is so many inches
POINTS, DOTS = 8, 300
FORMATS = ("png", "pdf", "svg")
WORDS = {  # short names of measures
    "round": "round",
    "seconds": "time/seconds",
    "bytes": "traffic/bytes",
    "energy": "energy/joules",
    "updates": "work/updates",
    "wall": "time/wall_seconds",
    "worst_10": "clients/accuracy_worst_10",
    "staleness": "staleness/mean",
    "epsilon": "privacy/epsilon",
}
UNITS = {"time": TIMES, "traffic": SIZES, "energy": JOULES}


def draw_chart(
    runs: Sequence[RunFolder], x: str = "seconds", y: str = "accuracy", names: str = "", format: str = "png", folder: Path | None = None
) -> tuple[Path, str]:
    """Writes FOLDER/Y-X.FORMAT, by default into `figures_of` the runs shown; its path, and what a caption has to say of it.

    `x` and `y` are short names, curves (`accuracy`, `loss`) or metrics of metrics.jsonl; `names` are variants, separated by commas, by
    default all. Raises FedsimError, with the nearest, for what is unknown or was never measured.
    """
    if format not in FORMATS:
        raise FedsimError(f"--format {format}: unknown format{nearest(format, FORMATS)}")
    variants, missing = drawn(runs)
    variants = _named(variants, names)
    shown = [run for variant in variants for run in variant.runs]
    folder = folder or figures_of(shown)
    for place in {folder, *(run.path for run in shown)}:
        keep_inside(place)
    axis, metric = _axis(_metric(shown, x)), _metric(shown, y)
    file = folder / f"{_word(y)}-{_word(x)}.{format}"
    lines = math.ceil(len(variants) / legend_columns([variant.name for variant in variants], COLUMN[0]))
    size = (COLUMN[0], COLUMN[1] + LINE * max(0, lines - LINES))
    with figure(file, 1, 1, size, points=POINTS, dots=DOTS) as (picture, panels):
        factor, title = _scale(shown, metric, y)
        handles: dict[str, Any] = {}
        draw_panel(panels[0, 0], variants, axis, metric, factor, handles)
        panels[0, 0].set_ylabel(title)
        if y in FALLING:
            log_if_wide(panels, rising=y == "consensus")
        legend_below(picture, list(handles.values()), COLUMN[0])
    left_out = f"not finished, not drawn: {missing}" if missing and not names else ""
    return file, "; ".join(filter(None, (note_of(variants, (axis, axis), metric), left_out)))


def _named(variants: Sequence[Variant], names: str) -> list[Variant]:
    if not names:
        return list(variants)
    known = {variant.name: variant for variant in variants}
    wanted = [names] if names in known else [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise FedsimError(f"no finished variant `{name}`{nearest(name, known)}")
    return [known[name] for name in dict.fromkeys(wanted)]


def _metric(runs: Sequence[RunFolder], word: str) -> str:
    """The metric that a word means. Raises FedsimError where no evaluation has it."""
    measured = dict.fromkeys(name for run in runs for record in run.metrics[-1:] for name, value in record.items() if value is not None)
    metric = metric_for(runs, word) if word in CURVES else WORDS.get(word, word)
    if metric not in measured:
        known = [*(name for name in CURVES if metric_for(runs, name)), *(name for name, one in WORDS.items() if one in measured), *measured]
        raise FedsimError(f"no evaluation has `{word}`{nearest(word, known)}")
    return str(metric)


def _axis(metric: str) -> Axis:
    known = next((axis for axis in (*AXES, *ENERGY) if axis[0] == metric), None)
    return known or (metric, _title(metric), UNITS.get(metric.partition("/")[0], ()))


def _scale(runs: Sequence[RunFolder], metric: str, word: str) -> tuple[float, str]:
    """What values are multiplied with, and what is measured, with its unit."""
    if word in CURVES:
        return scale_of(runs, metric, word)
    units = UNITS.get(metric.partition("/")[0])
    if "accuracy" in metric:
        return 100.0, f"{_title(metric)} (%)"
    if not units:
        return 1.0, _title(metric)
    divisor, unit = unit_for(max(float(np.nanmax(run.column(metric), initial=0.0)) for run in runs), units)
    return 1 / divisor, f"{_axis(metric)[1]} ({unit})"


def _title(metric: str) -> str:
    return "accuracy of the worst 10 % of clients" if metric == WORDS["worst_10"] else metric.replace("/", " ").replace("_", " ")


def _word(text: str) -> str:
    return text.replace("/", "-")
