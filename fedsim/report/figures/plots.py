"""Pictures of runs: `draw` writes those that the runs' data allow."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedsim.base.errors import FedsimError
from fedsim.report.figures.barrier import draw_barrier
from fedsim.report.figures.confusion import draw_confusion
from fedsim.report.figures.curves import CURVES, draw_curves
from fedsim.report.figures.graph import draw_graph
from fedsim.report.figures.grid import draw_grid
from fedsim.report.figures.labels import draw_labels
from fedsim.report.figures.leakage import draw_leakage
from fedsim.report.figures.waits import draw_waits
from fedsim.report.figures.work import draw_gantt, draw_staleness
from fedsim.report.style import Variant, drawn, variants_of
from fedsim.run.folders import RunFolder, runs_in
from fedsim.run.links import keep_inside
from fedsim.run.streamed import MOST, events_of


def draw(runs: Sequence[RunFolder], folder: Path | None = None, broken: list[str] | None = None) -> list[Path]:
    """Writes curves, grid, graph, confusion, barrier, leakage, staleness, labels, gantt, waits (.png) into `folder`; gives the paths.

    `folder` is by default `figures_of(runs)`.

    Of runs that have not finished only where none has. Raises FedsimError where a run's files are missing or broken; where that are
    events and `broken` is given, what is wrong is added to it, and the pictures of events are left out.
    """
    folder = folder or figures_of(runs)
    for place in {folder, *(run.path for run in runs)}:
        keep_inside(place)
    variants, missing = drawn(runs)
    shown, note = [run for variant in variants for run in variant.runs], f"not finished, not drawn: {missing}" if missing else ""
    written = [folder / f"{curve}.png" for curve in CURVES if draw_curves(folder / f"{curve}.png", variants, curve, note)]
    written += [folder / "grid.png"] if draw_grid(folder / "grid.png", shown, note) else []
    written += [folder / "leakage.png"] if draw_leakage(folder / "leakage.png", variants) else []
    written += [folder / "confusion.png"] if draw_confusion(folder / "confusion.png", variants) else []
    written += [folder / "barrier.png"] if draw_barrier(folder / "barrier.png", variants) else []
    logged = [variant for variant in variants if all(any((run.path / "events").glob("*.parquet")) for run in variant.runs)]
    written += [folder / "graph.png"] if draw_graph(folder / "graph.png", variants) else []
    try:
        written += _of_events(folder, logged)
    except FedsimError as error:
        if broken is None:
            raise
        broken.append(str(error))
    return written + ([folder / "labels.png"] if draw_labels(folder / "labels.png", variants) else [])


def _of_events(folder: Path, variants: Sequence[Variant]) -> list[Path]:
    small = [variant for variant in variants if all(events_of(run) <= MOST for run in variant.runs)]
    pictures = {"staleness.png": (draw_staleness, small), "gantt.png": (draw_gantt, small), "waits.png": (draw_waits, variants)}
    return [folder / name for name, (paint, shown) in pictures.items() if paint(folder / name, shown)]


def figures_of(runs: Sequence[RunFolder]) -> Path:
    """Where pictures of these runs belong: the run's figures/, the sweep's if they are all of it, a folder in it if they are some."""
    if len(runs) == 1:
        return runs[0].path / "figures"
    upper = Path(os.path.commonpath([run.path for run in runs]))
    if len(runs_in(upper)) <= len(runs) or not (upper / "sweep.json").exists():
        return upper / "figures"
    return (
        upper
        / "figures"
        / "+".join(dict.fromkeys(variant.name.replace(" ", "-").replace("/", "-").lstrip(".") for variant in variants_of(runs)))
    )
