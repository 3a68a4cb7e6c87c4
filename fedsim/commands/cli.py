"""The command line. Nothing heavy is imported before a command needs it."""

import faulthandler
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fedsim import __version__
from fedsim.base.address import hide
from fedsim.base.errors import FedsimError, RunError, ScenarioError, SettingError

if TYPE_CHECKING:
    from fedsim.scenario.loader import Loaded

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    suggest_commands=False,  # click does it, and twice would be too often
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated and decentralized learning, simulated from one scenario file.",
)
# Arguments are explained in epilogs: under click 8.5, typer 0.20 loses their help.
WORDS = "SCENARIO: a YAML file. KEY=VALUE: settings for all of them, such as strategy.beta=0.3 world.network.up=2MB/s."
RUNS = "RUN: a folder, a name (its latest run), name/variant, or a hash."
Words = Annotated[list[str], typer.Argument(metavar="SCENARIO... [KEY=VALUE...]", hidden=True)]
RunNames = Annotated[list[str], typer.Argument(metavar="RUN...", hidden=True)]
ResumeWords = Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE...]", hidden=True)]
Smoke = Annotated[bool, typer.Option("--smoke", help="merge the scenario's `smoke`: seconds instead of hours")]
Runs = Annotated[Path, typer.Option("--runs", help="where run folders are, by default runs/", metavar="FOLDER", show_default=False)]
Log = Annotated[bool, typer.Option("--log", help="train nothing: rebuild the model of replicas from their log of messages")]


def _trusting(modules: list[str]) -> list[str]:
    from fedsim.scenario.trust import trust

    try:
        trust(modules or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return modules


Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust", callback=_trusting, help="let scenarios run this module's code; repeatable", metavar="MODULE", show_default=False
    ),
]
Code = Annotated[
    str, typer.Option("--code", help="new: own modules as they are now, not as the run began", metavar="new", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print errors only")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedsim {__version__}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False) -> None:
    pass


def fail(error: FedsimError | str, code: int) -> NoReturn:
    """One clear message on standard error; 1: failed while running, 2: nothing was started."""
    from fedsim.base.visible import visible
    from fedsim.scenario import render

    typer.echo(visible(render(error) if isinstance(error, ScenarioError) else hide(str(error))), err=True)
    raise typer.Exit(code)


def _load(words: list[str], smoke: bool = False, sweeping: bool = False) -> list[list["Loaded"]]:
    """The runs of each scenario file among the words, with the settings among them applied to all."""
    from fedsim.scenario import load

    files = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if not files:
        fail("no scenario file given; try: fedsim run scenarios/quickstart.yaml", 2)
    found: list[list[Loaded]] = []
    problems = ScenarioError()
    for file in files:
        try:
            found.append(load(file, settings, smoke, sweeping))
        except ScenarioError as error:
            problems.problems += error.problems
    if problems.problems:
        fail(problems, 2)
    return found


def _checked(runs: list["Loaded"], tasks: Any) -> None:
    """Builds each variant once, so that no mistake shows in the middle of a sweep."""
    from fedsim.run.building import check

    found = check(runs, tasks)
    if found:
        by_label = {run.label: run for run in runs}
        fail(ScenarioError([by_label[label].problem(error) for label, error in found.items()]), 2)


@app.command(epilog=WORDS)
def run(words: Words, smoke: Smoke = False, runs: Runs = Path("runs"), quiet: Quiet = False, trust: Trust = None) -> None:
    """Simulate scenarios; of a file with `sweep`, all its runs."""
    _run(words, smoke, runs, quiet, sweeping=False)


@app.command(epilog=WORDS)
def sweep(words: Words, smoke: Smoke = False, runs: Runs = Path("runs"), quiet: Quiet = False, trust: Trust = None) -> None:
    """Like run, but sweep over lists: seed=0..4, train.lr=[0.1,0.3]."""
    _run(words, smoke, runs, quiet, sweeping=True)


def _run(words: list[str], smoke: bool, root: Path, quiet: bool, sweeping: bool) -> None:
    from fedsim.commands.experiment import execute
    from fedsim.run.building import Tasks
    from fedsim.scenario.trust import trust_options

    groups = _load(words, smoke, sweeping)
    options = [*(["--smoke"] if smoke else []), *(["--runs", str(root)] if root != Path("runs") else []), *(["--quiet"] if quiet else [])]
    options += trust_options()
    command = shlex.join(["fedsim", "sweep" if sweeping else "run", *map(hide, words), *options])
    tasks = Tasks()
    for group in groups:
        _checked(group, tasks)
    code = 0
    for group in groups:
        try:
            code = max(code, execute(group, tasks, root, quiet, command))
        except SettingError as error:
            fail(ScenarioError([group[0].problem(error)]), 2)
        except FedsimError as error:
            fail(error, 2)
        if code == 130:
            break
    raise typer.Exit(code)


@app.command(epilog=f"{RUNS} KEY=VALUE: settings that leave the question as it is, such as stop.rounds=400.")
def resume(words: ResumeWords, runs: Runs = Path("runs"), quiet: Quiet = False, code: Code = "kept", trust: Trust = None) -> None:
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
            end = max(end, go_on(group, settings, tasks, quiet, command, code == "new"))
            if end == 130:
                break
    except FedsimError as error:
        fail(error, 2)
    raise typer.Exit(end)


@app.command(epilog=RUNS)
def replay(names: RunNames, log: Log = False, runs: Runs = Path("runs"), quiet: Quiet = False, trust: Trust = None) -> None:
    """Compute runs again from their folders; compare bit by bit.

    Model, events and metrics; exit code 1 where something differs.
    """
    from rich.console import Console

    from fedsim.report.progress import Progress
    from fedsim.run.folders import find_runs
    from fedsim.run.replay import replay_all

    try:
        with Progress(Console(highlight=False, stderr=True), quiet=quiet) as progress:
            good = replay_all(find_runs(names, runs), progress, print, log)
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
    for group in _load(words, smoke):
        _checked(group, tasks)
        found = []
        for loaded in group:
            try:
                run = build(loaded, tasks)
            except SettingError as error:
                fail(ScenarioError([loaded.problem(error)]), 2)
            print(preview(run))
            for note in tried(run):
                print(f"  warning   {note}")
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

    for group in _load(words):
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


@app.command("list")
def list_(what: Annotated[str, typer.Argument(metavar="[SLOT|NAME|keys]", hidden=True)] = "") -> None:
    """List what a scenario can name.

    All slots, the parts of a slot, one part with its settings, or all keys.
    """
    from fedsim.report.listing import listing

    try:
        print(listing(what))
    except ValueError as error:
        fail(str(error), 2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of scenarios, for editors."""
    import json

    from fedsim.scenario import schema as json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command(epilog=RUNS)
def inspect(names: RunNames, runs: Runs = Path("runs")) -> None:
    """Show how runs ended and what they cost; check their events."""
    from fedsim.report.inspection import inspect_run
    from fedsim.run.folders import find_runs

    try:
        verdicts = [(found, *inspect_run(found)) for found in find_runs(names, runs)]
    except FedsimError as error:
        fail(error, 2)
    for found, text, _ in verdicts:
        print(f"{found.path}\n{text}")
    raise typer.Exit(0 if all(good for *_, good in verdicts) else 1)


@app.command(epilog=RUNS)
def plot(names: RunNames, runs: Runs = Path("runs")) -> None:
    """Draw accuracy, loss, staleness, labels and work of runs."""
    from fedsim.report.plots import draw
    from fedsim.run.folders import find_runs

    try:
        for file in draw(find_runs(names, runs)):
            print(file)
    except FedsimError as error:
        fail(error, 2)


@app.command(epilog=RUNS)
def track(
    names: RunNames,
    runs: Runs = Path("runs"),
    uri: Annotated[str | None, typer.Option(help="tracking URI; by default the scenario's")] = None,
    experiment: Annotated[str | None, typer.Option(help="experiment; by default the scenario's")] = None,
) -> None:
    """Upload runs to MLflow: what is missing there."""
    from rich.console import Console

    from fedsim.base.links import keep_inside
    from fedsim.report.tables import upper_of
    from fedsim.report.upload import upload
    from fedsim.run.folders import find_runs

    try:
        folders = list(dict.fromkeys(upper_of([found]) for found in find_runs(names, runs)))
        for folder in folders:
            keep_inside(folder)
    except FedsimError as error:
        fail(error, 2)
    try:
        for folder in folders:
            with Console(stderr=True).status(f"uploading {folder}"):  # on terminals
                said = upload(folder, uri, experiment)
            print(said, flush=True)
    except FedsimError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        fail("stopped; what has arrived stays, and the same command adds what is missing", 130)


@app.command(epilog="NAME: a measurement; by default all of them. An unknown name is answered with the known ones.")
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", hidden=True)] = None,
    json_: Annotated[bool, typer.Option("--json", help="a line {name, ours, other, ratio, target} a figure")] = False,
    trials: Annotated[int, typer.Option(help="interleaved trials of each side, by default 7", show_default=False)] = 7,
) -> None:
    """Measure speed and scale on this machine."""
    if trials < 1:
        fail(f"--trials {trials}: at least 1 is due", 2)
    from fedsim.bench import main as measure

    try:
        measure(names or [], json_, trials)
    except FedsimError as error:
        fail(error, 1 if isinstance(error, RunError) else 2)


def main() -> None:
    """Entry point of the `fedsim` command."""
    faulthandler.enable()
    app()


if __name__ == "__main__":
    main()
