"""What a worker does with what the server says, and how its connection may end."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedsim.base.errors import FedsimError
from fedsim.transport.messages_pb2 import Order, Refusal, Reply, Welcome


class Handler(Protocol):
    """What a worker does with what the server says. Each method may be a coroutine; `welcome` may take long either way."""

    def welcome(self, welcome: Welcome) -> bytes | Awaitable[bytes]:
        """Prepares the task; the facts for Ready."""

    def order(self, order: Order, paths: dict[bytes, Path]) -> Any:
        """Jobs to do, but for `order.done`; all objects are there, until dropped. Called once for a job."""

    def cancel(self, jobs: Sequence[int]) -> Any:
        """Nobody waits for these any more."""

    def settled(self, kept: Sequence[int], gone: Sequence[int]) -> Any:
        """What became of replies."""

    def pending(self) -> Iterable[tuple[Reply, Path | None]]:
        """Replies that are not settled, with their files; asked after each connection."""

    def state(self, text: str) -> Any:
        """How it stands, for people."""


class Refused(FedsimError):
    """The server does not want this worker."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"the server refused: {refusal.cause}" + (f"; {refusal.cure}" if refusal.cure else ""))
        self.refusal = refusal


class Lost(Exception):
    """The connection broke; it is opened again."""


class Over(Exception):
    """The server said that the run is over, or this worker is drained. `failed`: the run has no result."""

    def __init__(self, reason: str, failed: bool = False) -> None:
        super().__init__(reason)
        self.failed = failed


async def called(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a method gives, plain or a coroutine."""
    result = work(*arguments)
    return await result if inspect.isawaitable(result) else result


async def aside(work: Callable[..., Any], *arguments: Any) -> Any:
    """The same, for work that takes long: a plain method runs in a thread."""
    result = await asyncio.to_thread(work, *arguments)
    return await result if inspect.isawaitable(result) else result
