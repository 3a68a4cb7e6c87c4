"""waits.png: how slow which clients were when, and whom rounds waited for; and the same in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.text import count, duration
from fedsim.report.diagnosis import Diagnosis, Ints, diagnose
from fedsim.report.style import TIMES, Variant, figure, most_unlike, some_of, unit_for

PANELS = 4  # runs in one picture
ROWS = 48  # of a map
TOP = 8  # clients that rounds waited for most
LIMIT = 3.0  # doublings at which colours end


def in_words(found: Diagnosis) -> list[str]:
    """Where time went, whom rounds waited for, and what they would gain: a line each, of what there is to say."""
    parts = {"work": found.work, "transfer": found.transfer, "waiting": found.wait, "dropped": found.lost}
    shares = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)
    lines = [f"effective  {100 * found.effective:.0f} % of {duration(found.total)} of clients' time: {shares}"]
    if top := found.top(3):
        whom = ", ".join(f"node {node} in {100 * share:.0f} % ({duration(alone)} for it alone)" for node, share, alone in top)
        clock = 1 - found.waits.sum() / found.rounds
        lines.append(f"waited for  of {count(found.rounds)} rounds {whom}" + (f"; nobody in {100 * clock:.0f} %" if clock > 0.005 else ""))
    if found.faster and found.faster > 1:
        lines.append(f"without the slowest 1 % of each round's jobs, at least one: {found.faster:.2f} times as fast")
    return lines


def label(nodes: Ints) -> str:
    """`3`, `3, 90`, or `3 .. 90 (12)` for several."""
    return ", ".join(map(str, nodes)) if len(nodes) < 3 else f"{nodes[0]} .. {nodes[-1]} ({count(len(nodes))})"


def diagnosed(variants: Sequence[Variant]) -> list[tuple[Variant, Diagnosis]]:
    """Of each variant's first run whose jobs take time."""
    return [(variant, found) for variant in variants if (found := diagnose(variant.runs[0]))]


def features(found: Diagnosis) -> list[float]:
    """In what runs differ to the eye."""
    total = found.total or 1.0
    return [found.effective, found.wait / total, found.lost / total, float(found.waits.max(initial=0)) / max(1, found.rounds)]


def maps(runs: Sequence[tuple[str, Diagnosis]]) -> list[dict[str, Any]]:
    """For the page: the same of named runs, the most unlike; doublings in whole tenths, None where no job began."""
    chosen = most_unlike([features(found) for _, found in runs], PANELS)
    return [{"name": runs[place][0], **_shown(runs[place][1])} for place in chosen]


def _shown(found: Diagnosis) -> dict[str, Any]:
    nodes, slowness = found.slowness(ROWS)
    cells = [[None if np.isnan(one) else round(10 * one) for one in row] for row in slowness.tolist()]
    top = [[node, round(share, 4), round(alone, 3)] for node, share, alone in found.top(TOP)]
    about = [f"{line[:1].upper()}{line[1:]}".replace("  ", ": ") for line in in_words(found)]
    return {"about": about, "rows": [label(one) for one in nodes], "cells": cells, "seconds": found.seconds, "top": top}


def draw_waits(file: Path, variants: Sequence[Variant]) -> bool:
    """A map of slowness beside bars of whom rounds waited for, of the first runs most unlike; False where no job takes time."""
    different = diagnosed(variants)
    shown = [different[place] for place in most_unlike([features(found) for _, found in different], PANELS)]
    if not shown:
        return False
    ratios = {"width_ratios": [3.2, 1]}
    with figure(file, len(shown), 2, (10.0, 3.2 * len(shown) + 0.3), gridspec_kw=ratios) as (picture, panels):
        for (variant, found), (left, right) in zip(shown, panels, strict=True):
            _map(picture, left, found)
            left.set_title(_title(variant.name, found), loc="left")
            _bars(right, variant, found)
        if len(shown) < len(different):
            picture.suptitle(some_of(len(shown), len(different))[2:], fontsize=9)
    return True


def _title(name: str, found: Diagnosis) -> str:
    more = f"; without the slowest 1 % {found.faster:.2f} x as fast" if found.faster and found.faster > 1 else ""
    return f"{name}: {100 * found.effective:.0f} % effective, {100 * found.wait / found.total:.0f} % waiting{more}"


def _map(picture: Any, panel: Any, found: Diagnosis) -> None:
    from matplotlib.ticker import FuncFormatter

    nodes, slowness = found.slowness(ROWS)
    divisor, unit = unit_for(found.seconds, TIMES)
    extent = (0, found.seconds / divisor, len(nodes) - 0.5, -0.5)
    most = min(LIMIT, max(1.0, float(np.ceil(np.nanmax(np.abs(slowness))))))
    panel.set_facecolor("#E4E4E4")
    image = panel.imshow(slowness, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest", extent=extent)
    panel.grid(False)
    places = np.unique(np.linspace(0, len(nodes) - 1, min(12, len(nodes))).round().astype(int))
    panel.set_yticks(places, [label(nodes[place]) for place in places])
    panel.set_ylabel("client, slowest first")
    panel.set_xlabel(f"a job's begin ({unit}); grey: none")
    bar = picture.colorbar(image, ax=panel, pad=0.01, label="time of its jobs / usual")
    bar.set_ticks(np.arange(-most, most + 1))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda doublings, _: f"{2.0**doublings:.3g}"))


def _bars(panel: Any, variant: Variant, found: Diagnosis) -> None:
    top = found.top(TOP)
    if not top:
        panel.set_axis_off()
        panel.text(0.5, 0.5, "no round waits\nfor one of several", ha="center", va="center", fontsize=9, transform=panel.transAxes)
        return
    panel.barh(range(len(top)), [100 * share for _, share, _ in top], color=variant.colour)
    panel.set_yticks(range(len(top)), [str(node) for node, *_ in top])
    panel.invert_yaxis()
    panel.set_title("whom rounds waited for", loc="left")
    panel.set_ylabel("client")
    for place, (_, share, alone) in enumerate(top):
        panel.text(100 * share, place, f" {duration(alone)}", va="center", fontsize=8)
    panel.set_xlim(0, 150 * top[0][1])
    panel.set_xlabel("rounds (%); time alone")
