"""gantt.png and staleness.png: what clients did when, and how old their updates were when merged."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.text import count, duration
from fedsim.report.checks import DROP, MERGE, Log, parts_of
from fedsim.report.style import GREY, TIMES, Variant, few, figure, legend_below, mixed, most_unlike, some_of, unit_for
from fedsim.run.folders import RunFolder

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CHARTS, HISTOGRAMS = 6, 8  # panels in one picture
CLIENTS = 42  # rows of bars in one picture
LONGEST = 500  # median jobs side by side; more would be too narrow to see
ENOUGH = 0.8  # of what happens at most in a stretch, for the start to be shown
UNEQUAL = 5  # stretches that differ by more are not drawn over the same time
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

    def merged(self, start: float, stop: float) -> Floats:
        """Seconds of the merges between two."""
        return self.merges[(self.merges >= start) & (self.merges < stop)]

    @property
    def take_time(self) -> bool:
        return len(self.start) > 0 and float((self.stop - self.start).max()) > 0

    def stretch(self) -> float:
        """Seconds in which bars are wide enough to see: of some jobs, or of some merges where these take longer."""
        length = self.stop - self.start
        median = float(np.median(length))
        some = min(12 * median, 3 * float(np.quantile(length, 0.95)))
        gaps = np.diff(self.merges)
        merges = min(3 * float(np.median(gaps)), LONGEST * median) if len(gaps) else 0.0
        return min(self.end, max(some, merges)) or self.end

    def worked(self, until: Floats) -> Floats:
        """Seconds of work of all clients up to each of these seconds."""
        return _worked(self.start, until) - _worked(self.stop, until)

    def interest(self, starts: Floats, stretch: float) -> Floats:
        """How much happens in stretches from these seconds on: work, and half as much for what is dropped, each as a share of the most."""
        ends = starts + stretch
        busy = self.worked(ends) - self.worked(starts)
        lost = np.sort(self.stop[self.dropped])
        drops = np.searchsorted(lost, ends) - np.searchsorted(lost, starts)
        return np.asarray(busy / max(busy.max(), 1e-12) + 0.5 * drops / max(drops.max(), 1))

    def choose(self, rows: int, start: float, stop: float) -> Ints:
        """The clients to show, rising: of those at work between these seconds, evenly from short to long jobs and on to dropped ones."""
        within = (self.start < stop) & (self.stop > start)
        busy, place = np.unique(self.node[within], return_inverse=True)
        longest, lost = np.zeros(len(busy)), np.zeros(len(busy), dtype=bool)
        np.maximum.at(longest, place, (self.stop - self.start)[within])
        np.logical_or.at(lost, place, self.dropped[within] & (self.stop[within] < stop))
        order = np.lexsort((longest, lost))
        return np.sort(busy[order[np.unique(np.linspace(0, len(busy) - 1, min(rows, len(busy))).round().astype(np.int64))]])

    def features(self) -> list[float]:
        """In what runs differ to the eye."""
        length = np.maximum(self.stop - self.start, 1e-12)
        busy = float(length.sum()) / max(self.end * self.nodes, 1e-12)
        return [float(np.log(np.median(length))), busy, float(self.dropped.mean()), float(np.log1p(len(self.merges)))]

    def key(self) -> bytes:
        """The same where nothing that is drawn differs."""
        drawn = (self.node, self.start, self.stop, *self.parts, self.merges)
        return b"".join(np.ascontiguousarray(one).tobytes() for one in drawn)


def _worked(begins: Floats, until: Floats) -> Floats:
    """Seconds since each of `begins`, added up, at each of `until`."""
    begins = np.sort(begins)
    before = np.searchsorted(begins, until)
    return np.asarray(before * until - np.r_[0.0, np.cumsum(begins)][before])


def window(charts: Sequence[Jobs]) -> tuple[float, float]:
    """From and to which second jobs are shown: from the start, unless much more happens elsewhere."""
    stretch, end = max(jobs.stretch() for jobs in charts), max(jobs.end for jobs in charts)
    starts = np.linspace(0, max(0.0, end - stretch), 1 + min(200, int(2 * (end - stretch) / stretch))) if stretch < end else np.zeros(1)
    interest = np.sum([jobs.interest(starts, stretch) for jobs in charts], axis=0)
    start = float(starts[interest.argmax()]) if interest[0] < ENOUGH * interest.max() else 0.0
    return start, min(end, start + stretch)


def charts_of(variants: Sequence[Variant]) -> list[tuple[str, Variant, Jobs]]:
    """The different courses of work among the variants' first runs, each with the names of the variants that have it."""
    found: dict[bytes, tuple[list[str], Variant, Jobs]] = {}
    for variant in variants:
        jobs = Jobs(variant.runs[0])
        if jobs.take_time:
            found.setdefault(jobs.key(), ([], variant, jobs))[0].append(variant.name)
    return [(few(names), variant, jobs) for names, variant, jobs in found.values()]


def draw_gantt(file: Path, variants: Sequence[Variant]) -> bool:
    """One panel a course of work (of a variant's first seed), over the same time where that suits all; False where no job takes time."""
    different = charts_of(variants)
    charts = [different[place] for place in most_unlike([jobs.features() for *_, jobs in different], CHARTS)]
    if not charts:
        return False
    stretches = [jobs.stretch() for *_, jobs in charts]
    alike = max(stretches) <= UNEQUAL * min(stretches)
    between = [window([jobs for *_, jobs in charts]) if alike else window([jobs]) for *_, jobs in charts]
    clients = [jobs.choose(max(8, CLIENTS // len(charts)), *own) for (*_, jobs), own in zip(charts, between, strict=True)]
    ratios = [0.16 * max(3, len(ids)) + 0.5 for ids in clients]
    grid = {"height_ratios": ratios}
    with figure(file, len(charts), 1, (9.0, sum(ratios) + 0.8), sharex=alike, gridspec_kw=grid) as (picture, panels):
        for panel, (name, variant, jobs), ids, (start, stop) in zip(panels[:, 0], charts, clients, between, strict=True):
            divisor, unit = unit_for(stop, TIMES)
            _bars(panel, variant, jobs, ids, (start, stop), divisor)
            panel.set_title(f"{name}: {len(ids)} of {count(jobs.nodes)} clients, {_part(start, stop, jobs.end)}", loc="left")
            panel.set_xlim(start / divisor, stop / divisor)
            if panel is panels[-1, 0] or not alike:
                panel.set_xlabel(f"simulated time ({unit})")
        panel.set_xlabel(panel.get_xlabel() + some_of(len(charts), len(different), "courses of work"))
        merges = any(len(jobs.merged(*own)) <= MERGES for (*_, jobs), own in zip(charts, between, strict=True))
        legend_below(picture, _legend(any(jobs.dropped.any() for *_, jobs in charts), merges), 9.0)
    return True


def _part(start: float, stop: float, end: float) -> str:
    if start:
        return f"{duration(start)} to {duration(stop)} of {duration(end)}"
    return f"first {duration(stop)} of {duration(end)}" if stop < end else "the whole run"


def _bars(panel: Any, variant: Variant, jobs: Jobs, ids: Ints, between: tuple[float, float], divisor: float) -> None:
    start, end = between
    shown = np.isin(jobs.node, ids) & (jobs.start < end) & (jobs.stop > start)
    row = np.searchsorted(ids, jobs.node[shown])
    left, stop = jobs.start[shown], jobs.stop[shown]
    for (_, other, share), part in zip(SHADES, jobs.parts, strict=True):
        right = np.minimum(left + part[shown], stop)
        panel.barh(row, (right - left) / divisor, 0.8, left / divisor, color=mixed(variant.colour, other, share), linewidth=0)
        left = right
    panel.vlines(jobs.start[shown] / divisor, row - 0.4, row + 0.4, color="white", linewidth=0.5)  # where a job follows another
    lost = jobs.dropped[shown] & (stop > start) & (stop < end - 0.01 * (end - start))
    panel.plot(stop[lost] / divisor, row[lost], "x", color=DROPPED, markersize=4.5, markeredgewidth=1.3)
    merges = jobs.merged(start, end)
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
    """One histogram a variant over the same bins; False where no update was ever stale."""
    merging = [(variant, own) for variant in variants if len(own := staleness(variant))]
    stale = [(variant, own) for variant, own in merging if own.any()]
    ages = [stale[place] for place in most_unlike([[own.mean(), own.max(), own.std()] for _, own in stale], HISTOGRAMS)]
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
        panels[-1, 0].set_xlabel("staleness (merges between a client's model and its update's merge)")
        notes = ["last bar: and all above"] if beyond else []
        notes += [some_of(len(ages), len(stale))[2:]] if len(ages) < len(stale) else []
        fresh = [variant.name for variant, own in merging if not own.any()]
        notes += [f"always 0: {', '.join(fresh)}"] if fresh else []
        if notes:
            picture.supxlabel(fill("; ".join(notes), 100), fontsize=8)
    return True
