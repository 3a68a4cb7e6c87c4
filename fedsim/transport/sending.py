"""Objects piece by piece, in either direction: from a file on, and into a file from its committed offset."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from time import monotonic
from typing import Any

from fedsim.transport.messages_pb2 import Object
from fedsim.transport.objects import Store
from fedsim.transport.pieces import Cut, fill, packed
from fedsim.transport.wire import FIRST, LEAST, PACE, PIECE, TOGETHER, WINDOW, aside, beside


class Flow:
    """A transfer at its sender: a window of pieces is on its way, each of so many bytes as the link moves in a moment.

    `heard` gets what the receiver has committed. Where little moves pieces are small, so that something moves often.
    """

    def __init__(self, file: Path, size: int, offset: int, write: Callable[[Cut], Awaitable[None]]) -> None:
        self.file, self.size, self.committed, self.write = file, size, offset, write
        self.piece = FIRST
        self._window = asyncio.Semaphore(WINDOW)
        self._ends = deque[int]()  # of pieces that are on their way
        self._seen = deque([(monotonic(), offset)], maxlen=WINDOW)

    def heard(self, offset: int) -> None:
        """One offset may be an answer to several pieces."""
        begin, before = self._seen[0]
        now = monotonic()
        self._seen.append((now, offset))
        rate = (offset - before) / max(now - begin, 1e-6)
        self.piece = int(min(max(rate * PACE, LEAST), 2 * self.piece, PIECE))
        self.committed = offset
        while self._ends and self._ends[0] <= offset:
            self._ends.popleft()
            self._window.release()

    async def run(self, answers: Callable[[], Awaitable[int]]) -> None:
        """Sends until all is committed; `answers` gives the next offset that is. Raises what either of both raises."""
        await together(self._send(), self._listen(answers))

    async def _listen(self, answers: Callable[[], Awaitable[int]]) -> None:
        while self.committed < self.size:
            self.heard(await answers())

    async def _send(self) -> None:
        offset, room = self.committed, memoryview(bytearray(min(PIECE, self.size - self.committed)))
        with self.file.open("rb", buffering=0) as file:
            while offset < self.size:
                await self._window.acquire()
                data = room[: min(self.piece, self.size - offset)]
                await fill(data, file.fileno(), offset)
                piece = packed(offset, data)
                offset += len(data)
                self._ends.append(offset)
                await self.write(piece)


async def receive(
    store: Store,
    wanted: Object,
    owner: str,
    read: Callable[[], Coroutine[Any, Any, Cut | None]],
    committed: Callable[[int], Awaitable[None]],
    whole: Callable[[], None],
) -> bool:
    """Reads pieces into the store until the object is there; False where they end before. `committed` hears first where to begin.

    `whole` takes over the pin of the object; it is called in a thread, before the last `committed`. Raises BrokenMessage for a piece that
    doesn't fit, and RunError where it can't be written; what came before stays.
    """
    partial = await aside(store.partial, wanted, owner)
    come: asyncio.Queue[Cut | None] = asyncio.Queue(TOGETHER - 1)  # while what came before is written

    async def take() -> None:
        left = wanted.size - partial.offset
        while left > 0:
            await come.put(piece := await read())
            left -= len(piece.data) if piece else left

    async def put() -> None:
        piece: Cut | None
        while not partial.whole:
            await committed(partial.offset)
            if (piece := await come.get()) is None:
                return
            pieces = [piece]
            while not come.empty() and (piece := come.get_nowait()):
                pieces.append(piece)
            await aside(partial.extend, pieces)
            if piece is None:
                return

    def finish() -> None:
        partial.finish()
        whole()

    try:
        await together(take(), put())
        if partial.whole:
            await aside(finish)
            await committed(wanted.size)
        return partial.whole
    finally:
        partial.close()


async def together(*works: Coroutine[Any, Any, None]) -> None:
    """Does them at once; the first error ends all, and so does one that is cancelled, as calls are whose channel is closed."""
    tasks = [beside(work) for work in works]
    left = set(tasks)
    try:
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
