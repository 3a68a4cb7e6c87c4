"""What both ends agree on: sizes, options of gRPC, the pace of pieces, and work that must not hold up the loop."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from fedsim.transport.messages_pb2 import Piece

T = TypeVar("T")

PROTOCOL = 1
PIECE = 1 << 20  # the largest piece
FIRST, LEAST = 1 << 16, 1 << 14  # the first piece of a transfer, and the smallest, on a link that is slow
WINDOW = 8  # pieces on their way that are not known to be committed
MESSAGE = 2 << 20  # bytes of a message; gRPC itself would end at 4 MiB
BEAT = 10.0  # seconds between heartbeats at most
QUICK, SLOW = 0.05, 0.25  # seconds a piece may take before the next is not larger, or is smaller
SESSION, TOKEN = "fedsim-session", "fedsim-token"
TIME = "fedsim-time"  # first metadata of a session: the server's wall clock in seconds, for people alone
DOCTOR = "doctor"  # the role of who only asks whether it would be let in: it is welcome without nodes

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.absolute_max_metadata_size", 1 << 14),
)


def beat_every(silence: float) -> float:
    """Seconds between heartbeats."""
    return min(BEAT, silence / 6)


class Pace:
    """The size of the next piece: small enough that something moves often on a slow link, large where that costs least."""

    def __init__(self) -> None:
        self.size = FIRST

    def took(self, seconds: float) -> None:
        if seconds < QUICK:
            self.size = min(2 * self.size, PIECE)
        elif seconds > SLOW:
            self.size = max(self.size // 2, LEAST)


def cut(file: Path, offset: int, size: int) -> Piece:
    """A piece of a file, with its checksum; empty at its end."""
    handle = os.open(file, os.O_RDONLY)
    try:
        data = os.pread(handle, size, offset)
    finally:
        os.close(handle)
    return Piece(offset=offset, data=data, crc=crc32(data))


async def aside(work: Callable[..., T], *arguments: object) -> T:
    """Does it in a thread; who is cancelled meanwhile waits for its end, so that nothing goes on behind its back."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
