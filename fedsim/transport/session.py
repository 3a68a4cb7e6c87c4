"""What the server keeps of one worker, from its welcome until it left: jobs that are out, and what it has not confirmed yet."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from secrets import token_hex
from time import monotonic, time
from typing import NamedTuple

from fedsim.base.errors import BrokenMessage
from fedsim.transport.messages_pb2 import Admitted, Beat, Cancel, FromServer, Hello, Order, Reply, Settled
from fedsim.transport.objects import Store
from fedsim.transport.pulse import Line, Pulse


class Verdict(StrEnum):
    """What becomes of a job's reply."""

    KEPT = "kept"
    GONE = "gone"
    OPEN = "open"  # it is waited for


class Joined(NamedTuple):
    worker: bytes
    name: str
    nodes: tuple[int, ...]
    facts: bytes


class Left(NamedTuple):
    worker: bytes
    nodes: tuple[int, ...]
    why: str


class Away(NamedTuple):
    """Its stream broke; it may be back within the silence."""

    worker: bytes


class Back(NamedTuple):
    worker: bytes


class Came(NamedTuple):
    """A reply whose object is whole in the store (None: it has none); to be settled."""

    worker: bytes
    reply: Reply
    file: Path | None


Event = Joined | Left | Away | Back | Came


@dataclass
class Carried:
    """Messages and their bytes to a worker (down) and from it (up), resends included; of the bytes, those of objects."""

    down: int = 0
    up: int = 0
    objects_down: int = 0
    objects_up: int = 0
    frames_down: int = 0
    frames_up: int = 0
    jobs: int = 0  # whose replies came

    def sent(self, size: int, content: int = 0) -> None:
        self.frames_down, self.down, self.objects_down = self.frames_down + 1, self.down + size, self.objects_down + content

    def came(self, size: int, content: int = 0) -> None:
        self.frames_up, self.up, self.objects_up = self.frames_up + 1, self.up + size, self.objects_up + content


@dataclass
class Session:
    """One worker. Used in the hub's loop only."""

    worker: bytes
    name: str  # for people: what it showed, or what its machine calls itself, or its address
    claimed: str  # the name that its certificate or token has
    address: str
    nodes: tuple[int, ...]
    hello: Hello
    carried: Carried
    verdict: Callable[[int], str | None]
    facts: bytes = b""
    joined: bool = False
    key: str = field(default_factory=lambda: token_hex(16))
    pulse: Pulse = field(default_factory=Pulse)
    line: Line[FromServer] | None = None  # of the stream it has now
    ready: bool = False  # admitted on that stream
    since: float = field(default_factory=time)  # when it last came or went, by the wall clock
    orders: list[Order] = field(default_factory=list)
    jobs: dict[int, Order] = field(default_factory=dict)  # that are out
    came: set[int] = field(default_factory=set)  # of these, whose reply waits to be settled
    decided: dict[int, bool] = field(default_factory=dict)  # kept or not, as long as the worker may not know
    unconfirmed: list[tuple[float, FromServer]] = field(default_factory=list)
    calls: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)  # uploads on their way, by hash

    @property
    def owner(self) -> str:
        return self.worker.hex()

    def open(self, job: int) -> bool:
        """Whether its reply is waited for."""
        return job in self.jobs or (job not in self.decided and self.verdict(job) == Verdict.OPEN)

    def serves(self, name: bytes) -> bool:
        """Whether an order that is out needs this object."""
        return any(part.object.hash == name for order in self.orders for part in order.parts)

    def order(self, order: Order) -> None:
        self.orders.append(order)
        self.jobs |= {job.id: order for job in order.jobs}
        if self.ready:
            self._post(FromServer(order=order))

    def settle(self, kept: Sequence[int], gone: Sequence[int]) -> None:
        self.decided |= dict.fromkeys(kept, True) | dict.fromkeys(gone, False)
        self._close([*kept, *gone])
        self._tell(FromServer(settled=Settled(kept=kept, gone=gone)))

    def cancel(self, jobs: Sequence[int]) -> None:
        self.decided |= dict.fromkeys(jobs, False)
        self._close(jobs)
        self._tell(FromServer(cancel=Cancel(jobs=jobs)))

    def replied(self, reply: Reply, store: Store) -> Came | None:
        """A reply that is news; others are answered. Raises BrokenMessage where its object is not there."""
        closed = [job for job in reply.jobs if not self.open(job)]
        if closed:
            kept = [job for job in closed if self.decided.get(job, self.verdict(job) == Verdict.KEPT)]
            self._post(FromServer(settled=Settled(kept=kept, gone=[job for job in closed if job not in kept])))
        fresh = [job for job in reply.jobs if job not in closed and job not in self.came]
        if not fresh:
            return None
        if reply.object.hash and not store.has(reply.object.hash):
            raise BrokenMessage("a reply whose object was not uploaded")
        self.came.update(fresh)
        self.carried.jobs += len(fresh)
        return Came(self.worker, reply, store.path(reply.object.hash) if reply.object.hash else None)

    def heard(self, beat: Beat) -> None:
        """What was sent before the beat that it echoes has arrived."""
        if self.line:
            self.line.heard(beat)
        done = [message for at, message in self.unconfirmed if at <= beat.echo]
        for message in done:
            for job in (*message.settled.kept, *message.settled.gone, *message.cancel.jobs):
                self.decided.pop(job, None)
        del self.unconfirmed[: len(done)]

    def resume(self) -> None:
        """Says everything again that the worker may not have heard, on a new stream."""
        self.ready = True
        self._post(FromServer(admitted=Admitted()))
        self.unconfirmed = [(monotonic(), message) for _, message in self.unconfirmed]
        for _, message in self.unconfirmed:
            self._post(message)
        for order in self.orders:
            self._post(FromServer(order=order))

    def _tell(self, message: FromServer) -> None:
        self.unconfirmed.append((monotonic(), message))
        if self.ready:
            self._post(message)

    def _post(self, message: FromServer) -> None:
        if self.line:
            self.line.post(message)

    def _close(self, jobs: Iterable[int]) -> None:
        for job in jobs:
            self.came.discard(job)
            order = self.jobs.pop(job, None)
            if order:
                order.done.append(job)
                if len(order.done) == len(order.jobs):
                    self.orders = [other for other in self.orders if other is not order]
