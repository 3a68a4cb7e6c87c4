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
from fedsim.transport.wire import EVALUATE


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
    """A reply whose object is whole in the store (None: it has none), and stays there until its jobs are settled or cancelled."""

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


class Unsettled:
    """Replies of a worker that came and wait to be settled, also after it left; their objects are pinned."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._replies: dict[int, tuple[bytes, set[int]]] = {}  # by job: the object, and the reply's jobs that are not settled

    def __len__(self) -> int:
        return len(self._replies)

    def __contains__(self, job: int) -> bool:
        return job in self._replies

    def add(self, jobs: Iterable[int], name: bytes) -> None:
        """Takes over a pin of the object."""
        left = set(jobs)
        self._replies |= dict.fromkeys(left, (name, left))

    def settle(self, jobs: Iterable[int]) -> None:
        for job in jobs:
            name, left = self._replies.pop(job, (b"", {job}))
            left.remove(job)
            if name and not left:
                self.store.unpin(name)


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
    came: Unsettled
    store: Store
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
    held: dict[tuple[int, ...], bytes] = field(default_factory=dict)  # objects, pinned, of replies that were not announced yet
    decided: dict[int, bool] = field(default_factory=dict)  # kept or not, as long as the worker may not know
    unconfirmed: list[tuple[float, FromServer]] = field(default_factory=list)
    calls: dict[bytes, tuple[list[int], asyncio.Task[None]]] = field(default_factory=dict)  # uploads and their jobs, by hash

    @property
    def owner(self) -> str:
        return self.worker.hex()

    def open(self, job: int) -> bool:
        """Whether its reply is waited for."""
        return job not in self.came and (job in self.jobs or (job not in self.decided and self.verdict(job) == Verdict.OPEN))

    def serves(self, name: bytes) -> bool:
        """Whether an order that is out needs this object."""
        return any(part.object.hash == name for order in self.orders for part in order.parts)

    def order(self, order: Order) -> None:
        """Takes an order over, with a pin of each of its objects."""
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

    def hold(self, jobs: Sequence[int], name: bytes) -> None:
        """Takes over a pin of an object for the reply that will come."""
        if tuple(jobs) in self.held:
            self.store.unpin(name)
        self.held[tuple(jobs)] = name

    def replied(self, reply: Reply) -> Came | None:
        """A reply that is news; others are answered. Raises BrokenMessage where its object is not there, or a job in it twice or none."""
        if len({*reply.jobs}) < len(reply.jobs):
            raise BrokenMessage("a reply that answers a job twice")
        if max(reply.jobs, default=0) >= 1 << 63:
            raise BrokenMessage("a reply to a job that there can't be")
        fresh = [job for job in reply.jobs if self.open(job)]
        closed = [job for job in reply.jobs if job not in self.came and job not in fresh]
        if closed:
            kept = [job for job in closed if self.decided.get(job, self.verdict(job) == Verdict.KEPT)]
            self._post(FromServer(settled=Settled(kept=kept, gone=[job for job in closed if job not in kept])))
        if not fresh:
            return None
        name = reply.object.hash
        if name and self.held.pop(tuple(reply.jobs), None) != name:
            raise BrokenMessage("a reply whose object was not uploaded")
        self.came.add(fresh, name)
        self.carried.jobs += sum(job not in self.jobs or self.jobs[job].kind != EVALUATE for job in fresh)
        return Came(self.worker, reply, self.store.path(name) if name else None)

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
        self.came.settle(jobs)
        for job in jobs:
            order = self.jobs.pop(job, None)
            if order:
                order.done.append(job)
                if len(order.done) == len(order.jobs):
                    self._end(order)
        self.release([jobs for jobs in self.held if not any(map(self.open, jobs))])

    def _end(self, order: Order) -> None:
        self.orders = [other for other in self.orders if other is not order]
        for part in order.parts:
            self.store.unpin(part.object.hash)

    def leave(self) -> None:
        """Gives everything back."""
        for order in self.orders:
            self._end(order)
        self.release(self.held)

    def release(self, replies: Iterable[tuple[int, ...]]) -> None:
        """Gives back objects of replies that will not be waited for."""
        for jobs in list(replies):
            self.store.unpin(self.held.pop(jobs))
