"""Commands that show: what can be named, how runs went, how fast it is."""

from pathlib import Path
from typing import Annotated

import typer

from fedsim.base.errors import FedsimError, RunError
from fedsim.commands.completing import listed
from fedsim.commands.words import RUNS, CompareWords, RunNames, Runs, app, fail


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
    from rich.console import Console

    from fedsim.report.inspection import inspect_run
    from fedsim.run.folders import find_runs

    verdicts, broken = [], list[str]()
    try:
        with Console(stderr=True).status("reading events"):  # on terminals
            for found in find_runs(names, runs):
                try:
                    verdicts.append((found, *inspect_run(found)))
                except FedsimError as error:
                    broken.append(str(error))
    except FedsimError as error:
        fail(error, 2)
    for found, text, _ in verdicts:
        print(f"{found.path}\n{text}")
    if broken:
        fail("\n".join(broken), 2)
    raise typer.Exit(0 if all(good for *_, good in verdicts) else 1)


@app.command(epilog=f"{RUNS} KEY=VALUE: only runs with such a setting.")
def compare(
    words: CompareWords,
    baseline: Annotated[
        str | None, typer.Option(help="what others are set against: a variant, or KEY=VALUE; by default the first", show_default=False)
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="a grid: variants down, the values of KEY across", metavar="KEY", show_default=False)
    ] = None,
    format: Annotated[str, typer.Option(help="text, markdown, latex, csv or json", show_default=False)] = "text",
    best: Annotated[bool, typer.Option("--best", help="also the best evaluation of each run, marked")] = False,
    runs: Runs = Path("runs"),
) -> None:
    """Set runs and sweeps beside each other, over their seeds.

    Ends, costs, what the target cost; differences to a baseline, paired by seed, with t
    interval, p and exact sign flips. Exit code 1 where a run's files are damaged.
    """
    import shutil

    from rich.console import Console

    from fedsim.base.visible import visible
    from fedsim.report.comparison.formats import known_format, written
    from fedsim.report.comparison.rows import compared
    from fedsim.run.folders import find_runs

    where = [word for word in words if "=" in word and not (Path(word).exists() or (runs / word).exists())]
    try:
        known_format(format)
        found = find_runs([word for word in words if word not in where], runs)
        if not found:
            raise FedsimError("no run given; try: fedsim compare NAME")
        with Console(stderr=True).status("reading") as status:  # on terminals
            comparison = compared(found, baseline, where, best, lambda done: status.update(f"reading {done} of {len(found)}"))
            text = written(comparison, format, by, shutil.get_terminal_size((80, 24)).columns)
    except FedsimError as error:
        fail(error, 2)
    print(visible(text))
    raise typer.Exit(1 if comparison.broken else 0)


@app.command(epilog=f"{RUNS} X, Y: round, seconds, bytes, energy, updates, wall, accuracy, loss, worst_10, or any metric.")
def plot(
    names: RunNames,
    x: Annotated[str | None, typer.Option(help="one chart against X; by default seconds", metavar="X", show_default=False)] = None,
    y: Annotated[str | None, typer.Option(help="one chart of Y; by default accuracy", metavar="Y", show_default=False)] = None,
    variants: Annotated[str | None, typer.Option(help="one chart of these variants: a,b", metavar="NAMES", show_default=False)] = None,
    format: Annotated[str | None, typer.Option(help="one chart as png, pdf or svg", metavar="FORMAT", show_default=False)] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Draw accuracy, loss, staleness, labels and work of runs.

    With an option, one chart alone, as wide as a column of a paper.
    """
    from fedsim.report.figures.plots import draw
    from fedsim.report.style import whole_of
    from fedsim.run.folders import find_runs

    try:
        found = find_runs(names, runs)
        if any(one is not None for one in (x, y, variants, format)):
            from fedsim.report.figures.chart import draw_chart

            file, caption = draw_chart(found, x or "seconds", y or "accuracy", variants or "", format or "png")
            print(f"{file}\n  {caption}" if caption else file)
            return
        broken = list[str]()
        whole, left = whole_of(found)
        for file in draw(whole, broken=broken):
            print(file)
    except FedsimError as error:
        fail(error, 2)
    if broken or left:
        fail("\n".join([*(f"not drawn: {one}" for one in left), *(f"no pictures of events: {one}" for one in broken[:1])]), 2)


@app.command(epilog=RUNS)
def report(
    names: RunNames,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="by default report.html among the figures", metavar="FILE", show_default=False)
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Make one HTML file of runs, to look at and to send: no network.

    Runs that have not finished, or are damaged, are listed there and not counted.
    """
    from rich.console import Console

    from fedsim.report.page.page import page_of
    from fedsim.report.page.page import report as written
    from fedsim.run.folders import find_planned

    try:
        found = [run for group in find_planned(names, runs) for run in group]
        with Console(stderr=True).status("reading") as status:  # on terminals
            left = written(found, file := out or page_of(found), status.update)
    except FedsimError as error:
        fail(error, 1 if isinstance(error, RunError) else 2)
    for one in left:
        typer.echo(f"not counted: {one.label}: {one.status} ({one.why})", err=True)
    print(file)


@app.command(epilog=RUNS)
def track(
    names: RunNames,
    runs: Runs = Path("runs"),
    uri: Annotated[str | None, typer.Option(help="tracking URI; by default the scenario's")] = None,
    experiment: Annotated[str | None, typer.Option(help="experiment; by default the scenario's")] = None,
) -> None:
    """Upload runs to MLflow: what is missing there."""
    from rich.console import Console

    from fedsim.report.mlflow.upload import upload
    from fedsim.report.tables import upper_of
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


@app.command()
def ui(
    uri: Annotated[str | None, typer.Option(help="tracking URI; by default the store beside the runs", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="by default the first free one from 5000 on", show_default=False)] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Show runs in MLflow's own pages, until Ctrl-C.

    Prints for each experiment the address that opens on its runs.
    """
    from rich.console import Console

    from fedsim.base.address import hide_known, whole
    from fedsim.report.mlflow.places import whole_uri
    from fedsim.report.mlflow.ui import pages, served
    from fedsim.report.mlflow.upload import default_uri

    try:
        place = whole(whole_uri(uri or default_uri(runs / "name" / "run")))
        with Console(stderr=True).status("starting MLflow's server") as status, served(place, port) as (address, server):
            for line in pages(address, place) or [f"no runs yet  {address}"]:
                print(line, flush=True)
            status.stop()
            if server is not None:
                print("until Ctrl-C", flush=True)
                server.wait()
    except KeyboardInterrupt:
        return
    except FedsimError as error:
        fail(error, 2)
    except Exception as error:  # whatever MLflow's client or a driver says
        fail(f"MLflow: {hide_known(str(error).splitlines()[0], place)}", 2)


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
