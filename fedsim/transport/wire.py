"""What both ends agree on: sizes, options of gRPC, the pace of pieces, and work that must not hold up the loop."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from fedsim.base.errors import BrokenMessage

T = TypeVar("T")

PROTOCOL = 2
SERVICE = "fedsim.v1.Fedsim"  # as `messages.proto` calls it
PIECE = 1 << 20  # the largest piece
FIRST, LEAST = 1 << 16, 1 << 14  # the first piece of a transfer, and the smallest, on a link that is slow
WINDOW = 8  # pieces on their way that are not known to be committed
TOGETHER = 4  # of them that a thread writes in one go
MESSAGE = 2 << 20  # bytes of a message; gRPC itself would end at 4 MiB
BEAT = 10.0  # seconds between heartbeats at most
PACE = 0.1  # seconds that a piece should take
SESSION, TOKEN = "fedsim-session", "fedsim-token"
TIME = "fedsim-time"  # first metadata of a session: the server's wall clock in seconds, for people alone
EVALUATE = "evaluate"  # kind of an order whose jobs are questions about nodes
DOCTOR = "doctor"  # the role of who only asks whether it would be let in: it is welcome without nodes

OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.absolute_max_metadata_size", 1 << 14),
)


def beat_every(silence: float) -> float:
    """Seconds between heartbeats."""
    return min(BEAT, silence / 6)


async def heard(stream: Any, kind: type[T]) -> T | None:
    """The next message of a stream; None at its end. Raises BrokenMessage for bytes that are none."""
    try:
        message = await stream.read()
    except DecodeError as error:
        raise BrokenMessage("bytes that are no message") from error
    return message if isinstance(message, kind) else None


async def aside(work: Callable[..., T], *arguments: object) -> T:
    """Does it in a thread; who is cancelled meanwhile waits for its end, so that nothing goes on behind its back."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def beside(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """A task whose error is for those who wait for it; where they were cancelled themselves nobody misses it."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
