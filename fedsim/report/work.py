"""gantt.png and staleness.png: what clients did when, and how old their updates were when merged."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.report.checks import DROP, MERGE, Log, parts_of
from fedsim.report.folders import RunFolder
from fedsim.report.style import GREY, TIMES, Variant, figure, first_of, legend_below, mixed, unit_for
from fedsim.report.text import count, duration

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CLIENTS = 42  # rows of bars in one picture
MERGES = 40  # lines; more would hide the bars
DROPPED = "#D00000"
SHADES = (("model down", "white", 0.65), ("work", "white", 0.0), ("update up", "black", 0.55))


class Jobs:
    """A run's jobs as arrays [jobs], times in seconds: node, start, the lengths of down, work and up, stop, and whether it was dropped."""

    def __init__(self, run: RunFolder) -> None:
        columns, tick = run.columns, 1.0 / run.ticks_per_second
        log = Log(columns)
        sent = log.sent_rows
        self.node, self.start = columns["node"][sent], columns["time"][sent] * tick
        self.parts = [ticks * tick for ticks in parts_of(log).values()]
        self.stop = self.start + sum(self.parts)
        drops = log.rows(DROP)
        found, known = log.dispatches(drops)
        place = np.searchsorted(log.sent_jobs, columns["job"][found[known]])
        self.dropped = np.zeros(len(sent), dtype=bool)
        self.dropped[place] = True
        self.stop[place] = np.minimum(self.stop[place], columns["time"][drops[known]] * tick)
        self.merges = np.unique(columns["time"][log.rows(MERGE)]) * tick
        self.end = float(columns["time"][-1] * tick) if len(columns["time"]) else 0.0
        self.stop = np.minimum(self.stop, self.end)
        self.nodes = int(run.info.get("nodes") or columns["node"].max(initial=0) + 1)

    @property
    def take_time(self) -> bool:
        return len(self.start) > 0 and float((self.stop - self.start).max()) > 0

    def stretch(self) -> float:
        """Seconds from the start in which bars are wide enough to see."""
        length = self.stop - self.start
        return min(self.end, 12 * float(np.median(length)), 3 * float(np.quantile(length, 0.95))) or self.end

    def choose(self, rows: int, stretch: float) -> Ints:
        """The clients to show: of those at work in the stretch, evenly over their ids."""
        busy = np.unique(self.node[self.start < stretch])
        return busy[np.unique(np.linspace(0, len(busy) - 1, min(rows, len(busy))).round().astype(np.int64))]


def draw_gantt(file: Path, variants: Sequence[Variant]) -> bool:
    """One panel a variant (its first seed), all over the same stretch of time; False where no job takes simulated time."""
    timed = [(variant, jobs) for variant in variants if (jobs := Jobs(variant.runs[0])).take_time]
    charts = timed[:6]
    if not charts:
        return False
    stretch = max(jobs.stretch() for _, jobs in charts)
    clients = [jobs.choose(max(8, CLIENTS // len(charts)), stretch) for _, jobs in charts]
    heights = [0.16 * len(ids) + 0.5 for ids in clients]
    divisor, unit = unit_for(stretch, TIMES)
    with figure(file, len(charts), 1, (9.0, sum(heights) + 0.8), sharex=True, gridspec_kw={"height_ratios": heights}) as (picture, panels):
        for panel, (variant, jobs), ids in zip(panels[:, 0], charts, clients, strict=True):
            _bars(panel, variant, jobs, ids, stretch, divisor)
            part = f"first {duration(stretch)} of {duration(jobs.end)}" if stretch < jobs.end else "the whole run"
            panel.set_title(f"{variant.name}: {len(ids)} of {count(jobs.nodes)} clients, {part}", loc="left")
        panels[-1, 0].set_xlabel(f"simulated time ({unit}){first_of(charts, timed)}")
        panels[-1, 0].set_xlim(0, stretch / divisor)
        merges = any((jobs.merges < stretch).sum() <= MERGES for _, jobs in charts)
        legend_below(picture, _legend(any(jobs.dropped.any() for _, jobs in charts), merges), 9.0)
    return True


def _bars(panel: Any, variant: Variant, jobs: Jobs, ids: Ints, stretch: float, divisor: float) -> None:
    shown = np.isin(jobs.node, ids) & (jobs.start < stretch)
    row = np.searchsorted(ids, jobs.node[shown])
    left, stop = jobs.start[shown], jobs.stop[shown]
    for (_, other, share), part in zip(SHADES, jobs.parts, strict=True):
        right = np.minimum(left + part[shown], stop)
        panel.barh(row, (right - left) / divisor, 0.8, left / divisor, color=mixed(variant.colour, other, share), linewidth=0)
        left = right
    lost = jobs.dropped[shown] & (stop < 0.99 * stretch)
    panel.plot(stop[lost] / divisor, row[lost], "x", color=DROPPED, markersize=4.5, markeredgewidth=1.3)
    merges = jobs.merges[jobs.merges < stretch]
    if len(merges) <= MERGES:
        panel.vlines(merges / divisor, -0.6, len(ids) - 0.4, color="black", linewidth=0.6, linestyle=":", zorder=3)
    every = max(1, -(-len(ids) // 21))
    panel.set_yticks(range(0, len(ids), every), [str(node) for node in ids[::every]])
    panel.set_ylim(len(ids) - 0.4, -0.6)
    panel.set_ylabel("client")
    panel.grid(False)


def _legend(dropped: bool, merges: bool) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=mixed(GREY, other, share), label=name) for name, other, share in SHADES]
    if merges:
        handles.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", label="merge"))
    if dropped:
        handles.append(Line2D([], [], color=DROPPED, marker="x", linestyle="", markersize=4.5, label="dropped"))
    return handles


def staleness(variant: Variant) -> Ints:
    """int64 [merged messages], all seeds together."""
    columns = [run.columns for run in variant.runs]
    return np.concatenate([c["staleness"][(c["kind"] == MERGE) & (c["job"] >= 0)] for c in columns]).astype(np.int64)


def draw_staleness(file: Path, variants: Sequence[Variant]) -> bool:
    """One histogram a variant over the same bins; False where nothing was merged."""
    merging = [(variant, own) for variant in variants if len(own := staleness(variant))]
    ages = merging[:8]
    if not ages:
        return False
    highest = int(max(np.quantile(own, 0.995) for _, own in ages))  # a few stragglers must not squeeze the rest
    width = -(-(highest + 1) // 40)
    edges = np.arange(0, highest + 1 + width, width) - 0.5
    beyond = any(own.max() > edges[-1] for _, own in ages)
    with figure(file, len(ages), 1, (7.0, 1.35 * len(ages) + 0.9), sharex=True) as (picture, panels):
        for panel, (variant, own) in zip(panels[:, 0], ages, strict=True):
            share = 100 * np.histogram(np.minimum(own, edges[-1]), edges)[0] / len(own)
            panel.bar((edges[:-1] + edges[1:]) / 2, share, 0.9 * width, color=variant.colour)
            panel.set_title(f"{variant.name}: mean {own.mean():.1f}, greatest {own.max()}", loc="left")
            panel.locator_params(axis="y", nbins=4)
            panel.xaxis.get_major_locator().set_params(integer=True)
        panels[-1, 0].set_xlim(-0.6 * width, max(edges[-1], 4.5))
        picture.supylabel("share of merged updates (%)", fontsize=9)
        last = "; last bar: and all above" if beyond else ""
        panels[-1, 0].set_xlabel(f"staleness (merges between a client's model and its update's merge{last}){first_of(ages, merging)}")
    return True
