"""Commands for real machines: serve, join."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.base.address import hide
from fedsim.base.errors import FedsimError, RunError, ScenarioError, SettingError
from fedsim.commands.trusting import CERTS, Beyond, Certificate, Certificates, Insecure, Target, TokenFile, worker_identity
from fedsim.commands.words import WORDS, Quiet, Runs, Smoke, Trust, Words, app, fail, runs_of

if TYPE_CHECKING:
    from fedsim.transport.identity import ServerIdentity

Listen = Annotated[
    list[str] | None, typer.Option("--listen", help="instead of `deploy.listen`; repeatable", metavar="HOST:PORT", show_default=False)
]
Tokens = Annotated[Path | None, typer.Option("--tokens", help="tokens of workers, a line each", metavar="FILE", show_default=False)]
Nodes = Annotated[
    str, typer.Option("--nodes", help="such as 0..99 or 3,5,7; auto: as many as still lack", metavar="NODES", show_default=False)
]
Data = Annotated[Path | None, typer.Option("--data", help="what FEDSIM_DATA means here", metavar="FOLDER", show_default=False)]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="such as cuda:0, or several: cuda:0,cuda:1; by default the scenario's", metavar="DEVICE", show_default=False
    ),
]
CodeFolder = Annotated[Path, typer.Option("--code", help="where own modules lie, by default here", metavar="FOLDER", show_default=False)]
Meet = Annotated[
    str, typer.Option("--listen", help="among peers: where others reach this worker; by default any free port", metavar="HOST:PORT")
]
Address = Annotated[str, typer.Option("--address", help="how they call it, if that is another", metavar="HOST:PORT", show_default=False)]
Wait = Annotated[
    str,
    typer.Option(
        "--wait", help="how long to look for a server that is away, with nothing to do, by default 1 h", metavar="TIME", show_default=False
    ),
]
State = Annotated[
    Path, typer.Option("--folder", help="keeps who this worker is, and its nodes' memories", metavar="FOLDER", show_default=False)
]
KeepReplies = Annotated[
    bool, typer.Option("--keep-replies", help="for `fedsim replay --replies`, which needs no worker's data then: all of them, on the disk")
]
AppNodes = Annotated[int | None, typer.Option("--nodes", help="of a Flower app: how many nodes there are", metavar="N", show_default=False)]
StartWith = Annotated[
    int | None,
    typer.Option("--start-with", help="of a Flower app: nodes that it waits for, by default all", metavar="N", show_default=False),
]
AppFolder = Annotated[
    str | None, typer.Option("--app", help="work for a Flower app, which lies in FOLDER", metavar="FOLDER|MODULE:NAME", show_default=False)
]
NodeConfig = Annotated[
    list[str] | None, typer.Option("--node-config", help="of a Flower app's nodes; repeatable", metavar="KEY=VALUE", show_default=False)
]


@app.command(epilog=f"{WORDS} Instead of a scenario a Flower app's folder, with KEY=VALUE for its run config.")
def serve(
    words: Words,
    listen: Listen = None,
    certificates: Certificates = None,
    tokens: Tokens = None,
    insecure: Insecure = False,
    beyond: Beyond = False,
    nodes: AppNodes = None,
    start_with: StartWith = None,
    keep: KeepReplies = False,
    smoke: Smoke = False,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    trust: Trust = None,
) -> None:
    """Serve a scenario, or a Flower app, to real workers.

    The same command goes on with a scenario's run that was broken off.
    """
    if nodes is not None and nodes < 1:
        fail(f"--nodes {nodes}: 1 or more is due", 2)
    if Path(words[0]).is_dir():
        try:
            raise typer.Exit(_serve_app(words, listen, _server(certificates, tokens, insecure, beyond), nodes, start_with, quiet))
        except FedsimError as error:
            fail(error, 1 if isinstance(error, RunError) else 2)
    from fedsim.commands.serving import execute
    from fedsim.scenario.trust import trust_options

    group = [loaded for group in runs_of(words, smoke, sweeping=False) for loaded in group]
    if len(group) > 1:
        fail(f"{words[0]}: {len(group)} runs; `serve` serves one: choose with KEY=VALUE, or take `sweep` out with sweep=null", 2)
    [loaded] = group
    options = [word for address in listen or () for word in ("--listen", address)]
    options += [word for name, file in (("--certificates", certificates), ("--tokens", tokens)) if file for word in (name, str(file))]
    options += [name for name, wanted in (("--insecure", insecure), ("--insecure-beyond-loopback", beyond)) if wanted]
    options += [name for name, wanted in (("--keep-replies", keep), ("--smoke", smoke)) if wanted]
    options += ["--runs", str(runs)] if runs != Path("runs") else []
    command = shlex.join(["fedsim", "serve", *map(hide, words), *options, *trust_options()])
    try:
        folder = certificates or (Path(loaded.scenario.deploy.certificates) if loaded.scenario.deploy.certificates else None)
        identity = _server(folder, tokens, insecure, beyond)
        where = listen or [loaded.scenario.deploy.listen]
        for address in where:
            identity.check(address)
        code = execute(loaded, runs, where, identity, quiet, command, keep)
    except SettingError as error:
        fail(ScenarioError([loaded.problem(error)]), 2)
    except FedsimError as error:
        fail(error, 2)
    raise typer.Exit(code)


def _serve_app(
    words: list[str], listen: list[str] | None, identity: "ServerIdentity", nodes: int | None, start_with: int | None, quiet: bool
) -> int:
    """A Flower app's run; the exit code. Raises FedsimError, and RunError where it had begun."""
    from fedsim.flower.app import read, settings

    flower, config, where = read(Path(words[0])), settings(words[1:]), listen or ["127.0.0.1:7400"]
    if nodes is None:
        raise FedsimError(f"{words[0]}: a Flower app; say with --nodes how many nodes there are")
    for address in where:
        identity.check(address)
    from fedsim.flower.serve import Service, interruptible

    interruptible()
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    try:
        Service(flower, nodes, start_with or nodes, config, identity, say).run(where)
    except KeyboardInterrupt:
        return 130
    return 0


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
    flower: AppFolder = None,
    node_config: NodeConfig = None,
    folder: State = Path("worker"),
    wait: Wait = "1 h",
    meet: Meet = "",
    address: Address = "",
    quiet: Quiet = False,
) -> None:
    """Work for a server: host nodes and train what waits for them.

    Started again with the same folder, it is the same worker.
    """
    from fedsim.base.memory import give_large_blocks_back
    from fedsim.deploy.join import Machine
    from fedsim.deploy.join import join as work
    from fedsim.report.screen.standing import Standing
    from fedsim.scenario.leaves import quantity

    give_large_blocks_back()
    try:
        patience = float(quantity(wait, "time"))
    except ValueError as error:
        fail(f"--wait: {error}", 2)
    try:
        identity = worker_identity(target, certificates, certificate, token_file, insecure, beyond)
        with Standing(quiet) as standing:
            if flower is None:
                why = work(
                    Machine(target, nodes, folder, code, data, device, meet, address, patience), identity, standing.say, standing.show
                )
            else:
                from fedsim.flower import app as apps
                from fedsim.flower import join as flowers

                apps.given(flower, code)
                config = apps.settings(node_config or ())
                machine = flowers.AppMachine(target, nodes, folder, code, data, patience=patience, app=flower, node_config=config)
                why = flowers.join(machine, identity, standing.say, standing.show)
    except FedsimError as error:
        fail(error, 1 if isinstance(error, RunError) else 2)
    print(why)
