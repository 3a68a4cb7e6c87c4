"""Commands for real machines: serve, join."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.base.address import hide
from fedsim.base.errors import FedsimError, ScenarioError, SettingError
from fedsim.commands.trusting import CERTS, Beyond, Certificate, Certificates, Insecure, Target, TokenFile, worker_identity
from fedsim.commands.words import WORDS, Quiet, Runs, Smoke, Trust, Words, app, fail, runs_of

if TYPE_CHECKING:
    from fedsim.transport.identity import ServerIdentity

Listen = Annotated[list[str] | None, typer.Option("--listen", help="instead of `deploy.listen`; repeatable", metavar="HOST:PORT")]
Tokens = Annotated[Path | None, typer.Option("--tokens", help="tokens of workers, a line each", metavar="FILE", show_default=False)]
Nodes = Annotated[str, typer.Option("--nodes", help="such as 0..99 or 3,5,7; auto: as many as still lack", metavar="NODES")]
Data = Annotated[Path | None, typer.Option("--data", help="what FEDSIM_DATA means here", metavar="FOLDER", show_default=False)]
Device = Annotated[str | None, typer.Option("--device", help="such as cuda:0; by default the scenario's", metavar="DEVICE")]
CodeFolder = Annotated[Path, typer.Option("--code", help="where own modules lie, by default here", metavar="FOLDER", show_default=False)]
Meet = Annotated[
    str, typer.Option("--listen", help="among peers: where others reach this worker; by default any free port", metavar="HOST:PORT")
]
Address = Annotated[str, typer.Option("--address", help="how they call it, if that is another", metavar="HOST:PORT", show_default=False)]
State = Annotated[
    Path, typer.Option("--folder", help="keeps who this worker is, and its nodes' memories", metavar="FOLDER", show_default=False)
]


@app.command(epilog=WORDS)
def serve(
    words: Words,
    listen: Listen = None,
    certificates: Certificates = None,
    tokens: Tokens = None,
    insecure: Insecure = False,
    beyond: Beyond = False,
    smoke: Smoke = False,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Serve a scenario to real workers (`fedsim join`).

    The same command goes on with a run that was broken off.
    """
    from fedsim.commands.serving import execute
    from fedsim.scenario.trust import trust_options

    group = [loaded for group in runs_of(words, smoke, sweeping=False) for loaded in group]
    if len(group) > 1:
        fail(f"{words[0]}: {len(group)} runs; `serve` serves one: choose with KEY=VALUE, or take `sweep` out with sweep=null", 2)
    [loaded] = group
    command = shlex.join(["fedsim", "serve", *map(hide, words), *(["--smoke"] if smoke else []), *trust_options()])
    try:
        folder = certificates or (Path(loaded.scenario.deploy.certificates) if loaded.scenario.deploy.certificates else None)
        identity = _server(folder, tokens, insecure, beyond)
        where = listen or [loaded.scenario.deploy.listen]
        for address in where:
            identity.check(address)
        code = execute(loaded, runs, where, identity, quiet, command)
    except SettingError as error:
        fail(ScenarioError([loaded.problem(error)]), 2)
    except FedsimError as error:
        fail(error, 2)
    raise typer.Exit(code)


def _server(folder: Path | None, tokens: Path | None, insecure: bool, beyond: bool) -> "ServerIdentity":
    from fedsim.transport.identity import ServerIdentity

    if beyond and not insecure:
        raise FedsimError("--insecure-beyond-loopback goes with --insecure")
    if insecure:
        return ServerIdentity.plain(beyond)
    if folder is None and not CERTS.is_dir():
        raise FedsimError("no certificates: `fedsim certs` makes them, then --certificates FOLDER; or --insecure on one machine")
    return ServerIdentity.folder(folder or CERTS, tokens)


@app.command(epilog="HOST:PORT: where the server listens.")
def join(
    target: Target,
    nodes: Nodes = "auto",
    data: Data = None,
    device: Device = None,
    certificates: Certificates = None,
    certificate: Certificate = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    beyond: Beyond = False,
    code: CodeFolder = Path(),
    folder: State = Path("worker"),
    meet: Meet = "",
    address: Address = "",
    quiet: Quiet = False,
) -> None:
    """Work for a server: host nodes and train what waits for them.

    Started again with the same folder, it is the same worker.
    """
    from fedsim.deploy.join import Machine
    from fedsim.deploy.join import join as work

    try:
        identity = worker_identity(target, certificates, certificate, token_file, insecure, beyond)
        machine = Machine(target, nodes, folder, code, data, device, meet, address)
        why = work(machine, identity, lambda text: None if quiet else print(text, flush=True))
    except FedsimError as error:
        fail(error, 2)
    print(why)
