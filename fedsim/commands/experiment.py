"""What `fedsim run` does around runs: folders, progress, tracking, pictures and the closing table."""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsim.base.errors import FedsimError
from fedsim.base.text import count, duration, size
from fedsim.commands.abreast import Abreast, side_by_side
from fedsim.data.skew import label_skew, size_skew
from fedsim.deploy.decisions import RECORD
from fedsim.federation.field import Size, least_and_most
from fedsim.federation.tiers import Tiers
from fedsim.report.mlflow.tracking import Follower, start_follower
from fedsim.report.screen.progress import Progress
from fedsim.report.screen.standing import Painted
from fedsim.report.tables import call_of, upper_of
from fedsim.run.building import Tasks, build
from fedsim.run.doubts import doubts
from fedsim.run.folders import RunFolder, runs_in
from fedsim.run.found import found
from fedsim.run.guard import ByHand
from fedsim.run.intact import read_json
from fedsim.run.links import keep_inside
from fedsim.run.resume import check_settings, may_go_on, no_app, reload, reopen, unfinished
from fedsim.run.reuse import finished_before, take_over
from fedsim.run.runfolder import lock, make_upper, write_scenario
from fedsim.run.runner import GRAPH, Run
from fedsim.scenario.loader import Loaded
from fedsim.scenario.parts import part_name
from fedsim.scenario.settings import Track
from fedsim.scenario.trust import trust_options

EXIT = {"finished": 0, "failed": 1, "stopped": 130}


def execute(
    group: list[Loaded],
    tasks: Tasks,
    root: Path = Path("runs"),
    quiet: bool = False,
    command: str = "",
    jobs: int | None = 1,
    anew: bool = True,
) -> int:
    """The runs of one scenario file, `jobs` at a time; the exit code. Raises FedsimError where nothing could be started.

    A run of a sweep that can't be built or fails does not stop the others. Not `anew`, those that have finished before are taken over.
    """
    jobs = side_by_side(group, jobs)
    looking = nullcontext() if quiet or anew or not group[0].folder else Console(stderr=True).status("looking for finished runs")
    with looking:  # on terminals
        upper, missing = begin(group, tasks, root, anew)
    there = len(group) - len(missing)
    notes = [f"{there} of {len(group)} runs have finished before and are taken over; `--anew` computes them again"] if there else []
    return work_on(upper, missing, tasks, quiet, command, notes, jobs, group[0].scenario.track)


def begin(group: list[Loaded], tasks: Tasks, root: Path, anew: bool = True) -> tuple[Path, list["Planned"]]:
    """The new upper folder of these runs, and those to be worked on. Raises FedsimError where nothing could be started.

    Not `anew`, runs of a sweep that have finished before are taken over into the folder.
    """
    first, several = group[0], bool(group[0].folder)
    start = None if several else build(first, tasks)
    names = {loaded.folder: {"variant": loaded.variant, "changed": dict(loaded.changed)} for loaded in group} if several else {}
    there = finished_before(group, root, tasks) if several and not anew else {}
    upper = make_upper(root, first.scenario.name, first.hash, names, first.file)
    for loaded in group if several else []:
        if loaded.folder in there:
            take_over(there[loaded.folder], upper / loaded.folder, loaded)
        else:
            write_scenario(upper / loaded.folder, loaded.resolved, loaded.own)
    return upper, [Planned(loaded, start) for loaded in group if loaded.folder not in there]


def go_on(
    runs: list[RunFolder],
    settings: list[str],
    tasks: Tasks,
    quiet: bool = False,
    command: str = "",
    new_code: bool = False,
    jobs: int | None = 1,
) -> int:
    """Runs of one upper folder go on where they were, and those of a sweep that never began begin; the exit code.

    `runs` are folders with or without a run.json. Raises FedsimError where nothing could be started.
    """
    check_settings(settings)
    upper = upper_of(runs)
    keep_inside(upper)
    sweep = read_json(upper / "sweep.json").get("settings", {}) if (upper / "sweep.json").exists() else {}
    planned, notes, hopeless = list[Planned](), list[str](), list[RunFolder]()
    for run in runs:
        if (run.path / RECORD).exists():
            raise FedsimError(f"{run.path} was deployed: it goes on with the command that served it, {call_to_resume(upper, [run])}")
        if begun := (run.path / "run.json").exists():
            no_app(run.path, run.info)
        if begun and not unfinished(run, settings):
            continue
        if begun and not (new_code or settings or may_go_on(run)):
            hopeless.append(run)
            continue
        name = "" if run.path == upper else run.path.name
        known = None if begun else sweep.get(name, {})
        planned.append(Planned(replace(reload(run.path, settings, known, new_code), folder=name), again=begun, new_code=new_code))
    if hopeless and not planned:
        raise FedsimError(f"{hopeless[0].path} failed ({hopeless[0].info.get('reason')}); {advice(upper, hopeless)}")
    if not planned:
        name, rounds = shlex.quote(call_of(upper, runs)), 2 * max((run.info.get("final") or {}).get("round", 0) for run in runs)
        raise FedsimError(f"{upper} is finished; it goes on with another end, such as: fedsim resume {name} stop.rounds={rounds}")
    if len(planned) == 1 and planned[0].again:
        start = build(planned[0].loaded, tasks)
        notes = reopen(start, upper / planned[0].loaded.folder, command, new_code)
        planned = [replace(planned[0], start=start, again=False)]
    jobs = side_by_side([one.loaded for one in planned], jobs)
    code = work_on(upper, planned, tasks, quiet, command, notes, jobs)
    return max(code, EXIT["failed"] if hopeless else 0)  # those stay failed


@dataclass(frozen=True)
class Planned:
    """A run to be worked on; `start`: it is built already; `again`: it goes on where it was."""

    loaded: Loaded
    start: Run | None = None
    again: bool = False
    new_code: bool = False


def work_on(
    upper: Path,
    group: list[Planned],
    tasks: Tasks,
    quiet: bool,
    command: str,
    notes: Sequence[str] = (),
    jobs: int = 1,
    track: Track | None = None,
    pictures: bool = True,
) -> int:
    """Runs below their upper folder, `jobs` at a time; the exit code. Raises FedsimError where another process is at work on the folder.

    `track` is by default that of the first.
    """
    track, code = track or group[0].loaded.scenario.track, 0
    held = lock(upper) if (upper / "sweep.json").exists() else None
    try:
        with ByHand() as hands, Progress(quiet=quiet) as progress:
            progress.say(*([] if quiet else notes))
            follower = start_follower(upper, track.uri, track.experiment)
            if follower and follower.why:
                progress.say(f"not tracked: {follower.why}")
            for one, info in _worked(upper, group, tasks, command, hands, progress, jobs):
                code = max(code, EXIT[info["status"]])
                if info["status"] != "finished":
                    kept = f"; kept: {upper / one.loaded.folder}" if (upper / one.loaded.folder / "run.json").exists() else ""
                    progress.say(f"{one.loaded.label} {info['status']}: {info['reason']}{kept}")
        close(upper, follower, progress, pictures)
        if code and (runs := runs_in(upper)):
            progress.say(advice(upper, runs) if code == EXIT["failed"] else f"resume with: {call_to_resume(upper, runs)}")
    finally:
        if held is not None:
            os.close(held)
    return code


def _worked(
    upper: Path, group: list[Planned], tasks: Tasks, command: str, hands: ByHand, progress: Progress, jobs: int
) -> Iterator[tuple[Planned, dict[str, Any]]]:
    """Each run that is worked on, and how it ended."""

    def folder_of(number: int) -> Path:
        return upper / group[number].loaded.folder

    def work(number: int, hands: ByHand, progress: Progress) -> dict[str, Any]:
        return _one(folder_of(number), group[number], tasks, command, hands, progress, jobs)

    if jobs > 1:
        for number, info in Abreast(jobs, work, folder_of, progress).results(len(group), hands):
            yield group[number], info
        return
    for number, one in enumerate(group):
        yield one, (info := work(number, hands, progress))
        if info["status"] == "stopped":
            return


def call_to_resume(upper: Path, runs: Sequence[RunFolder]) -> str:
    """The command that goes on with them: of a deployed run the one that it was served with."""
    if served := [run for run in runs if (run.path / RECORD).exists()]:
        return str(served[0].info.get("command"))
    return shlex.join(["fedsim", "resume", call_of(upper, runs), *trust_options()])


def advice(upper: Path, runs: Sequence[RunFolder]) -> str:
    """What to do about runs of which some failed: a resume is offered where it can help."""
    open_ = [run for run in runs if run.info.get("status") != "finished"]
    if not open_ or any(map(may_go_on, open_)):
        return f"resume with: {call_to_resume(upper, runs)}"
    if any(run.info.get("code") and not run.info.get("diverged") and not (run.path / RECORD).exists() for run in open_):
        return f"it would fail again as it is; if its own code is mended: {call_to_resume(upper, runs)} --code new"
    return "a resume could only fail again: change the scenario and run it anew"


def _one(folder: Path, one: Planned, tasks: Tasks, command: str, hands: ByHand, progress: Progress, beside: int) -> dict[str, Any]:
    """One run; its status and reason."""
    try:
        run = one.start or build(one.loaded, tasks)
        if one.again:
            progress.say(*(f"{one.loaded.label} {note}" for note in reopen(run, folder, command, one.new_code) if not progress.quiet))
        if not progress.quiet:
            warnings = [f"  warning   {doubt}" for doubt in doubts(run.fed, run.stop)]
            progress.introduce(f"{run.scenario.name}  {run.loaded.label}", found(run.fed.task, run.scenario.task.data), warnings)
        run.report, run.beside, hands.guard = progress, beside, run.guard
        info = run.execute(folder, command)
        progress.say(*(f"{one.loaded.label} world.{setting}: {note}" for setting, note in run.fed.nature.notes.items()))
        return info
    except FedsimError as error:
        return {"status": "failed", "reason": str(error)}
    except KeyboardInterrupt:
        return {"status": "stopped", "reason": "by hand"}
    finally:
        hands.guard = None


def close(upper: Path, follower: Follower | None, progress: Painted, pictures: bool = True) -> None:
    """Pictures (unless not wanted), the table, and what became of the tracking."""
    from fedsim.report.figures.plots import draw
    from fedsim.report.tables import print_summary

    runs, drawn = runs_in(upper), list[Path]()
    try:
        drawn = draw(runs) if runs and pictures else []
    except (FedsimError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        progress.console.print(f"no pictures: {why}; later: fedsim plot {shlex.quote(str(upper))}", soft_wrap=True, markup=False)
    if runs and not progress.quiet:
        print_summary(runs, drawn, progress.console)
    if follower:
        line = follower.finish()
        if not progress.quiet:
            progress.console.print(f"  {line}".replace(f"{Path.cwd()}/", ""), soft_wrap=True, markup=False)


def _sizes(bytes: Size) -> str:
    """Of one message, or where nodes' models differ the smallest and the largest."""
    least, most = least_and_most(bytes)
    return size(least) if least == most else f"{size(least)} to {size(most)}"


def preview(run: Run) -> str:
    """What a run would do, in a few lines."""
    fed = run.fed
    seconds = fed.durations() / fed.nature.per_second
    sent = (
        f"{size(fed.flight.peer_bytes)} to each of {fed.flight.exchanges[0].max()} peers"
        if fed.schedule.peers
        else f"{_sizes(fed.down_bytes)} down, {_sizes(fed.flight.up_bytes)} up"
    )
    parameters = ", ".join(count(one.layout.size) for one in fed.task.stacks)
    graph = fed.schedule.graph(fed) if fed.nodes <= GRAPH else None
    degrees = f"{graph.heard.min()} to {graph.heard.max()} heard by each; spectral gap {graph.gap():.3g}" if graph else ""
    lines = [
        f"{run.scenario.name}  {run.loaded.label}",
        *found(run.fed.task, run.scenario.task.data),
        *_skews(run),
        f"  model     {parameters} parameters; {run.fed.worker.about['plan']}: {run.fed.worker.about['plan_reason']}",
        f"  a job     {duration(float(seconds.min()))} to {duration(float(seconds.max()))} simulated; {sent}",
        *([f"  peers     {degrees}"] if degrees else []),
        *([f"  edges     {fed.about}"] if isinstance(fed, Tiers) else []),
        *(f"  world     {setting}: {note}" for setting, note in fed.nature.notes.items()),
        f"  schedule  {fed.schedule.name}; strategy {fed.strategy.name}; hash {run.loaded.hash}",
        *(f"  warning   {doubt}" for doubt in doubts(run.fed, run.stop)),
    ]
    return "\n".join(lines)


def _skews(run: Run) -> list[str]:
    """How unlike the nodes' data are, on which nodes they are shifted, and who lies."""
    task = run.fed.task
    labels = label_skew(task.label_counts().cpu().numpy())
    lines = [f"  sizes     {size_skew(task.counts.cpu().numpy())}", *([f"  labels    {labels}"] if labels else [])]
    shifts = [f"{part_name(one.shift)} on {count(int(one.nodes.sum()))} of {count(task.nodes)} nodes" for one in task.shifts]
    lines += [f"  shift     {'; '.join(shifts)}"] if shifts else []
    return lines + ([f"  attackers {liars}"] if (liars := run.fed.nature.liars) else [])
