"""MLflow's own pages on the store of runs: its server as a process, on this machine only, and the addresses that open on runs."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile
from time import monotonic, sleep
from typing import IO

from fedsim.base.address import hide
from fedsim.base.crashes import ending
from fedsim.base.errors import FedsimError
from fedsim.report.mlflow.places import database_of
from fedsim.report.mlflow.store import QUIET, cure

HOST, FIRST, TRIED = "127.0.0.1", 5000, 20
PATIENCE = 120.0  # seconds that the server may take to come up


def pages(address: str, uri: str) -> list[str]:
    """`NAME  ADDRESS` of each experiment with runs, the latest first: the table of its runs (its plain address opens on an overview)."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    found = client.search_experiments(order_by=["last_update_time DESC"])
    with_runs = [one for one in found if client.search_runs([one.experiment_id], max_results=1)]
    return [f"{one.name}  {address}/#/experiments/{one.experiment_id}/runs" for one in with_runs]


@contextmanager
def served(uri: str, port: int | None) -> Iterator[tuple[str, "subprocess.Popen[bytes] | None"]]:
    """The address of the pages while MLflow's server runs; of a tracking server, its own, and no process.

    By default the first free port from 5000 on. Raises FedsimError where there is no store, or the server does not come up.
    """
    if uri.startswith(("http://", "https://")):
        yield hide(uri).rstrip("/"), None
        return
    database = database_of(uri)
    if database is not None and not database.exists():
        raise FedsimError(f"no MLflow store at {database}: no run was tracked there yet; fedsim track RUN uploads one")
    if port is not None and not 0 < port < 1 << 16:
        raise FedsimError(f"--port {port}: 1 to 65535 is due")
    port = _free(range(FIRST, FIRST + TRIED) if port is None else range(port, port + 1))
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", HOST]
    command += ["--port", str(port), "--workers", "1"]
    with _interrupted(), TemporaryFile() as errors:  # a pipe that nobody reads would be full one day
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=os.environ | QUIET, start_new_session=True)
        try:
            _wait(process, f"http://{HOST}:{port}/health", errors, uri)
            yield f"http://{HOST}:{port}", process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


@contextmanager
def _interrupted() -> Iterator[None]:
    """SIGTERM, a closed terminal, and SIGINT where a shell in the background has it ignored, are as Ctrl-C: no server is left behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _free(ports: range) -> int:
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((HOST, port))
            except OSError:
                continue
            return port
    some = f"port {ports[0]} is" if len(ports) == 1 else f"ports {ports[0]} to {ports[-1]} are"
    raise FedsimError(f"{some} in use on {HOST}; name another one: fedsim ui --port")


def _wait(process: "subprocess.Popen[bytes]", health: str, errors: IO[bytes], uri: str) -> None:
    until = monotonic() + PATIENCE
    while monotonic() < until:
        if process.poll() is not None:
            errors.seek(0)
            text = errors.read().decode(errors="replace").strip()
            if known := cure(text, uri):
                raise FedsimError(f"MLflow at {hide(uri)}: {known}")
            raise FedsimError(f"MLflow's server {ending(process.returncode)}{f': {text.splitlines()[-1]}' if text else ''}")
        try:
            with urllib.request.urlopen(health, timeout=2):
                return
        except OSError:
            sleep(0.1)
    raise FedsimError(f"MLflow's server did not come up within {PATIENCE:g} s")
