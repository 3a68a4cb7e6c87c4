"""A worker's transfers: several at once, on a connection of their own, each going on from where it was cut."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import grpc

from fedsim.base.errors import BrokenMessage, FedsimError
from fedsim.transport.messages_pb2 import Committed, Object, Piece, Wanted
from fedsim.transport.messages_pb2_grpc import FedsimStub
from fedsim.transport.objects import NoRoom, Store
from fedsim.transport.sending import receive, send
from fedsim.transport.wire import PIECE, WINDOW

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
        state: Callable[[str], Awaitable[Any]],
    ) -> None:
        self.open, self.store, self.metadata, self.silence, self.state = channel, store, metadata, silence, state
        self.lanes = asyncio.Semaphore(SMALL), asyncio.Semaphore(LARGE)
        self.fetching: dict[bytes, asyncio.Task[Path | None]] = {}
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
            for task in self.fetching.values():
                task.cancel()
            await self.channel.close()

    async def _anew(self) -> None:
        old, self.channel, self.moved = self.channel, self.open(), monotonic()
        await old.close()

    async def fetch(self, wanted: Object) -> Path | None:
        """The object's file; None where the server has it no more. Who asks for the same one waits for the same transfer."""
        if self.store.has(wanted.hash):
            return self.store.path(wanted.hash)
        task = self.fetching.get(wanted.hash)
        if task is None:
            task = self.fetching[wanted.hash] = asyncio.create_task(self._repeat(wanted, self._download, wanted))
            task.add_done_callback(lambda _: self.fetching.pop(wanted.hash, None))
        return await asyncio.shield(task)

    async def upload(self, wanted: Object, file: Path, jobs: Iterable[int]) -> None:
        """Returns when the server has the whole object, or does not want it."""
        await self._repeat(wanted, self._upload, wanted, file, list(jobs))

    async def _repeat(self, wanted: Object, transfer: Callable[..., Awaitable[Path | None]], *arguments: Any) -> Path | None:
        """Transfers until it is done; each time from where it broke off."""
        damaged, pause = 0, 0.1
        async with self.lanes[wanted.size > PIECE]:
            self.active += 1
            try:
                while True:
                    begin, channel = self.moved, self.channel
                    try:
                        return await transfer(*arguments)
                    except Gone:
                        return None
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
                    pause = 0.1 if self.moved > begin else min(2 * pause, 5.0)
                    await asyncio.sleep(pause)
            finally:
                self.active -= 1

    async def _download(self, wanted: Object) -> Path | None:
        call = None

        async def begin(offset: int) -> None:
            nonlocal call
            if call is None and offset < wanted.size:
                call = FedsimStub(self.channel).Download(Wanted(hash=wanted.hash, offset=offset), metadata=self.metadata)

        async def read() -> Piece | None:
            assert call is not None
            async with self._status(call):
                piece = await call.read()
            self.moved = monotonic()
            return piece if isinstance(piece, Piece) else None

        try:
            file = await receive(self.store, wanted, "", read, begin)
        finally:
            if call is not None:
                call.cancel()
        if file is None:
            raise BrokenMessage(f"an object of {wanted.size} bytes that is shorter at the server")
        return file

    async def _upload(self, wanted: Object, file: Path, jobs: list[int]) -> None:
        call = FedsimStub(self.channel).Upload(metadata=self.metadata)
        flow = Flow(self, call, file, wanted.size)
        try:
            async with self._status(call):
                await call.write(Piece(object=wanted, jobs=jobs))
                flow.heard(await call.read())
                await together(flow.listen(), flow.send())
        finally:
            call.cancel()

    @asynccontextmanager
    async def _status(self, call: Any) -> AsyncIterator[None]:
        """Gives a call's end the meaning that its status has."""
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


class Flow:
    """The pieces of one upload: no more than a window of them on their way."""

    def __init__(self, bulk: Bulk, call: Any, file: Path, size: int) -> None:
        self.bulk, self.call, self.file, self.size = bulk, call, file, size
        self.committed = 0
        self.window = asyncio.Semaphore(WINDOW)

    def heard(self, answer: Any) -> None:
        if not isinstance(answer, Committed):
            raise Broke("the upload ended")
        if answer.HasField("refusal"):
            raise FedsimError(f"the server refused a reply: {answer.refusal.cause}; {answer.refusal.cure}")
        self.bulk.moved = monotonic()
        self.committed = answer.offset

    async def listen(self) -> None:
        while self.committed < self.size:
            self.heard(await self.call.read())
            self.window.release()

    async def send(self) -> None:
        async def write(piece: Piece) -> None:
            await self.window.acquire()
            await self.call.write(piece)
            self.bulk.moved = monotonic()

        if await send(self.file, self.committed, write) < self.size:
            raise FedsimError(f"{self.file} is shorter than the {self.size} bytes it should have")


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Does them at once; the first error ends all."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
