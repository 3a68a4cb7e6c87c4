"""A TCP proxy that does to connections what networks do: cuts, pauses, delays, damage, little bandwidth, no patience with idle ones."""

import asyncio
from contextlib import suppress
from time import monotonic

CHUNK = 16384


class Proxy:
    """Between whoever connects to `port` and a server. Settings may be changed at any time, by the loop's own thread or another."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.up = self.down = self.connections = 0  # bytes to the server and from it, connections so far
        self.cut_at: int | None = None  # bytes in both directions after which everything is cut, once
        self.damage_at: int | None = None  # byte on its way to the server that is changed
        self.rate: float | None = None  # bytes a second in each direction, of all connections together
        self.delay = 0.0  # seconds, each way
        self.idle: float | None = None  # seconds after which a connection on which nothing moves is cut
        self.paused = False  # nothing passes, nothing is closed
        self.hung: set[int] = set()  # connections, counted from 1, of which the same holds
        self.closed = False  # new connections are cut at once
        self.open: set[asyncio.StreamWriter] = set()
        self.free = {True: 0.0, False: 0.0}  # when the link is next free, by direction

    async def start(self) -> "Proxy":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    def cut(self) -> None:
        """Ends every connection at once, without a goodbye; from any thread."""
        self.server.get_loop().call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in list(self.open):
            writer.transport.abort()

    async def stop(self) -> None:
        self.server.close()
        self._cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        if self.closed:
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, back}
        self.open |= ends
        last = [monotonic()]
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back, True, last, number))
                group.create_task(self._pump(there, writer, False, last, number))
                group.create_task(self._impatience(last))
        except* (OSError, EOFError):
            pass
        finally:
            self.open -= ends
            for end in ends:
                end.transport.abort()

    async def _impatience(self, last: list[float]) -> None:
        while self.idle is None or monotonic() - last[0] < self.idle:
            await asyncio.sleep(0.02)
        raise EOFError

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool, last: list[float], number: int) -> None:
        while data := await source.read(CHUNK):
            while self.paused or number in self.hung:
                await asyncio.sleep(0.02)
            last[0] = monotonic()
            if self.rate:
                self.free[up] = max(self.free[up], monotonic()) + len(data) / self.rate
                await asyncio.sleep(self.free[up] - monotonic())
            if self.delay:
                await asyncio.sleep(self.delay)
            if up and self.damage_at is not None and self.up <= self.damage_at < self.up + len(data):
                at = self.damage_at - self.up
                data, self.damage_at = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], None
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            if self.cut_at is not None and self.up + self.down >= self.cut_at:
                self.cut_at = None
                self._cut()
            sink.write(data)
            with suppress(ConnectionError):
                await sink.drain()
        raise EOFError
