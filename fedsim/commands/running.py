"""Commands that compute: run, sweep, resume, replay, validate, tune."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fedsim.base.address import hide
from fedsim.base.errors import FedsimError, ScenarioError, SettingError
from fedsim.commands.words import (
    RUNS,
    WORDS,
    Anew,
    Code,
    Jobs,
    Log,
    Quiet,
    ResumeWords,
    RunNames,
    Runs,
    Smoke,
    Trust,
    Words,
    app,
    check_all,
    fail,
    runs_of,
)


@app.command("sweep", epilog=WORDS, help="Like run, but sweep over lists: seed=0..4, train.lr=[0.1,0.3].")
@app.command("run", epilog=WORDS, help="Simulate scenarios; of a file with `sweep`, all its runs.")  # listed first
def simulate(
    context: typer.Context,
    words: Words,
    smoke: Smoke = False,
    root: Runs = Path("runs"),
    jobs: Jobs = None,
    anew: Anew = False,
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Both: the command's name tells whether lists are swept over."""
    sweeping = context.info_name == "sweep"
    groups = runs_of(words, smoke, sweeping)
    from fedsim.commands.experiment import execute
    from fedsim.run.building import Tasks
    from fedsim.scenario.trust import trust_options

    options = [*(["--smoke"] if smoke else []), *(["--runs", str(root)] if root != Path("runs") else []), *(["--quiet"] if quiet else [])]
    options += trust_options()
    command = shlex.join(["fedsim", context.info_name or "run", *map(hide, words), *options])
    tasks = Tasks()
    for group in groups if len(groups) > 1 or groups[0][0].folder else []:  # a run that is alone is built once
        check_all(group, tasks)
    code = 0
    for group in groups:
        try:
            code = max(code, execute(group, tasks, root, quiet, command, jobs, anew))
        except SettingError as error:
            fail(ScenarioError([group[0].problem(error)]), 2)
        except FedsimError as error:
            fail(error, 2)
        if code == 130:
            break
    raise typer.Exit(code)


@app.command(epilog=f"{RUNS} KEY=VALUE: settings that leave the question as it is, such as stop.rounds=400.")
def resume(
    words: ResumeWords, runs: Runs = Path("runs"), jobs: Jobs = None, quiet: Quiet = False, code: Code = "kept", trust: Trust = None
) -> None:
    """Go on with runs that were stopped, killed or failed.

    From the last good checkpoint to the same bits as if never stopped; of a sweep, all that are not finished. A finished run goes
    on where it gets another end.
    """
    from fedsim.commands.experiment import go_on
    from fedsim.run.building import Tasks
    from fedsim.run.folders import find_planned
    from fedsim.scenario.trust import trust_options

    names, settings = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    if not names:
        fail("no run given; try: fedsim resume NAME", 2)
    if code not in ("kept", "new"):
        fail(f"--code {code}: `new` is due, or `kept`", 2)
    options = [*(["--code", code] if code == "new" else []), *trust_options()]
    command, end, tasks = shlex.join(["fedsim", "resume", *map(hide, words), *options]), 0, Tasks()
    try:
        for group in find_planned(names, runs):
            end = max(end, go_on(group, settings, tasks, quiet, command, code == "new", jobs))
            if end == 130:
                break
    except FedsimError as error:
        fail(error, 2)
    raise typer.Exit(end)


OwnData = Annotated[
    list[str] | None,
    typer.Option("--data", help="where the own data of a deployed run's nodes lie; repeatable", metavar="NODES=FOLDER", show_default=False),
]


Replies = Annotated[
    bool, typer.Option("--replies", help="of deployed runs: train nothing, and take the replies that `serve --keep-replies` kept")
]


def _own_data(words: Sequence[str]) -> list[tuple[list[int], Path]]:
    """Raises FedsimError for a word that is none."""
    from fedsim.transport.nodes import parse

    found = []
    for word in words:
        nodes, _, folder = word.partition("=")
        try:
            named = parse(nodes)
        except ValueError as error:
            raise FedsimError(f"--data {word}: {error}") from error
        if named is None or not Path(folder).is_dir():
            raise FedsimError(f"--data {word}: NODES=FOLDER is due, such as 0..3=/data")
        found.append((list(named), Path(folder)))
    return found


@app.command(epilog=RUNS)
def replay(
    names: RunNames,
    log: Log = False,
    data: OwnData = None,
    replies: Replies = False,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Compute runs again from their folders; compare bit by bit.

    Model, events and metrics; exit code 1 where something differs.
    """
    from rich.console import Console

    from fedsim.deploy.replaying import recorded
    from fedsim.report.screen.progress import Progress
    from fedsim.run.folders import find_runs
    from fedsim.run.replay import replay_all

    try:
        with Progress(Console(highlight=False, stderr=True), quiet=quiet) as progress:
            builder = partial(recorded, data=_own_data(data or ()), replies=replies)
            good = replay_all(find_runs(names, runs), progress, print, log, builder)
    except FedsimError as error:
        fail(error, 2)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(0 if good else 1)


@app.command(epilog=WORDS)
def validate(words: Words, smoke: Smoke = False, trust: Trust = None) -> None:
    """Check scenarios and say what they would do.

    Nodes, samples, parameters, and the bytes and simulated time of a job.
    """
    from fedsim.commands.experiment import preview
    from fedsim.report.overview import facts, overview
    from fedsim.run.building import Tasks, build
    from fedsim.run.trial import tried

    tasks = Tasks()
    for group in runs_of(words, smoke):
        check_all(group, tasks)
        found = []
        for loaded in group:
            try:
                run = build(loaded, tasks)
                print(preview(run))
                for note in tried(run):
                    print(f"  warning   {note}")
            except SettingError as error:
                fail(ScenarioError([loaded.problem(error)]), 2)
            found.append(facts(run))
        if len(found) > 1:
            print(overview(found))


@app.command(epilog=WORDS)
def tune(
    words: Words,
    seconds: Annotated[float, typer.Option(help="of each trial, by default 2", show_default=False)] = 2.0,
    dry: Annotated[bool, typer.Option("--dry", help="measure only, and leave the file as it is")] = False,
    trust: Trust = None,
) -> None:
    """Measure the engine's plans; write the fastest into the scenario."""
    from fedsim.run.building import Tasks
    from fedsim.run.tune import Trial, tune, written

    def said(trial: Trial) -> None:
        print(f"  {trial.words:36}{trial.rate:12,.0f} client-steps/s{'  ' + trial.why if trial.why else ''}", flush=True)

    for group in runs_of(words):
        first = group[0]
        print(f"{first.file}  {first.label}")
        try:
            best = tune(first, Tasks(), seconds, said)[0]
            if not best.rate:
                fail(f"{first.file}: none of the plans can run it", 1)
            print(f"fastest: {best.words}" if dry else f"written: {written(first.file, best.engine)}")
        except SettingError as error:
            fail(ScenarioError([first.problem(error)]), 2)
        except FedsimError as error:
            fail(error, 1)
