"""Heartbeats: whether the other end lives, how far away it is and what its clock says; and the writing end of a stream."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from time import monotonic, time
from typing import Generic, TypeVar

from fedsim.transport.messages_pb2 import Beat

M = TypeVar("M")
KEPT = 8  # beats among which the quickest tells the clock


async def nap(seconds: float) -> float:
    """Sleeps so long; how much longer it took, for which this process stood still (stopped, or in one long call)."""
    began = monotonic()
    await asyncio.sleep(seconds)
    return max(0.0, monotonic() - began - seconds)


class Pulse:
    """When something last moved, and the other's clock as NTP finds it: of the last beats the one with the shortest way counts."""

    def __init__(self) -> None:
        self.moved = monotonic()
        self._other, self._at = 0.0, 0.0
        self._found: deque[tuple[float, float, float]] = deque(maxlen=KEPT)

    def move(self) -> None:
        self.moved = monotonic()

    def forgive(self, seconds: float) -> None:
        """For so long this process stood still: that is no silence of the other's."""
        self.moved = min(monotonic(), self.moved + seconds)

    @property
    def silent(self) -> float:
        """Seconds since something moved."""
        return monotonic() - self.moved

    @property
    def round_trip(self) -> float | None:
        """Seconds there and back; None before the first answer."""
        return min(self._found)[0] if self._found else None

    @property
    def ahead(self) -> float | None:
        """Seconds that the other's monotonic clock is ahead of ours; None before the first answer."""
        return min(self._found)[1] if self._found else None

    @property
    def wall_ahead(self) -> float | None:
        """The same of its wall clock."""
        return min(self._found)[2] if self._found else None

    def beat(self) -> Beat:
        now = monotonic()
        return Beat(sent=now, echo=self._other, held=now - self._at if self._at else 0, wall=time())

    def heard(self, beat: Beat) -> None:
        self._other, self._at = beat.sent, monotonic()
        if beat.echo:
            trip = max(self._at - beat.echo - beat.held, 0.0)
            self._found.append((trip, beat.sent + trip / 2 - self._at, beat.wall + trip / 2 - time()))


class Line(Generic[M]):
    """The writing end of one stream: what waits, in order, and a beat among it whenever one is due, so that an echo confirms all before."""

    def __init__(self, pulse: Pulse, wrap: Callable[[Beat], M]) -> None:
        self.pulse, self.wrap = pulse, wrap
        self.waiting: deque[M] = deque()
        self.ending = asyncio.Event()
        self._news = asyncio.Event()

    def post(self, message: M) -> None:
        self.waiting.append(message)
        self._news.set()

    def heard(self, beat: Beat) -> None:
        """The first of a stream is answered at once, so that both ends soon know how far away the other is."""
        self.pulse.heard(beat)
        if not beat.echo:
            self.post(self.wrap(self.pulse.beat()))

    def end(self, last: M | None = None) -> None:
        """Nothing follows what waits now, and `last`."""
        if last is not None:
            self.post(last)
        self.ending.set()
        self._news.set()

    async def run(self, write: Callable[[M], Awaitable[None]], every: Callable[[], float]) -> None:
        """Writes until the end, with a beat `every()` so many seconds."""
        last = -inf
        while True:
            if monotonic() >= last + every() and not self.ending.is_set():
                self.post(self.wrap(self.pulse.beat()))
                last = monotonic()
            for _ in range(len(self.waiting)):
                await write(self.waiting.popleft())
            if self.waiting:
                continue
            if self.ending.is_set():
                return
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(last + every() - monotonic(), 0)):
                    await self._news.wait()
