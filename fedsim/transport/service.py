"""The server's side of every call: what a worker says, and objects in both directions."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any

import grpc

from fedsim.base.errors import BrokenMessage, HostError
from fedsim.transport.desk import Desk, Refused, refused
from fedsim.transport.limits import Rate
from fedsim.transport.messages_pb2 import BROKEN, Committed, FromServer, FromWorker, Piece, Refusal, Wanted
from fedsim.transport.messages_pb2_grpc import FedsimServicer
from fedsim.transport.objects import NoRoom
from fedsim.transport.pulse import Line
from fedsim.transport.sending import receive, send
from fedsim.transport.session import Away, Session
from fedsim.transport.wire import SESSION, TIME, beat_every

log = logging.getLogger(__name__)


class Service(FedsimServicer):  # type: ignore[misc]
    """The calls by the names they have on the wire."""

    def __init__(self, desk: Desk) -> None:
        calls = Calls(desk)
        self.Session, self.Download, self.Upload = calls.session, calls.download, calls.upload


class Calls:
    """Everything here runs in the hub's loop."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def session(self, _: object, context: Any) -> None:
        """One stream of a worker, to its end."""
        host = context.peer().rpartition(":")[0]
        self.desk.streams[host] += 1
        try:
            await context.send_initial_metadata(((TIME, f"{time.time():.3f}"),))
            session, line = await self.desk.greet(context)
            await self._converse(session, line, context)
        except Refused as no:
            log.info("%s: refused: %s", context.peer(), no)
            with suppress(grpc.aio.UsageError, grpc.aio.InternalError):
                await context.write(FromServer(refusal=no.refusal))
        finally:
            self.desk.streams[host] -= 1
            if not self.desk.streams[host]:
                del self.desk.streams[host]

    async def _converse(self, session: Session, line: Line[FromServer], context: Any) -> None:
        """Reads and writes until either end is done."""

        async def write(message: FromServer) -> None:
            await context.write(message)
            session.carried.sent(message.ByteSize())

        writer = asyncio.create_task(line.run(write, lambda: beat_every(self.desk.silence)))
        reader = asyncio.create_task(self._listen(session, line, context))
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        except BrokenMessage as error:
            log.warning("%s (%s): %s; its stream is ended", session.name, session.address, error)
            raise refused(BROKEN, str(error), "use the same version of fedsim at both ends") from error
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            pass
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            self._broke(session, line)

    def _broke(self, session: Session, line: Line[FromServer]) -> None:
        """A stream ended; unless a newer one took its place the worker is away."""
        if session.line is line:
            session.line, session.ready = None, False
            if session.joined and self.desk.sessions.get(session.worker) is session:
                self.desk.events.put(Away(session.worker))

    async def _listen(self, session: Session, line: Line[FromServer], context: Any) -> None:
        """What the worker says, until it says no more."""
        desk, rate = self.desk, Rate(self.desk.limits.messages, self.desk.limits.burst)
        while isinstance(message := await context.read(), FromWorker) and session.line is line:
            session.pulse.move()
            session.carried.came(message.ByteSize())
            if (wait := rate.wait()) > 0:
                await asyncio.sleep(wait)
            match message.WhichOneof("what"):
                case "beat":
                    session.heard(message.beat)
                case "reply" if session.ready:
                    if came := session.replied(message.reply, desk.store):
                        desk.events.put(came)
                case "ready" if not session.ready:
                    await desk.admit(session, line, message.ready.facts)
                case "bye":
                    return desk.leave(session, message.bye.reason)
                case other:
                    raise BrokenMessage(f"{other or 'an unknown message'}, which makes no sense here")

    async def _known(self, context: Any) -> Session:
        """The session that a call says it belongs to."""
        session = self.desk.keys.get(dict(context.invocation_metadata()).get(SESSION, ""))
        if session is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no session that lives")
            raise AssertionError
        return session

    async def download(self, wanted: Wanted, context: Any) -> None:
        """An object of an order that is out, from an offset on."""
        session = await self._known(context)
        store = self.desk.store
        if not session.serves(wanted.hash) or not store.has(wanted.hash):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no order needs this object any more")

        async def write(piece: Piece) -> None:
            await context.write(piece)
            session.pulse.move()
            session.carried.sent(piece.ByteSize(), len(piece.data))

        session.carried.came(wanted.ByteSize())
        await send(store.path(wanted.hash), wanted.offset, write)

    async def upload(self, _: object, context: Any) -> None:
        """An object of a reply that is waited for, from where it broke off before; of two calls for it the later goes on."""
        session = await self._known(context)
        first = await context.read()
        if not isinstance(first, Piece) or len(first.object.hash) != 32:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first piece names no object")
        name = first.object.hash
        before = session.calls.get(name)
        session.calls[name] = task = asyncio.create_task(self._upload(session, first, context, before))
        try:
            await task
        except BrokenMessage as error:
            log.warning("%s (%s): %s; the transfer is ended", session.name, session.address, error)
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except HostError as error:
            log.warning("%s (%s): %s; the transfer waits", session.name, session.address, error)
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(error, NoRoom) else grpc.StatusCode.UNAVAILABLE
            await context.abort(code, f"the server: {error}")
        finally:
            task.cancel()
            if session.calls.get(name) is task:
                del session.calls[name]

    async def _upload(self, session: Session, first: Piece, context: Any, before: "asyncio.Task[None] | None") -> None:
        if before:
            before.cancel()
            await asyncio.wait([before])

        async def read() -> Piece | None:
            piece = await context.read()
            if not isinstance(piece, Piece):
                return None
            session.pulse.move()
            session.carried.came(piece.ByteSize(), len(piece.data))
            return piece

        async def commit(offset: int) -> None:
            answer = Committed(offset=offset)
            await context.write(answer)
            session.carried.sent(answer.ByteSize())

        session.carried.came(first.ByteSize())
        wanted, jobs = first.object, [job for job in first.jobs if session.open(job)]
        most = sum(map(self.desk.limits.expected, jobs))
        if self.desk.store.has(wanted.hash) or not jobs:
            await commit(wanted.size)
        elif wanted.size > most:
            cause = f"a reply of {wanted.size} bytes where at most {most} are expected"
            log.warning("%s (%s): %s", session.name, session.address, cause)
            await context.write(Committed(refusal=Refusal(reason=BROKEN, cause=cause, cure="use the server's scenario at both ends")))
        else:
            await receive(self.desk.store, wanted, session.owner, read, commit)
