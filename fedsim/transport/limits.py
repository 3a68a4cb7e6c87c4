"""What a peer may take: before anybody knows who it is, and after."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

MIB = 1 << 20


def anything(job: int) -> int:
    """No limit to the size of a reply."""
    return 1 << 63


@dataclass(frozen=True)
class Limits:
    """`expected(job)` is what the reply to it may have in bytes."""

    handshake: float = 10.0  # seconds until TLS, HTTP/2 and the first message are there
    hello: int = 8192  # bytes of the first message and of the facts
    connections: int = 8192
    sessions: int = 4096
    per_address: int = 1024  # sessions
    streams: int = 64  # of a connection at a time
    idle: float = 300.0  # seconds that a connection without a call is kept
    messages: float = 2000.0  # control messages a second, of a worker, in the long run
    burst: int = 4000
    facts: int = MIB
    expected: Callable[[int], int] = anything


class Rate:
    """How long a sender must wait so that in the long run it sends no more than so many a second."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._level, self._at = 0.0, monotonic()

    def wait(self) -> float:
        now = monotonic()
        self._level = max(0.0, self._level - (now - self._at) * self.rate) + 1
        self._at = now
        return max(0.0, (self._level - self.burst) / self.rate)
