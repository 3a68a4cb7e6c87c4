"""What `fedsim run` does around runs: folders, progress, tracking, pictures and the closing table."""

import shlex
import signal
from pathlib import Path

import numpy as np

from fedsim.data.statistics import label_skew, size_skew
from fedsim.errors import FedsimError
from fedsim.report.folders import runs_in
from fedsim.report.progress import Progress
from fedsim.report.text import count, duration, size
from fedsim.runfolder import make_upper
from fedsim.runner import Run, Tasks, build
from fedsim.scenario.loader import Loaded
from fedsim.scenario.parts import part_name
from fedsim.tracking import Follower, start_follower

EXIT = {"finished": 0, "failed": 1, "stopped": 130}


def execute(group: list[Loaded], tasks: Tasks, root: Path = Path("runs"), quiet: bool = False, command: str = "") -> int:
    """The runs of one scenario file, one after the other; the exit code. Raises FedsimError where nothing could be started.

    A run of a sweep that can't be built or fails does not stop the others. While it lasts, SIGTERM is taken as Ctrl-C.
    """
    first, several = group[0], bool(group[0].folder)
    start = None if several else build(first, tasks)
    upper = make_upper(root, first.scenario.name, first.hash, [loaded.folder for loaded in group] if several else [], first.file)
    follower, track, code = None, first.scenario.track, 0
    usual = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Progress(quiet=quiet) as progress:
            for loaded in group:
                try:
                    run = start or build(loaded, tasks)
                    run.report = progress
                    follower = follower or start_follower(upper, track.uri, track.experiment)
                    info = run.execute(upper / loaded.folder, command)
                    del run
                except FedsimError as error:
                    info = {"status": "failed", "reason": str(error)}
                except KeyboardInterrupt:
                    info = {"status": "stopped", "reason": "by hand"}
                code = max(code, EXIT[info["status"]])
                if info["status"] != "finished":
                    kept = f"; kept: {upper / loaded.folder}" if (upper / loaded.folder).exists() else ""
                    progress.console.print(f"{loaded.label} {info['status']}: {info['reason']}{kept}", soft_wrap=True, markup=False)
                if info["status"] == "stopped":
                    break
        _close(upper, follower, progress)
    finally:
        signal.signal(signal.SIGTERM, usual)
    return code


def _close(upper: Path, follower: Follower | None, progress: Progress) -> None:
    """Pictures, the table, and what became of the tracking."""
    from fedsim.report.plots import draw
    from fedsim.report.tables import print_summary

    runs, pictures = runs_in(upper), list[Path]()
    try:
        pictures = draw(runs) if runs else []
    except (FedsimError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        progress.console.print(f"no pictures: {why}; later: fedsim plot {shlex.quote(str(upper))}", soft_wrap=True, markup=False)
    if runs and not progress.quiet:
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
        *_skews(run),
        f"  model     {count(fed.task.layout.size)} parameters; {run.fed.worker.about['plan']}: {run.fed.worker.about['plan_reason']}",
        f"  a job     {duration(float(seconds.min()))} to {duration(float(seconds.max()))} simulated; {sent}",
        f"  schedule  {fed.schedule.name}; strategy {fed.strategy.name}; hash {run.loaded.hash}",
    ]
    return "\n".join(lines)


def _skews(run: Run) -> list[str]:
    """How unlike the nodes' data are, and on which nodes they are shifted."""
    task = run.fed.task
    labels = label_skew(task.label_counts().cpu().numpy())
    lines = [f"  sizes     {size_skew(task.counts.cpu().numpy())}", *([f"  labels    {labels}"] if labels else [])]
    shifts = [f"{part_name(one.shift)} on {count(int(one.nodes.sum()))} of {count(task.nodes)} nodes" for one in task.shifts]
    return lines + ([f"  shift     {'; '.join(shifts)}"] if shifts else [])
