"""The server's side of every call: what a worker says, and objects in both directions."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc

from fedsim.base.errors import BrokenMessage, HostError
from fedsim.base.visible import one_line
from fedsim.transport.desk import Desk, Refused, place
from fedsim.transport.limits import Rate
from fedsim.transport.messages_pb2 import BROKEN, Committed, FromServer, FromWorker, Hello, Piece, Refusal, Seen, Wanted
from fedsim.transport.objects import NoRoom
from fedsim.transport.pieces import Cut, opened, parsed
from fedsim.transport.pulse import Line
from fedsim.transport.sending import Flow, receive
from fedsim.transport.session import Away, Session
from fedsim.transport.wire import SERVICE, SESSION, TIME, beat_every, beside, heard

log = logging.getLogger(__name__)
Before = tuple[list[int], asyncio.Task[None]] | None
LONGEST = 200  # signs of a worker's reason to leave
FAREWELL = 1.0  # seconds for the last words of a stream


def of_use(record: logging.LogRecord) -> bool:
    """For gRPC's own log: that a caller hung up, just as it was answered or before it was heard, is no error here, and no traceback."""
    error = record.exc_info[1] if record.exc_info else None
    return "ExecuteBatchError" not in record.getMessage() and not isinstance(error, asyncio.CancelledError)


class Calls:
    """Everything here runs in the hub's loop."""

    def __init__(self, desk: Desk, seen: Callable[[], bytes]) -> None:
        self.desk, self.seen = desk, seen

    @property
    def handler(self) -> Any:
        """For gRPC: the calls by the names they have on the wire. Pieces stay the bytes that they are there, see `pieces`."""
        many = grpc.stream_stream_rpc_method_handler
        calls = {
            "Session": many(self.session, FromWorker.FromString, FromServer.SerializeToString),
            "Download": many(self.download, Wanted.FromString),
            "Upload": many(self.upload, None, Committed.SerializeToString),
            "Watch": grpc.unary_unary_rpc_method_handler(self.watch, Hello.FromString, Seen.SerializeToString),
        }
        return grpc.method_handlers_generic_handler(SERVICE, calls)

    async def session(self, _: object, context: Any) -> None:
        """One stream of a worker, to its end."""
        address = place(context)
        host = address.rpartition(":")[0]
        self.desk.streams[host] += 1
        try:
            await context.send_initial_metadata(((TIME, f"{time.time():.3f}"),))
            session, line = await self.desk.greet(context)
            await self._converse(session, line, context)
        except BrokenMessage as error:
            log.warning("%s: %s; its stream is ended", address, error)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as no:
            log.info("%s: refused: %s", f"{no.who} ({address})" if no.who else address, no)
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

        writer = beside(line.run(write, lambda: beat_every(self.desk.silence)))
        reader = beside(self._listen(session, line, context))
        ending = beside(line.ending.wait())
        last = None
        try:
            await asyncio.wait((reader, writer, ending), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
        except BrokenMessage as error:
            log.warning("%s (%s): %s; its stream is ended", session.name, session.address, error)
            last = Refusal(reason=BROKEN, cause=str(error), cure="use the same version of fedsim at both ends")
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            pass
        finally:
            self._broke(session, line)
            reader.cancel()
            line.end(FromServer(refusal=last) if last else None)
            await asyncio.wait((writer, ending), timeout=FAREWELL, return_when=asyncio.ALL_COMPLETED)
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    def _broke(self, session: Session, line: Line[FromServer]) -> None:
        """A stream ended; unless a newer one took its place the worker is away."""
        if session.line is line:
            session.line, session.ready, session.since = None, False, time.time()
            if session.joined and self.desk.sessions.get(session.worker) is session:
                self.desk.events.put(Away(session.worker))

    async def _listen(self, session: Session, line: Line[FromServer], context: Any) -> None:
        """What the worker says, until it says no more."""
        desk, rate = self.desk, Rate(self.desk.limits.messages, self.desk.limits.burst)
        admission: asyncio.Task[None] | None = None  # beside, for beats go on
        while (message := await heard(context, FromWorker)) and session.line is line:
            session.pulse.move()
            session.carried.came(message.ByteSize())
            if (wait := rate.wait()) > 0:
                await asyncio.sleep(wait)
            match message.WhichOneof("what"):
                case "beat":
                    session.heard(message.beat)
                case "reply" if session.ready:
                    if came := session.replied(message.reply):
                        desk.events.put(came)
                case "ready" if not admission:
                    admission = beside(self._admit(session, line, message.ready.facts))
                case "bye":
                    return desk.leave(session, one_line(message.bye.reason)[:LONGEST])
                case other:
                    raise BrokenMessage(f"{other or 'an unknown message'}, which makes no sense here")

    async def _admit(self, session: Session, line: Line[FromServer], facts: bytes) -> None:
        try:
            await self.desk.admit(session, line, facts)
        except Refused as no:
            log.info("%s (%s): refused: %s", session.name, session.address, no)
            line.end(FromServer(refusal=no.refusal))
        except Exception:
            log.exception("%s (%s): the handshake failed", session.name, session.address)
            line.end()

    async def watch(self, hello: Hello, context: Any) -> Seen:
        """How the run stands, for who might be welcomed."""
        try:
            self.desk.ask(hello, context)
        except Refused as no:
            log.info("%s: may not watch: %s", place(context), no)
            return Seen(refusal=no.refusal)
        return Seen(state=self.seen())

    async def _known(self, context: Any) -> Session:
        """The session that a call says it belongs to."""
        session = self.desk.keys.get(dict(context.invocation_metadata()).get(SESSION, ""))
        if session is None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no session that lives")
            raise AssertionError
        return session

    async def download(self, _: object, context: Any) -> None:
        """An object of an order that is out, from an offset on."""
        session, store = await self._known(context), self.desk.store
        wanted = await heard(context, Wanted) or Wanted()
        if not session.serves(wanted.hash) or not store.has(wanted.hash):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no order needs this object any more")

        async def write(piece: Cut) -> None:
            await context.write(piece.message)
            session.carried.sent(len(piece.message), len(piece.data))

        async def answers() -> int:
            if not (answer := await heard(context, Wanted)):
                raise BrokenMessage("a download that ends too early")
            session.pulse.move()
            session.carried.came(answer.ByteSize())
            return answer.offset

        session.carried.came(wanted.ByteSize())
        file = store.path(wanted.hash)
        try:
            await Flow(file, file.stat().st_size, wanted.offset, write).run(answers)
        except BrokenMessage as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (OSError, HostError):  # dropped meanwhile
            await context.abort(grpc.StatusCode.NOT_FOUND, "no order needs this object any more")
        except (grpc.aio.UsageError, grpc.aio.InternalError):
            pass  # the worker hung up while a piece was written

    async def upload(self, _: object, context: Any) -> None:
        """An object of a reply that is waited for, from where it broke off before; one call at a time."""
        session = await self._known(context)
        try:
            first = parsed(await heard(context, bytes) or b"")
        except BrokenMessage:
            first = Piece()
        if len(first.object.hash) != 32:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first piece names no object")
        name, jobs = first.object.hash, list(first.jobs)
        task = beside(self._upload(session, first, context, session.calls.get(name)))
        session.calls[name] = jobs, task
        try:
            await task
        except BrokenMessage as error:
            log.warning("%s (%s): %s; the transfer is ended", session.name, session.address, error)
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except NoRoom as error:
            if not self.desk.full:
                log.warning("%s; replies wait at their workers until there is room", error)
            self.desk.full = True
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the server: {error}")
        except HostError as error:
            log.warning("%s (%s): %s; the transfer waits", session.name, session.address, error)
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the server: {error}")
        finally:
            task.cancel()
            if session.calls.get(name) == (jobs, task):
                del session.calls[name]
                if not any(map(session.open, jobs)):
                    self.desk.store.forget(session.owner, name)

    async def _upload(self, session: Session, first: Piece, context: Any, before: Before) -> None:
        if before:
            if before[0] == first.jobs:  # for the same reply: the worker has given up that call
                before[1].cancel()
            await asyncio.wait(before[1:])

        async def read() -> Cut | None:
            if not (message := await heard(context, bytes)):
                return None
            session.pulse.move()
            piece = opened(message)
            session.carried.came(len(message), len(piece.data))
            return piece

        async def commit(offset: int) -> None:
            answer = Committed(offset=offset)
            await context.write(answer)
            session.carried.sent(answer.ByteSize())

        def whole() -> None:
            session.hold(first.jobs, wanted.hash)
            if self.desk.full:
                log.warning("%s: there is room again", self.desk.store.folder)
                self.desk.full = False

        session.carried.came(first.ByteSize())
        wanted, jobs = first.object, [job for job in first.jobs if session.open(job)]
        most = sum(map(self.desk.limits.expected, jobs))
        if not jobs:
            await commit(wanted.size)
        elif wanted.size > most:
            cause = f"a reply of {wanted.size} bytes where at most {most} are expected"
            log.warning("%s (%s): %s", session.name, session.address, cause)
            await context.write(Committed(refusal=Refusal(reason=BROKEN, cause=cause, cure="use the server's scenario at both ends")))
        elif self.desk.store.pin(wanted.hash):
            whole()
            await commit(wanted.size)
        else:
            await receive(self.desk.store, wanted, session.owner, read, commit, whole)
