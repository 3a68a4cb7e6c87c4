"""The words of the command line: what commands share. Nothing heavy is imported before a command needs it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fedsim import __version__
from fedsim.base import reading
from fedsim.base.address import hide
from fedsim.base.errors import FedsimError, ScenarioError
from fedsim.commands import completing

if TYPE_CHECKING:
    from fedsim.scenario.loader import Loaded

app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,  # click does it, and twice would be too often
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Federated and decentralized learning, simulated from one scenario file.",
)
# Arguments are explained in epilogs: under click 8.5, typer 0.20 loses their help.
WORDS = "SCENARIO: a YAML file. KEY=VALUE: settings for all of them, such as strategy.beta=0.3 world.network.up=2MB/s."
RUNS = "RUN: a folder, a name (its latest run), name/variant, or a hash."
Words = Annotated[list[str], typer.Argument(metavar="SCENARIO... [KEY=VALUE...]", hidden=True, autocompletion=completing.words)]
RunNames = Annotated[list[str], typer.Argument(metavar="RUN...", hidden=True, autocompletion=completing.runs)]
CompareWords = Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE...]", hidden=True, autocompletion=completing.going)]
ResumeWords = Annotated[list[str], typer.Argument(metavar="RUN... [KEY=VALUE...]", hidden=True, autocompletion=completing.going)]
Smoke = Annotated[bool, typer.Option("--smoke", help="merge the scenario's `smoke`: seconds instead of hours")]
Runs = Annotated[Path, typer.Option("--runs", help="where run folders are, by default runs/", metavar="FOLDER", show_default=False)]
Log = Annotated[bool, typer.Option("--log", help="train nothing: rebuild the model of replicas from their log of messages")]


def _trusting(ctx: typer.Context, modules: list[str]) -> list[str]:
    if ctx.resilient_parsing:  # the shell asks what may follow
        return modules
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


def _hush(wanted: bool) -> bool:
    """Also files are read without a word."""
    reading.quiet = wanted
    return wanted


Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        envvar="FEDSIM_JOBS",
        help="runs of a sweep side by side, by default what cores and memory allow",
        metavar="N",
        show_default=False,
        show_envvar=False,
    ),
]
Anew = Annotated[bool, typer.Option("--anew", help="compute also runs of a sweep that have finished before")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print errors only", callback=_hush)]


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


def runs_of(words: list[str], smoke: bool = False, sweeping: bool = False) -> list[list["Loaded"]]:
    """The runs of each scenario file among the words, with the settings among them applied to all."""
    from fedsim.scenario.files import unreadable

    files = [word for word in words if "=" not in word]
    settings = [word for word in words if "=" in word]
    if not files:
        fail("no scenario file given; try: fedsim run scenarios/quickstart.yaml", 2)
    if not settings and (broken := unreadable(files)):
        fail(broken, 2)
    from fedsim.scenario import load  # and PyTorch, which takes seconds

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


def check_all(runs: list["Loaded"], tasks: Any) -> None:
    """Builds each variant once, so that no mistake shows in the middle of a sweep."""
    from fedsim.run.building import check

    found = check(runs, tasks)
    if found:
        by_label = {run.label: run for run in runs}
        fail(ScenarioError([by_label[label].problem(error) for label, error in found.items()]), 2)
