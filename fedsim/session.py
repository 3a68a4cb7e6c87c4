"""What `fedsim run` does around runs: folders, progress, tracking, pictures and the closing table."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.report.folders import RunFolder
from fedsim.report.progress import Progress
from fedsim.report.text import count, duration, size
from fedsim.runfolder import make_upper
from fedsim.runner import Run, Tasks
from fedsim.scenario.loader import Loaded
from fedsim.tracking import start_follower

EXIT = {"finished": 0, "failed": 1, "stopped": 130}


def execute(group: list[Loaded], tasks: Tasks, root: Path = Path("runs"), quiet: bool = False) -> int:
    """The runs of one scenario file, one after the other; the exit code. Raises FedsimError where nothing could be started.

    While it lasts, SIGTERM is taken as Ctrl-C.
    """
    first, several = group[0], bool(group[0].folder)
    start = Run(first, tasks.get(first)) if not several else None
    upper = make_upper(root, first.scenario.name, first.hash, [loaded.folder for loaded in group] if several else [], first.file)
    command = shlex.join(["fedsim", *sys.argv[1:]])
    follower = None
    codes = []
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress(quiet=quiet) as progress:
            for loaded in group:
                run = start or Run(loaded, tasks.get(loaded))
                run.report = progress
                if follower is None:
                    follower = start_follower(upper, first.scenario.track.uri or uri_beside(root), first.scenario.track.experiment)
                info = run.execute(upper / loaded.folder if several else upper, command)
                codes.append(EXIT[info["status"]])
                if info["status"] != "finished":
                    kept = f"kept: {upper / loaded.folder}"
                    progress.console.print(f"{loaded.label} {info['status']}: {info['reason']}; {kept}", soft_wrap=True, markup=False)
                if info["status"] == "stopped":
                    break
                del run
        _close(upper, several, follower, progress)
    finally:
        signal.signal(signal.SIGTERM, usual)
    return max(codes)


def uri_beside(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or a SQLite store in the folder of runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def _close(upper: Path, several: bool, follower: Any, progress: Progress) -> None:
    """Pictures, the table, and what became of the tracking."""
    from fedsim.report.folders import runs_in
    from fedsim.report.plots import draw
    from fedsim.report.tables import print_summary

    runs: list[RunFolder] = runs_in(upper)
    pictures = draw(runs)
    if not progress.quiet:
        print_summary(runs, pictures, progress.console)
    if follower:
        line = follower.finish()
        if not progress.quiet:
            progress.console.print(f"  {line}".replace(f"{Path.cwd()}/", ""), soft_wrap=True, markup=False)


def preview(run: Run) -> str:
    """What a run would do, in a few lines."""
    fed, counts = run.fed, run.fed.task.counts.cpu().numpy()
    seconds = fed.durations() / fed.nature.per_second
    edges = fed.schedule.degree(fed.nodes)
    sent = (
        f"{size(fed.flight.peer_bytes)} to each of {edges} peers"
        if fed.schedule.peers
        else f"{size(fed.down_bytes)} down, {size(fed.flight.up_bytes)} up"
    )
    lines = [
        f"{run.scenario.name}  {run.loaded.label}",
        f"  nodes     {count(fed.nodes)}; samples a node {counts.min()} to {counts.max():,}, median {np.median(counts):g}",
        f"  model     {count(fed.task.layout.size)} parameters; {run.fed.worker.about['plan']}: {run.fed.worker.about['plan_reason']}",
        f"  a job     {duration(float(seconds.min()))} to {duration(float(seconds.max()))} simulated; {sent}",
        f"  schedule  {fed.schedule.name}; strategy {fed.strategy.name}; hash {run.loaded.hash}",
    ]
    return "\n".join(lines)
