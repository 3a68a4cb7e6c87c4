"""The command that watches: a run's folder, or a server."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedsim.base.errors import FedsimError
from fedsim.commands import completing
from fedsim.commands.trusting import Beyond, Certificate, Certificates, Insecure, TokenFile, worker_identity
from fedsim.commands.words import RUNS, Runs, app, fail

SERVER = re.compile(r".+:\d{1,5}")


@app.command(epilog=f"{RUNS} HOST:PORT: a server, asked as by a worker.")
def watch(
    name: Annotated[str, typer.Argument(metavar="RUN|HOST:PORT", hidden=True, autocompletion=completing.runs)],
    once: Annotated[bool, typer.Option("--once", help="show it once and end")] = False,
    runs: Runs = Path("runs"),
    certificates: Certificates = None,
    certificate: Certificate = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    beyond: Beyond = False,
) -> None:
    """Watch a run: how far it is, who works, who is missing.

    Ends with the run, with 1 where that went wrong; Ctrl-C ends it earlier, and the run goes on.
    """
    from rich.console import Console

    from fedsim.report.screen.watching import Screen, follow, lines
    from fedsim.transport.watching import Over

    console = Console(highlight=False, emoji=False)
    try:
        if not Path(name).exists() and SERVER.fullmatch(name):
            look = _server(name, worker_identity(name, certificates, certificate, token_file, insecure, beyond))
        else:
            look = _folder(name, runs)
        if once:
            for line in lines(look()):
                console.print(line, soft_wrap=True, markup=False)
            return
        with Screen(console) as screen:
            end = follow(look, screen, time.sleep)
    except Over as over:
        print(over)
        return
    except FedsimError as error:
        fail(error, 2)
    except KeyboardInterrupt:
        return
    raise typer.Exit(0 if end["status"] == "finished" else 1)


def _folder(name: str, root: Path) -> Callable[[], dict[str, Any]]:
    from fedsim.report.screen.watching import state_of
    from fedsim.run.folders import RunFolder, find_runs

    found = find_runs([name], root)
    if len(found) > 1:
        live = [run for run in found if run.status == "running"]
        found = live[:1] or found[-1:]
    return lambda: state_of(RunFolder(found[0].path))


def _server(target: str, identity: Any) -> Callable[[], dict[str, Any]]:
    from fedsim.transport.watching import Server

    server = Server(target, identity)
    return lambda: server.state() | {"here": time.time()}
