"""Commands that show: what can be named, how runs went, how fast it is."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.base.errors import FedsimError, RunError
from fedsim.commands.completing import listed
from fedsim.commands.words import RUNS, RunNames, Runs, app, fail


@app.command("list")
def list_(what: Annotated[str, typer.Argument(metavar="[SLOT|NAME|keys|scenarios]", hidden=True, autocompletion=listed)] = "") -> None:
    """List what a scenario can name.

    All slots, the parts of a slot, one part with its settings, all keys, or the scenarios
    in this folder and in scenarios/.
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

    from fedsim.report.tables import upper_of
    from fedsim.report.upload import upload
    from fedsim.run.folders import find_runs
    from fedsim.run.links import keep_inside

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


@app.command(epilog=RUNS)
def profile(
    names: RunNames,
    out: Annotated[Path | None, typer.Option(help="by default RUN/world.yaml", metavar="FILE", show_default=False)] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Measure the machines and links of a deployed run.

    Writes a `world` in which the same scenario can be simulated. Runs after the first, of
    the same machines, add what other messages took.
    """
    from rich.console import Console

    from fedsim.base.files import whole
    from fedsim.deploy.measuring import profile as measured
    from fedsim.deploy.worlds import table, text
    from fedsim.run.folders import find_runs

    try:
        found = find_runs(names, runs)
        with Console(stderr=True).status(f"measuring {found[0].path}"):  # on terminals
            seen = measured(*found)
        file = out or found[0].path / "world.yaml"
        with whole(file) as draft:
            draft.write_text(text(seen, ", ".join(str(one.path) for one in found)))
    except FedsimError as error:
        fail(error, 2)
    for line in table(seen):
        print(line)
    print(f"{file}\nnext: a scenario with `extends: [SCENARIO, {file}]`, and fedsim run")
