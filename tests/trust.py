"""Machines for tests of who trusts whom: certificates of all sorts, and little servers on loopback that end with their block."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
from cryptography import x509
from grpc_health.v1 import health, health_pb2_grpc

from fedsim.transport import authority
from fedsim.transport import messages_pb2 as messages
from fedsim.transport.authority import issue, parse_workers
from fedsim.transport.doctor import SESSION
from fedsim.transport.identity import ServerIdentity, WorkerIdentity
from fedsim.transport.pem import Pair
from fedsim.transport.wire import TIME

HERE = ("localhost", "127.0.0.1")


def folders(root: Path) -> Path:
    """`good` and `other` by two CAs, `tokens`; by the CA of `good`: `late`, `early` and `named`, another's server."""
    for name in ("good", "other"):
        issue(root / name, HERE, parse_workers("a=0..49,b"))
    issue(root / "tokens", HERE, parse_workers("a=0..49"), tokens=True)
    for name, earlier, days in (("late", 10, -3), ("early", -5, 30), ("named", 1, 30)):
        (root / name).mkdir()
        for file in ("ca.pem", "ca.key"):
            (root / name / file).write_bytes((root / "good" / file).read_bytes())
            (root / name / file).chmod(0o600)
        with patch.object(authority, "EARLIER", timedelta(days=earlier)):
            made = authority.Authority(root / "good", days)
            made.folder = root / name
            made.server([authority._host(host) for host in (HERE if name != "named" else ("elsewhere.lan", "10.0.0.5"))])
            made.worker(parse_workers("a=0..49")[0])
    return root


def raw(folder: Path, name: str) -> Pair:
    """A pair as it lies there, whatever is wrong with it."""
    file, key = folder / f"{name}.pem", folder / f"{name}.key"
    return Pair(file, key, file.read_bytes(), key.read_bytes())


def server_of(folder: Path) -> ServerIdentity:
    return ServerIdentity(raw(folder, "server"), (folder / "ca.pem").read_bytes())


def worker_of(folder: Path, ca: Path, name: str | None = "a") -> WorkerIdentity:
    return WorkerIdentity(ca, ca.read_bytes(), raw(folder, name) if name else None)


def times(folder: Path, name: str) -> tuple[str, str]:
    """From when to when a certificate holds, as messages write it."""
    made = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
    first, last = (f"{moment:%Y-%m-%d %H:%M} UTC" for moment in (made.not_valid_before_utc, made.not_valid_after_utc))
    return first, last


@contextmanager
def serving(
    identity: ServerIdentity,
    refuse: Callable[[Any], messages.Refusal | None] = lambda hello: None,
    *,
    service: bool = True,
    ahead: float = 0,
    known: list[Any] | None = None,
) -> Iterator[str]:
    """A gRPC server that answers a Hello as a fedsim server does; its address. `known` gets who was there."""

    def session(requests: Any, context: Any) -> Iterator[Any]:
        context.send_initial_metadata(((TIME, str(time.time() + ahead)),))
        who = identity.identify(context)
        if known is not None:
            known.append(who)
        refusal = who if isinstance(who, messages.Refusal) else refuse(next(requests).hello)
        if refusal:
            yield messages.FromServer(refusal=refusal)
        else:
            yield messages.FromServer(welcome=messages.Welcome(run="quickstart"))

    package, name = SESSION.strip("/").split("/")
    handler = grpc.stream_stream_rpc_method_handler(session, messages.FromWorker.FromString, messages.FromServer.SerializeToString)
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    if service:
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(package, {name: handler})])
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    credentials = identity.credentials()
    port = server.add_secure_port("127.0.0.1:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def listening(accepting: bool = True) -> Iterator[str]:
    """A port that takes connections and never says a word, or one that takes none."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if accepting:
            held.listen()
        yield f"localhost:{held.getsockname()[1]}"


@contextmanager
def web(wrapped: Callable[[socket.socket], socket.socket] = lambda plain: plain) -> Iterator[str]:
    """An HTTP/1 server."""

    class Quiet(BaseHTTPRequestHandler):
        timeout = 5

        def log_message(self, *words: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        server.socket = wrapped(server.socket)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
