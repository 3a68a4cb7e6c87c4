"""Of the page of `fedsim report`: what clients did when, as bars that can be enlarged, and how many were at work."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsim.base.text import count
from fedsim.report.figures.work import Jobs, charts_of, window
from fedsim.report.page.digest import short
from fedsim.report.style import Variant, most_unlike

CHARTS = 8
ROWS = 40  # clients in a chart
BARS = 12_000  # jobs of all charts
MERGES = 1500
FINE = 1_000_000  # steps in which the time that is shown is counted
STRETCHES = 120  # of the curve of clients at work


def charts(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """The courses of work that differ most among the variants' first runs, each of some clients over as long as there is room for."""
    different = charts_of(variants)
    chosen = [different[place] for place in most_unlike([jobs.features() for *_, jobs in different], CHARTS)]
    room = BARS // max(1, len(chosen))
    place = {variant.name: at for at, variant in enumerate(variants)}
    return [{"name": name, "variant": place[variant.name], **_bars(jobs, room)} for name, variant, jobs in chosen]


def _bars(jobs: Jobs, room: int) -> dict[str, Any]:
    """Jobs of some clients: from the stretch in which most happens on, and from before it where the run ends sooner than the room."""
    start, stop = window([jobs])
    ids = jobs.choose(ROWS, start, stop)
    own = np.flatnonzero(np.isin(jobs.node, ids))
    own = own[np.argsort(jobs.start[own], kind="stable")]
    first = int(np.searchsorted(jobs.start[own], start))
    first = max(0, min(first, len(own) - room)) if len(own) > room else 0
    last = min(len(own), first + room)
    begin = float(jobs.start[own[first]]) if first else 0.0
    end = float(jobs.start[own[last]]) if last < len(own) else jobs.end
    own = own[first:last]
    step = (end - begin) / FINE or 1.0

    def steps(seconds: Any) -> list[int]:
        whole: list[int] = np.rint(np.asarray(seconds) / step).astype(np.int64).tolist()
        return whole

    merges = jobs.merged(begin, end)
    return {
        "nodes": ids.tolist(),
        "of": count(jobs.nodes),
        "from": short(begin),
        "to": short(end),
        "whole": short(jobs.end),
        "row": np.searchsorted(ids, jobs.node[own]).tolist(),
        "start": steps(jobs.start[own] - begin),
        "stop": steps(jobs.stop[own] - begin),
        "down": steps(jobs.parts[0][own]),
        "work": steps(jobs.parts[1][own]),
        "dropped": np.flatnonzero(jobs.dropped[own]).tolist(),
        "merges": steps(merges - begin) if len(merges) <= MERGES else [],
        "show": [short(start), short(min(stop, end))],
    }


def at_work(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Of each variant's first run: seconds, and the mean number of its clients at work around them."""
    lines = []
    for place, variant in enumerate(variants):
        jobs = Jobs(variant.runs[0])
        if jobs.take_time and jobs.end > 0:
            edges = np.linspace(0, jobs.end, STRETCHES + 1)
            busy = np.diff(jobs.worked(edges)) / np.diff(edges)
            middle = (edges[1:] + edges[:-1]) / 2
            lines.append({"v": place, "x": [short(x) for x in middle], "y": [short(max(0.0, y)) for y in busy]})
    return lines
