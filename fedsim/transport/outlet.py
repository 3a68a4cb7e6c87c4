"""A worker's end: one stream that it opens again whenever it breaks, orders with their objects in, replies with theirs out."""

import asyncio
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from pathlib import Path
from socket import gethostname
from time import monotonic
from typing import Any

from fedsim import __version__
from fedsim.base.errors import FedsimError, RunError
from fedsim.base.text import duration
from fedsim.transport.connection import Connection, Keep, Waiting
from fedsim.transport.handler import Handler, Lost, Over, Refused, aside, called
from fedsim.transport.messages_pb2 import FULL, RUN_FAILED, RUN_OVER, Bye, Hello, Reply
from fedsim.transport.objects import Store
from fedsim.transport.wire import PROTOCOL

RETRY, LONGEST = 0.1, 3.0  # seconds between tries: at first, and at most, so that a server that is back has its workers soon


class Outlet(Keep):
    """One worker at one server. Used in one asyncio loop."""

    def __init__(
        self,
        target: str,
        store: Store,
        *,
        role: str,
        nodes: str,
        worker_id: bytes,
        credentials: Any = None,
        metadata: Iterable[tuple[str, str]] = (),
        silence: float = 60.0,
        explain: Callable[[], str | None] = lambda: None,
        options: Iterable[tuple[str, Any]] = (),
        patience: float = inf,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`explain` may find out, in a thread, why no connection came about: grpc does not say. What it raises ends a worker that was
        never welcome. `patience`: seconds without a connection after which it ends, unless it is `busy`."""
        hello = Hello(protocol=PROTOCOL, version=__version__, worker=worker_id, nodes=nodes, role=role, host=gethostname()[:64])
        super().__init__(target, store, hello, credentials, metadata, silence, options)
        self._now: Connection | None = None
        self._leaving = asyncio.Event()
        self._explain, self._patience, self._busy = explain, patience, busy

    async def run(self, handler: Handler) -> str:
        """Serves until the run is over or this worker was drained; why. Raises Refused where the server does not want it, RunError where
        the run has failed or no server is found for too long."""
        self.handler = handler
        pause, since = RETRY, monotonic()
        try:
            while self.draining is None:
                self._now = connection = Connection(self)
                why = await self._connected(connection)
                self._now = None
                pause = RETRY if connection.admitted else min(2 * pause, LONGEST)
                since = monotonic() if connection.admitted or self._busy() else since
                if monotonic() - since > self._patience:
                    waited = f"no connection for {duration(self._patience)}, the last time because {why}"
                    raise RunError(f"{self.target}: {waited}; nothing is lost: start it again when there is a server")
                wait = pause * random.uniform(0.5, 1.0)
                await called(handler.state, f"no connection to {self.target}: {why}; next try in {wait:.1f} s")
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._leaving.wait()
        except Over as over:
            if over.failed:
                raise RunError(str(over)) from over
            return str(over)
        finally:
            self._now = None
            for waiting in self.replies.values():
                waiting.done()
        return self.draining

    async def _connected(self, connection: "Connection") -> str:
        """Serves as long as a connection holds; why it ended. Raises Refused where the next would, too."""
        try:
            await connection.run()
        except Lost as lost:
            try:
                return (not connection.admitted and await aside(self._explain)) or str(lost)
            except FedsimError as error:
                if not self.hello.run:
                    raise
                return str(error)
        except Refused as no:
            if no.refusal.reason in (RUN_OVER, RUN_FAILED):
                raise Over(no.refusal.cause, no.refusal.reason == RUN_FAILED) from no
            if no.refusal.reason != FULL:
                raise
            return no.refusal.cause
        raise AssertionError

    @property
    def connected(self) -> bool:
        """Is it admitted, on a connection that holds?"""
        return self._now is not None and self._now.admitted

    @property
    def clock(self) -> tuple[float, float] | None:
        """Round trip, and how far the server's wall clock is ahead of ours, in seconds; None where not known."""
        trip, ahead = (self._now.pulse.round_trip, self._now.pulse.wall_ahead) if self._now else (None, None)
        return None if trip is None or ahead is None else (trip, ahead)

    async def reply(self, reply: Reply, file: Path | None = None) -> None:
        """Hands a reply over: its file whole, then the reply itself. Until it is settled `pending` must have it, too."""
        waiting = self.replies.setdefault(tuple(reply.jobs), Waiting(reply, file))
        self.known.update(reply.jobs)
        if self._now:
            self._now.deliver(waiting)
        await waiting.announced

    async def drain(self, reason: str) -> None:
        """Hands over what is ready, says goodbye and lets `run` return."""
        self.draining = reason
        self._leaving.set()
        while self._now and self._now.admitted and (open_ := [w.announced for w in self.replies.values() if not w.announced.done()]):
            await asyncio.wait([*open_, self._now.ended], return_when=asyncio.FIRST_COMPLETED)
        if self._now:
            self._now.leave(Bye(reason=reason, drained=True))
