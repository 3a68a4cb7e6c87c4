"""A worker's transfers: several at once, on a connection of their own, each going on from where it was cut."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import grpc

from fedsim.base.errors import BrokenMessage, FedsimError
from fedsim.transport.messages_pb2 import Committed, Object, Piece, Wanted
from fedsim.transport.objects import NoRoom, Store
from fedsim.transport.pieces import DOWNLOAD, UPLOAD, Cut, opened
from fedsim.transport.pulse import Pulse
from fedsim.transport.sending import Flow, receive
from fedsim.transport.wire import PIECE, beside

LARGE, SMALL = 4, 32  # transfers at a time, of more than a piece and of less
DAMAGED = 3  # times that a whole object may turn out to be another


class Broke(Exception):
    """A call ended before its object was there; another goes on."""


class Gone(Exception):
    """Nobody waits for the object any more."""


class Bulk:
    """Objects to and from one server in one session. A transfer fails when nothing of any moved for the time of silence."""

    def __init__(
        self,
        channel: Callable[[], Any],
        store: Store,
        metadata: Sequence[tuple[str, str]],
        silence: float,
        pulse: Pulse,
        state: Callable[[str], Awaitable[Any]],
    ) -> None:
        self.open, self.store, self.metadata, self.silence = channel, store, metadata, silence
        self.pulse, self.state = pulse, state
        self.lanes = asyncio.Semaphore(SMALL), asyncio.Semaphore(LARGE)
        self.fetching: dict[bytes, asyncio.Task[bool]] = {}
        self.asked: Counter[bytes] = Counter()  # how many wait for each of these
        self.arrived: set[bytes] = set()  # of these, those that are here, pinned
        self.moved = monotonic()
        self.active = 0
        self.channel = self.open()

    async def run(self) -> None:
        """Watches over the connection until cancelled."""
        try:
            while True:
                await asyncio.sleep(self.silence / 20)
                if not self.active:
                    self.moved = monotonic()
                elif monotonic() - self.moved > self.silence:
                    await self._anew()
        finally:
            await self.channel.close()

    def _progress(self) -> None:
        self.moved = monotonic()
        self.pulse.move()

    async def _anew(self) -> None:
        old, self.channel, self.moved = self.channel, self.open(), monotonic()
        await old.close()

    async def fetch(self, wanted: Object) -> bool:
        """Pins the object when it is here; False where the server has it no more. Those who want the same one share a transfer."""
        name = wanted.hash
        if self.store.pin(name):
            return True
        if name not in self.fetching:
            self.fetching[name] = beside(self._repeat(wanted, self._download, wanted))
        self.asked[name] += 1
        try:
            return await asyncio.shield(self.fetching[name]) and self.store.pin(name)
        finally:
            self.asked[name] -= 1
            if not self.asked[name]:
                self.fetching.pop(name).cancel()
                if name in self.arrived:
                    self.arrived.remove(name)
                    self.store.unpin(name)

    async def upload(self, wanted: Object, file: Path, jobs: Iterable[int]) -> None:
        """Returns when the server has the whole object, or does not want it."""
        await self._repeat(wanted, self._upload, wanted, file, list(jobs))

    async def _repeat(self, wanted: Object, transfer: Callable[..., Awaitable[bool]], *arguments: Any) -> bool:
        """Transfers until it is done, each time from where it broke off; False where nobody waits for it any more."""
        damaged, pause = 0, 0.1
        async with self.lanes[wanted.size > PIECE]:
            self.active += 1
            try:
                while True:
                    begin, channel = monotonic(), self.channel
                    try:
                        return await transfer(*arguments)
                    except Gone:
                        return False
                    except BrokenMessage:
                        damaged += 1
                        if damaged == DAMAGED:
                            raise
                    except NoRoom as error:
                        await self.state(f"{error}; goes on when there is room")
                        self.moved = monotonic()
                    except Broke:
                        pass
                    except asyncio.CancelledError:  # of a call whose channel was closed, or of this task
                        if channel is self.channel:
                            raise
                    pause = 0.1 if monotonic() - begin > 10 * pause else min(2 * pause, 5.0)
                    await asyncio.sleep(pause)
            finally:
                self.active -= 1

    async def _download(self, wanted: Object) -> bool:
        if wanted.hash in self.arrived:
            return True
        call = self.channel.stream_stream(DOWNLOAD, request_serializer=Wanted.SerializeToString)(metadata=self.metadata)

        async def committed(offset: int) -> None:
            await call.write(Wanted(hash=wanted.hash, offset=offset))

        async def read() -> Cut:
            piece = await call.read()
            if not isinstance(piece, bytes):
                raise Broke("the download ended")
            self._progress()
            return opened(piece)

        async with self._meant(call):
            await receive(self.store, wanted, "", read, committed, lambda: self.arrived.add(wanted.hash))
        return True

    async def _upload(self, wanted: Object, file: Path, jobs: list[int]) -> bool:
        call = self.channel.stream_stream(UPLOAD, response_deserializer=Committed.FromString)(metadata=self.metadata)

        async def write(piece: Cut) -> None:
            await call.write(piece.message)

        async def answers() -> int:
            answer = await call.read()
            if not isinstance(answer, Committed):
                raise Broke("the upload ended")
            if answer.HasField("refusal"):
                raise FedsimError(f"the server refused a reply: {answer.refusal.cause}; {answer.refusal.cure}")
            self._progress()
            return answer.offset

        async with self._meant(call):
            await call.write(Piece(object=wanted, jobs=jobs).SerializeToString())
            await Flow(file, wanted.size, await answers(), write).run(answers)
        return True

    @asynccontextmanager
    async def _meant(self, call: Any) -> AsyncIterator[None]:
        """Gives the end of a call the meaning that its status has."""
        try:
            yield
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            code, text = await call.code(), await call.details()
            match code:
                case grpc.StatusCode.NOT_FOUND:
                    raise Gone(text) from error
                case grpc.StatusCode.DATA_LOSS:
                    raise BrokenMessage(text) from error
                case grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise NoRoom(text) from error
            raise Broke(text) from error
        finally:
            call.cancel()
