"""The server's end: one loop in one thread, which the rest of the program speaks to by methods and hears of by events."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from fedsim.base.errors import FedsimError
from fedsim.transport.desk import Claim, Desk, Handshake
from fedsim.transport.limits import Limits
from fedsim.transport.messages_pb2 import Bye, FromServer, Order, Part, Refusal
from fedsim.transport.objects import Store
from fedsim.transport.roll import Present, present
from fedsim.transport.service import Calls, of_use
from fedsim.transport.session import Carried, Event, Session
from fedsim.transport.wire import DOCTOR, MESSAGE, OPTIONS

log = logging.getLogger(__name__)


class Anybody(NamedTuple):
    """Who comes without a name."""

    name: str = ""


def anybody(context: Any) -> Claim | Refusal:
    """Lets everybody in."""
    return Anybody()


def nothing() -> bytes:
    """Nothing is to be seen."""
    return b"{}"


def unknown(job: int) -> str | None:
    """Nothing is remembered of jobs that are not out."""
    return None


class Hub:
    """Orders to workers, replies from them. Every method may be called from any thread.

    `events` has what happened: Joined, Left, Away, Back, Came. `verdict(job)` says of jobs that the hub does not know as out whether
    they were kept, are gone, or open: still waited for (a server that was restarted knows); None: gone.
    """

    def __init__(
        self,
        store: Store,
        handshake: Handshake,
        *,
        listen: Sequence[str],
        credentials: Any = None,
        identify: Callable[[Any], Claim | Refusal] = anybody,
        verdict: Callable[[int], str | None] = unknown,
        silence: float = 60.0,
        limits: Limits | None = None,
        seen: Callable[[], bytes] = nothing,
    ) -> None:
        """`seen`: what those hear who watch."""
        self.listen, self.credentials, self.limits, self.seen = listen, credentials, limits or Limits(), seen
        self.desk = Desk(store, handshake, identify, verdict, silence, self.limits)
        self.events: SimpleQueue[Event] = self.desk.events
        self.remembers = True  # workers live from job to job
        self._thread = threading.Thread(target=self._run, name="fedsim hub", daemon=True)
        self._bound: Future[list[str]] = Future()
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event

    def start(self) -> list[str]:
        """The addresses it listens at. Raises FedsimError for one that can't be had."""
        for address in self.listen:
            check(address)
        self._thread.start()
        return self._bound.result()

    def stop(self, reason: str, drained: bool, grace: float = 5.0, failed: bool = False) -> None:
        """Says goodbye to all and ends: for good where `drained`, without a result where `failed`, else workers try again until a server
        is back."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._goodbye(Bye(reason=reason, drained=drained, failed=failed), grace), self._loop)
            self._thread.join()

    def lives(self, worker: bytes) -> bool:
        """Is a worker there, or away for less than the silence?"""
        return worker in self.desk.sessions

    def order(self, worker: bytes, order: Order) -> None:
        """Has a worker do jobs; the order is kept until all of them are settled or cancelled, or the worker left.

        As long its objects stay in the store, too. Raises FedsimError where it is too large for a message or an object is not there.
        """
        if order.ByteSize() > MESSAGE - 64:
            raise FedsimError(
                f"an order of {order.ByteSize()} bytes, where a message has at most {MESSAGE}: what is large must be an object"
            )
        for number, part in enumerate(order.parts):
            if not self.desk.store.pin(part.object.hash):
                self._done_with(order.parts[:number])
                raise FedsimError(f"an order needs the object {part.object.hash.hex()[:12]} ({part.name}), which is not in the store")
        self._of(worker, lambda session: session.order(order), lambda: self._done_with(order.parts))

    def settle(self, worker: bytes, kept: Sequence[int], gone: Sequence[int]) -> None:
        """Says what became of replies; also of those whose worker has left, for their objects stay until then."""
        self._of(worker, lambda session: session.settle(kept, gone), lambda: self.desk.came[worker].settle([*kept, *gone]))

    def cancel(self, worker: bytes, jobs: Sequence[int]) -> None:
        """Nobody waits for these jobs any more."""
        self._of(worker, lambda session: session.cancel(jobs), lambda: self.desk.came[worker].settle(jobs))

    @property
    def carried(self) -> dict[bytes, Carried]:
        """What went over the wire, by worker."""
        return self.desk.carried

    @property
    def full(self) -> bool:
        """Whether replies wait at their workers because there is no room for them here."""
        return self.desk.full

    @property
    def roll(self) -> list[Present]:
        """Who works here, and who is lost."""
        working = [session for session in list(self.desk.sessions.values()) if session.hello.role != DOCTOR]
        return [*map(present, working), *list(self.desk.lost.values())]

    def clock(self, worker: bytes) -> tuple[float, float] | None:
        """Round trip, and how far the worker's monotonic clock is ahead of ours, in seconds; None where not known."""
        session = self.desk.sessions.get(worker)
        trip, ahead = (session.pulse.round_trip, session.pulse.ahead) if session else (None, None)
        return None if trip is None or ahead is None else (trip, ahead)

    def _done_with(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.desk.store.unpin(part.object.hash)

    def _of(self, worker: bytes, act: Callable[[Session], None], else_: Callable[[], None] = lambda: None) -> None:
        """Does it in the loop with the worker's session, if it has not left."""

        def there() -> None:
            session = self.desk.sessions.get(worker)
            act(session) if session else else_()

        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(there)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if self._bound.done():
                raise
            self._bound.set_exception(error)

    async def _serve(self) -> None:
        limits = self.limits
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        logging.getLogger("grpc._cython.cygrpc").addFilter(of_use)
        server = self._server = grpc.aio.server(
            options=(
                *OPTIONS,
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", limits.streams),
                ("grpc.server_handshake_timeout_ms", int(limits.handshake * 1000)),
                ("grpc.max_connection_idle_ms", int(limits.idle * 1000)),
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.http2.max_ping_strikes", 0),
            )
        )
        server.add_generic_rpc_handlers((Calls(self.desk, self.seen).handler,))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        bound = [self._bind(server, address) for address in self.listen]
        await server.start()
        watch = asyncio.create_task(self.desk.watch())
        self._bound.set_result(bound)
        try:
            await self._ended.wait()
        finally:
            watch.cancel()

    def _bind(self, server: Any, address: str) -> str:
        try:
            port = server.add_secure_port(address, self.credentials) if self.credentials else server.add_insecure_port(address)
        except RuntimeError as error:
            raise FedsimError(f"{address}: can't be listened at") from error
        return f"{address.rpartition(':')[0]}:{port}"

    async def _goodbye(self, bye: Bye, grace: float) -> None:
        self.desk.over = bye
        await self._health.enter_graceful_shutdown()
        for session in self.desk.sessions.values():
            if session.line:
                session.line.end(FromServer(bye=bye))
        await self._server.stop(grace)
        self._ended.set()


def check(address: str) -> None:
    """Raises FedsimError for an address that can't be bound, and says why."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise FedsimError(f"{address}: no HOST:PORT")
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
    except OSError as error:
        raise FedsimError(f"{address}: can't be listened at: {error.strerror or error}; choose another address or port") from error
