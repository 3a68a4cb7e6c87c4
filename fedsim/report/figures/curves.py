"""accuracy.png, loss.png, both under attack, and gradient_norm.png: one metric against rounds, simulated time, traffic and wall time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.text import short_percent
from fedsim.report.style import GREY, JOULES, SIZES, TIMES, Variant, figure, legend_below, unit_for
from fedsim.run.folders import RunFolder

Floats = NDArray[np.float64]
Axis = tuple[str, str, tuple[tuple[float, float, str], ...]]  # metric, title, units
AXES: tuple[Axis, ...] = (
    ("round", "round", ()),
    ("time/seconds", "simulated time", TIMES),
    ("traffic/bytes", "traffic, all directions", SIZES),
    ("time/wall_seconds", "wall time of the host", TIMES),
)
ENERGY: tuple[Axis, ...] = (("energy/joules", "energy of the clients", JOULES), ("work/updates", "updates merged", ()))
CURVES = {
    "accuracy": ("test/accuracy", "average/accuracy", "nodes/accuracy_mean"),
    "loss": ("test/loss", "average/loss", "nodes/loss_mean"),
    "robust_accuracy": ("test/robust_accuracy",),
    "robust_loss": ("test/robust_loss",),
    "gradient_norm": ("train/gradient_norm",),
    "consensus": ("nodes/consensus",),
    "spectral_gap": ("nodes/spectral_gap",),
    "energy": ("energy/joules",),
}
NOT_ZERO = ("consensus", "spectral_gap", "energy")  # not drawn where they are 0 all the time
WORDS = {"consensus": "consensus: mean squared distance", "spectral_gap": "spectral gap of the graph, a round"}
FALLING = ("loss", "robust_loss", "gradient_norm", "consensus")  # often by many powers of ten
UNEQUAL = 5  # where one curve is so many times longer than another, both are readable on a logarithmic axis only
ROUNDING = 1e-9  # share of the greatest value
APART = 1.2  # seeds whose ends differ by more have no mean
DECADES = 100  # such an axis begins so far below the end of the shortest curve


def metric_for(runs: Sequence[RunFolder], curve: str) -> str | None:
    """The first of the curve's metrics that any run has."""
    has = dict.get if curve in NOT_ZERO else dict.__contains__
    return next((name for name in CURVES[curve] if any(has(record, name) for run in runs for record in run.metrics)), None)


def axes_of(runs: Sequence[RunFolder], metric: str) -> tuple[Axis, ...]:
    """Four; six where energy is counted, which is no axis of its own curve."""
    counted = metric != ENERGY[0][0] and any(record.get(ENERGY[0][0]) for run in runs for record in run.metrics)
    return (*AXES[:3], *ENERGY, AXES[3]) if counted else AXES


def points(run: RunFolder, axis: str, metric: str) -> tuple[Floats, Floats]:
    """The evaluations where both are finite numbers: x, y, each [points]."""
    x, y = run.column(axis), run.column(metric)
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good]


def band(lines: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats]:
    """x, mean and deviation of several curves at all their points in the range that each of them covers: nothing is extrapolated."""
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    every = np.unique(np.concatenate([[high], *(x for x, _ in lines)]))
    grid = every[(every >= min(low, high)) & (every <= high)]
    values = np.stack([np.interp(grid, x, y) for x, y in lines])
    return grid, values.mean(0), values.std(0, ddof=1)


def apart(lines: Sequence[tuple[Floats, Floats]]) -> bool:
    """Do curves end so far from each other that a mean up to the first end would hide what the others did?"""
    ends = [float(x[-1]) for x, _ in lines]
    return max(ends) > APART * min(ends)


def draw_curves(file: Path, variants: Sequence[Variant], curve: str, note: str = "") -> bool:
    """Writes the picture, with a note below; False where no run has the metric, or it is always 0."""
    runs = [run for variant in variants for run in variant.runs]
    metric = metric_for(runs, curve)
    if metric is None:
        return False
    axes = axes_of(runs, metric)
    width = len(axes) // 2
    with figure(file, 2, width, (4.5 * width, 6.4), sharey=True) as (picture, panels):
        handles: dict[str, Any] = {}
        factor, words = scale_of(runs, metric, curve)
        for panel, axis in zip(panels.flat, axes, strict=True):
            draw_panel(panel, variants, axis, metric, factor, handles)
        for panel in panels[:, 0]:
            panel.set_ylabel(words)
        if curve == "accuracy":
            _targets(panels, variants, handles)
        if curve in FALLING:
            log_if_wide(panels, rising=curve == "consensus")
        legend_below(picture, list(handles.values()), 4.5 * width, "\n".join(filter(None, (note_of(variants, axes, metric), note))))
    return True


def scale_of(runs: Sequence[RunFolder], metric: str, curve: str) -> tuple[float, str]:
    """What values are multiplied with, and what is measured, with its unit."""
    if curve == "energy":
        divisor, unit = unit_for(max(float(np.nanmax(run.column(metric), initial=0.0)) for run in runs), JOULES)
        return 1 / divisor, f"energy of the clients ({unit})"
    where = {"test": "test ", "average": "average model's test ", "nodes": "mean of nodes' test ", "train": ""}[metric.partition("/")[0]]
    words = WORDS.get(curve, f"{where}{curve.replace('_', ' ')}")
    return (100.0, f"{words} (%)") if curve.endswith("accuracy") else (1.0, words)


def draw_panel(panel: Any, variants: Sequence[Variant], axis: Axis, metric: str, factor: float, handles: dict[str, Any]) -> None:
    """The variants' curves of a metric, times the factor, against one axis; their lines go to `handles` by name."""
    name, title, units = axis
    lines = {variant.name: [points(run, name, metric) for run in variant.runs] for variant in variants}
    lines = {variant: kept for variant, own in lines.items() if (kept := [(x, factor * y) for x, y in own if len(x)])}
    lengths = [max(float(x[-1]) for x, _ in own) for own in lines.values()]
    if max(lengths, default=0.0) <= 0:
        _nothing(panel, title)
        return
    wide = 0 < min(lengths) * UNEQUAL < max(lengths)
    divisor, unit = unit_for(min(lengths) if wide else max(lengths), units) if units else (1.0, "")
    for variant in variants:
        least = 0.0 if wide else -1.0  # a logarithmic axis has no zero
        own = [(x[x > least] / divisor, y[x > least]) for x, y in lines.get(variant.name, []) if x[-1] > least]
        if own:
            handles.setdefault(variant.name, _line(panel, variant, own))
    panel.set_xlabel(title + (f" ({unit})" if unit else "") + (", logarithmic" if wide else ""))
    _scale(panel, min(lengths) / divisor / DECADES if wide else 0.0, whole=not units)


def _scale(panel: Any, least: float, whole: bool) -> None:
    """Logarithmic from `least` at the earliest, or from zero."""
    if least:
        panel.set_xscale("log")
        panel.set_xlim(left=max(least, panel.get_xlim()[0]))
        panel.xaxis.set_minor_formatter(lambda x, _: "")
    else:
        panel.set_xlim(left=0)
        panel.locator_params(axis="x", nbins=7, integer=whole)
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:.4g}")


def _nothing(panel: Any, title: str) -> None:
    panel.text(0.5, 0.5, f"{title}: all zero", transform=panel.transAxes, ha="center", va="center", color=GREY)
    panel.set_xticks([])


def _line(panel: Any, variant: Variant, lines: Sequence[tuple[Floats, Floats]]) -> Any:
    look = {"color": variant.colour, "linestyle": variant.dash}
    if len(lines) == 1:
        x, y = lines[0]
        return panel.plot(x, y, linewidth=1.5, marker="o" if len(x) < 8 else "", markersize=3, label=variant.name, **look)[0]
    if apart(lines):
        for x, y in lines:
            panel.plot(x, y, linewidth=0.9, alpha=max(0.15, min(1.0, 6 / len(lines))), **look)  # many hide others
        return panel.plot([], [], linewidth=0.9, label=variant.name, **look)[0]
    x, mean, deviation = band(lines)
    panel.fill_between(x, mean - deviation, mean + deviation, color=variant.colour, alpha=0.2, linewidth=0)
    return panel.plot(x, mean, linewidth=1.5, label=variant.name, **look)[0]


def note_of(variants: Sequence[Variant], axes: Sequence[Axis], metric: str) -> str:
    """What lines and bands are, over all axes but the last; "" for one seed."""
    several = [variant for variant in variants if len(variant.runs) > 1]
    seeds = sorted({len(variant.runs) for variant in several})
    curves = [[points(run, axis[0], metric) for run in variant.runs] for variant in several for axis in axes[:-1]]
    alone = any(apart(own) for lines in curves if (own := [line for line in lines if len(line[0])]))
    each = ", or each seed's where they end far apart" if alone else ""
    return f"line: mean of {' or '.join(map(str, seeds))} seeds{each}; band: one deviation to each side" if seeds else ""


def _targets(panels: Any, variants: Sequence[Variant], handles: dict[str, Any]) -> None:
    targets = sorted({float(target) for variant in variants for run in variant.runs if (target := run.info.get("target"))})
    for target in targets:
        for panel in panels.flat:
            line = panel.axhline(
                100 * target, color=GREY, linewidth=0.8, linestyle=(0, (5, 4)), zorder=1, label=f"target {short_percent(target)}"
            )
        handles[f"target {target}"] = line


def log_if_wide(panels: Any, rising: bool) -> None:
    """What falls or explodes by more than a factor of 30 is readable on a logarithmic axis only; `rising`: from 0 but for rounding."""
    heights = np.concatenate([line.get_ydata() for panel in panels.flat for line in panel.lines])
    heights = heights[heights > ROUNDING * heights.max(initial=0.0)] if rising else heights
    if len(heights) and heights.min() > 0 and heights.max() > 30 * heights.min():
        panels[0, 0].set_yscale("log")
        panels[0, 0].set_ylim(bottom=heights.min() / 2 if rising else None)
