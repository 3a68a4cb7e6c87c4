"""The command for Flower apps in a simulated world."""

import re
import shlex
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.base.address import hide
from fedsim.base.errors import FedsimError
from fedsim.commands.words import Quiet, Runs, Trust, app, fail

if TYPE_CHECKING:
    from fedsim.flower.simulate import Simulation
    from fedsim.report.screen.standing import Standing

MOST_PROCESSES = 256
REFRESH = 0.1  # seconds
MEANING = {"2": "the ClientApp raised (2)", "3": "expired (3)", "5": "the node was away or left (5)", "8": "the ClientApp crashed (8)"}

Folder = Annotated[Path, typer.Argument(metavar="APPDIR", hidden=True)]
WorldFile = Annotated[
    Path | None, typer.Option("--world", help="a scenario's world; without it nothing takes time", metavar="FILE", show_default=False)
]
HowMany = Annotated[int | None, typer.Option("--nodes", help="how many nodes there are", metavar="N", show_default=False)]
RunConfig = Annotated[
    list[str] | None,
    typer.Option("--run-config", help="settings over the app's own; repeatable", metavar="'KEY=VALUE ...'", show_default=False),
]
Seed = Annotated[int | None, typer.Option("--seed", help="instead of the world file's", metavar="N", show_default=False)]
Processes = Annotated[
    int,
    typer.Option("--processes", help="run ClientApps in a pool of so many; by default in this one", metavar="N", show_default=False),
]
Serialize = Annotated[bool, typer.Option("--serialize", help="pass messages through bytes, as a network would")]
MeasuredOption = Annotated[bool, typer.Option("--measured", help="work takes what it takes on this host, not what the world says")]


@app.command(epilog="APPDIR: the folder of a Flower app, unmodified. FILE: a scenario, or no more than its `world`, `groups` and `seed`.")
def flower(
    folder: Folder,
    nodes: HowMany = None,
    world: WorldFile = None,
    run_config: RunConfig = None,
    seed: Seed = None,
    processes: Processes = 0,
    serialize: Serialize = False,
    measured: MeasuredOption = False,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Run a Flower app in a simulated world, on a virtual clock.

    ServerApp, ClientApp and strategy are the app's own.
    """
    if nodes is None:
        fail("say with --nodes how many nodes there are", 2)
    if nodes < 1:
        fail(f"--nodes {nodes}: 1 or more is due", 2)
    for name, number in (("--seed", seed), ("--processes", processes)):
        if number is not None and number < 0:
            fail(f"{name} {number}: 0 or more is due", 2)
    if seed is not None and seed >= 2**63:
        fail(f"--seed {seed}: less than 2^63 is due", 2)
    if processes > MOST_PROCESSES:
        fail(f"--processes {processes}: at most {MOST_PROCESSES} is due; each loads PyTorch and the app", 2)
    from fedsim.flower.app import read, settings
    from fedsim.report.screen.standing import Standing
    from fedsim.settings.values import MOST_NODES

    if nodes > MOST_NODES:
        fail(f"--nodes {nodes}: at most {MOST_NODES:,} is due", 2)
    options = {
        "--nodes": nodes,
        "--world": world,
        "--seed": seed,
        "--processes": processes or None,
        "--runs": None if runs == Path("runs") else runs,
    }
    words = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    words += [word for text in run_config or () for word in ("--run-config", text)]
    words += [name for name, wanted in (("--serialize", serialize), ("--measured", measured)) if wanted]
    try:
        config = settings(word for text in run_config or () for word in _words(text))
        flower_app = read(folder)
        with Standing(quiet) as standing:
            standing.paint(f"{flower_app.name}: loading")
            from fedsim.flower.settings import around
            from fedsim.flower.simulate import Simulation

            one = Simulation(flower_app, nodes, around(world, nodes, seed), config, processes, serialize, measured)
            code = _run(one, runs, standing, shlex.join(["fedsim", "flower", str(folder), *map(hide, words)]))
    except FedsimError as error:
        fail(error, 2)
    raise typer.Exit(code)


def _run(one: "Simulation", root: Path, standing: "Standing", command: str) -> int:
    """The run, its tracking, pictures and table; the exit code."""
    from fedsim.commands.experiment import EXIT, close
    from fedsim.flower.serve import interruptible
    from fedsim.report.mlflow.tracking import start_follower
    from fedsim.run.runfolder import make_upper

    upper = make_upper(root, one.name, one.hash)
    if one.around.unused:
        standing.say(f"{one.around.file}: of no matter to an app: {', '.join(one.around.unused)}")
    follower = start_follower(upper, one.around.track.uri, one.around.track.experiment)
    if follower and follower.why:
        standing.say(f"not tracked: {follower.why}")
    at = 0.0

    def show(run: "Simulation") -> None:
        nonlocal at
        if monotonic() - at > REFRESH:
            standing.show(run.line)
            at = monotonic()

    one.report = show
    interruptible()
    info = one.execute(upper, command)
    standing.paint("")
    close(upper, follower, standing)
    if info["errors"]:
        kinds = ", ".join(f"{count:,} x {MEANING.get(code, f'error {code}')}" for code, count in info["errors"].items())
        standing.say(f"of {info['messages']:,} messages: {kinds}; see {upper / 'log.txt'}")
    if info["status"] != "finished":
        standing.console.print(f"{info['status']}: {info['reason']}; kept: {upper}", soft_wrap=True, markup=False)
    return EXIT[info["status"]]


def _words(text: str) -> list[str]:
    """KEY=VALUE of `rounds=3 name="two words"`; quotes stay, as in TOML."""
    return re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", text)
