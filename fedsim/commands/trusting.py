"""Commands by which machines come to trust each other: certs, doctor; and the options that name certificates and tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsim.base.errors import FedsimError
from fedsim.commands.words import Runs, app, fail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedsim.transport.identity import WorkerIdentity
    from fedsim.transport.probe import Finding

CERTS = Path("certs")
Target = Annotated[str, typer.Argument(metavar="HOST:PORT", hidden=True)]
Certificates = Annotated[
    Path | None,
    typer.Option("--certificates", help="with ca.pem and this machine's files, by default certs/", metavar="FOLDER", show_default=False),
]
Certificate = Annotated[
    Path | None, typer.Option("--certificate", help="this machine's; its key and ca.pem beside it", metavar="FILE", show_default=False)
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="this machine's token; ca.pem beside it", metavar="FILE", show_default=False)
]
Insecure = Annotated[bool, typer.Option("--insecure", help="plaintext, on this machine only")]
Beyond = Annotated[bool, typer.Option("--insecure-beyond-loopback", help="with --insecure: to other machines, too")]


def worker_identity(
    target: str, folder: Path | None, certificate: Path | None, token_file: Path | None, insecure: bool, beyond: bool
) -> "WorkerIdentity":
    """Of a command's options, fit for this target. Raises FedsimError."""
    from fedsim.transport.identity import WorkerIdentity

    if beyond and not insecure:
        raise FedsimError("--insecure-beyond-loopback goes with --insecure")
    if folder is None and not insecure and certificate is None and token_file is None:
        folder = CERTS
    if folder and (insecure or certificate):
        raise FedsimError(f"--certificates {folder} goes without {'--insecure' if insecure else '--certificate'}")
    identity = (
        WorkerIdentity.folder(folder, token_file)
        if folder
        else WorkerIdentity.load(None, certificate, None, token_file, insecure, exposed=beyond)
    )
    identity.check(target)
    return identity


@app.command(epilog="WORKERS: a=0..49,b=50..99, or a,b for any nodes. Files that exist are kept; later calls add workers.")
def certs(
    server: Annotated[
        list[str] | None, typer.Option("--server", help="a name or address of the server; repeatable", metavar="NAME", show_default=False)
    ] = None,
    workers: Annotated[str, typer.Option("--workers", help="machines and their nodes", metavar="WORKERS", show_default=False)] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="by default certs/", metavar="FOLDER", show_default=False)] = CERTS,
    days: Annotated[
        int, typer.Option("--days", min=1, max=36500, help="that certificates hold, by default 365", metavar="DAYS", show_default=False)
    ] = 365,
    tokens: Annotated[bool, typer.Option("--tokens", help="workers get tokens instead of certificates")] = False,
) -> None:
    """Make a small CA and each machine's certificate or token."""
    from fedsim.transport.authority import issue, parse_workers

    try:
        wanted = parse_workers(workers) if workers else []
    except ValueError as error:
        fail(f"--workers {workers}: {error}", 2)
    try:
        made = issue(output, server or [], wanted, days, tokens)
    except FedsimError as error:
        fail(error, 2)
    print(f"{output}: " + (f"made {', '.join(file.name for file in made)}" if made else "nothing to make, all is there"))
    if server:
        print(f"  copy to the server  ca.pem server.pem server.key{' tokens' if tokens else ''}")
    for worker in wanted:
        files = f"{worker.name}.token" if tokens else f"{worker.name}.pem {worker.name}.key"
        print(f"  copy to {worker.name:11} ca.pem {files}  (nodes {worker.written})")
    print("  keep here           ca.key: who has it can make workers")


@app.command(epilog="HOST:PORT: where a server should be, such as server.lan:7400. Without: versions, disk, data, MLflow, memory, devices.")
def doctor(
    target: Annotated[str, typer.Argument(metavar="[HOST:PORT]", hidden=True)] = "",
    runs: Runs = Path("runs"),
    certificates: Certificates = None,
    certificate: Certificate = None,
    token_file: TokenFile = None,
    insecure: Insecure = False,
    beyond: Beyond = False,
) -> None:
    """Say what this machine lacks, or which layer to a server fails."""
    from fedsim.base.visible import visible

    good = True
    try:
        if not target and (certificates or certificate or token_file or insecure or beyond):
            raise FedsimError("certificates, tokens and --insecure go with HOST:PORT")
        identity = worker_identity(target, certificates, certificate, token_file, insecure, beyond) if target else None
        for finding in _findings(target, identity, runs):
            print(visible(f"{'ok' if finding.good else 'failed':8}{finding.layer:12}{finding.said}"), flush=True)
            if finding.cure:
                print(visible(f"{'':20}{finding.cure}"))
            good = good and finding.good
    except FedsimError as error:
        fail(error, 2)
    raise typer.Exit(0 if good else 1)


def _findings(target: str, identity: "WorkerIdentity | None", runs: Path) -> "Iterator[Finding]":
    if identity is None:
        from fedsim.report.machine import examine as machine

        return machine(runs)
    from fedsim.transport.doctor import examine

    return examine(target, identity)
