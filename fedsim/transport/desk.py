"""Who is at the server: who may come in, who is there, who has left."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from queue import SimpleQueue
from time import time
from typing import Any, Protocol
from urllib.parse import unquote

from fedsim.base.errors import FedsimError
from fedsim.base.visible import one_line
from fedsim.transport.limits import Limits
from fedsim.transport.messages_pb2 import (
    BROKEN,
    CERTIFICATE,
    FULL,
    NODE_TAKEN,
    PROTOCOL,
    RUN_FAILED,
    RUN_OVER,
    Bye,
    FromServer,
    FromWorker,
    Hello,
    Reason,
    Refusal,
    Welcome,
)
from fedsim.transport.objects import Store
from fedsim.transport.pulse import Line, nap
from fedsim.transport.roll import Present, present
from fedsim.transport.session import Back, Carried, Event, Joined, Left, Session, Unsettled
from fedsim.transport.wire import PROTOCOL as OURS
from fedsim.transport.wire import heard


class Claim(Protocol):
    """Who a peer is, as its certificate or token shows; no name: anybody."""

    @property
    def name(self) -> str: ...


class Handshake(Protocol):
    """What the program decides of a worker that wants to join."""

    def welcome(self, hello: Hello, claim: Any) -> Welcome | Refusal:
        """Its nodes and scenario, quickly; `session` and `silence` are filled in by the hub."""

    def admit(self, session: Session, facts: bytes) -> Refusal | None:
        """Whether what it found fits; called in a thread, may take its time."""


class Refused(Exception):
    """Ends a stream; the peer is told why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.cause)
        self.refusal, self.who = refusal, ""


def refused(reason: Reason, cause: str, cure: str = "") -> Refused:
    return Refused(Refusal(reason=reason, cause=cause, cure=cure))


class Desk:
    """The sessions that live. Used in the hub's loop only."""

    def __init__(
        self,
        store: Store,
        handshake: Handshake,
        identify: Callable[[Any], Any],
        verdict: Callable[[int], str | None],
        silence: float,
        limits: Limits,
    ) -> None:
        self.store, self.handshake, self.identify, self.verdict = store, handshake, identify, verdict
        self.silence, self.limits = silence, limits
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.sessions: dict[bytes, Session] = {}  # by worker
        self.keys: dict[str, Session] = {}
        self.hosts: dict[int, Session] = {}  # by node
        self.lost: dict[bytes, Present] = {}  # who has left and not come back
        self.carried: dict[bytes, Carried] = defaultdict(Carried)
        self.came: dict[bytes, Unsettled] = defaultdict(lambda: Unsettled(store))
        self.streams: Counter[str] = Counter()  # by address without port
        self.over: Bye | None = None
        self.full = False  # the disk, when a reply last came

    async def greet(self, context: Any) -> tuple[Session, Line[FromServer]]:
        """From a stream's first message to Welcome. Raises Refused."""
        address = place(context)
        host = address.rpartition(":")[0]
        if self.over:
            reason = RUN_FAILED if self.over.failed else RUN_OVER if self.over.drained else FULL
            raise refused(reason, f"the server ends: {self.over.reason}", "start the worker again when the server runs")
        if self.streams.total() > self.limits.sessions or self.streams[host] > self.limits.per_address:
            raise refused(FULL, f"{self.streams[host]} workers of this address and {self.streams.total()} in all", "try later")
        try:
            async with asyncio.timeout(self.limits.handshake):
                first = await heard(context, FromWorker) or FromWorker()
        except TimeoutError as error:
            raise refused(BROKEN, f"nothing was said for {self.limits.handshake:g} s") from error
        hello = first.hello
        try:
            claim, welcome = self.ask(hello, context)
            session = self._session(hello, claim.name, welcome, address)
        except Refused as no:
            no.who = one_line(hello.host[:64])
            raise
        session.carried.came(first.ByteSize())
        if session.line:
            cause = f"the same worker connected from {address}"
            session.line.end(FromServer(refusal=Refusal(reason=NODE_TAKEN, cause=cause, cure="give each worker a folder of its own")))
        session.address, session.ready = address, False
        line = session.line = Line(session.pulse, lambda beat: FromServer(beat=beat))
        welcome.session, welcome.silence = session.key.encode(), self.silence
        line.post(FromServer(welcome=welcome))
        return session, line

    def ask(self, hello: Hello, context: Any) -> tuple[Claim, Welcome]:
        """Who says hello, and what the handshake answers. Raises Refused."""
        if len(hello.worker) != 16 or hello.ByteSize() > self.limits.hello:
            raise refused(BROKEN, "the first message is no hello of a fedsim worker", "use `fedsim join`")
        if hello.protocol != OURS:
            raise refused(
                PROTOCOL, f"the worker speaks protocol {hello.protocol}, the server {OURS}", "install the server's version of fedsim"
            )
        try:
            claim = _or_refused(self.identify(context))
            return claim, _or_refused(self.handshake.welcome(hello, claim))
        except FedsimError as error:
            raise refused(BROKEN, str(error)) from error

    def _session(self, hello: Hello, claimed: str, welcome: Welcome, address: str) -> Session:
        """The session this worker has, or a new one. Raises Refused where another has its nodes."""
        nodes, old = tuple(welcome.nodes), self.sessions.get(hello.worker)
        if old and claimed and old.claimed != claimed:
            raise refused(CERTIFICATE, f"{claimed} uses the identity of {old.name}", "give each worker a folder of its own")
        for node in nodes:
            other = self.hosts.get(node)
            if other and other is not old:
                cause = f"node {node}, which {address} wants, is hosted by {other.address}"
                raise refused(NODE_TAKEN, cause, "choose other nodes, or stop the other worker")
        if old and old.nodes == nodes:
            old.pulse.move()
            return old
        if old:
            self.leave(old, "it joined anew with other nodes")
        worker, name = hello.worker, claimed or one_line(hello.host[:64]) or address
        session = Session(worker, name, claimed, address, nodes, hello, self.carried[worker], self.came[worker], self.store, self.verdict)
        self.sessions[worker] = self.keys[session.key] = session
        self.hosts |= dict.fromkeys(nodes, session)
        return session

    async def admit(self, session: Session, line: Line[FromServer], facts: bytes) -> None:
        """From Ready to Admitted. Raises Refused."""
        if len(facts) > self.limits.facts:
            raise refused(BROKEN, f"facts of {len(facts)} bytes, where at most {self.limits.facts} are taken")
        if not session.joined or facts != session.facts:
            refusal = await asyncio.to_thread(self.handshake.admit, session, facts)
            if refusal:
                self.leave(session, refusal.cause)
                raise Refused(refusal)
        if session.line is not line or self.sessions.get(session.worker) is not session:
            return
        event = Back(session.worker) if session.joined else Joined(session.worker, session.name, session.nodes, facts)
        session.facts, session.joined, session.since = facts, True, time()
        self.lost.pop(session.worker, None)
        session.resume()
        self.events.put(event)

    def leave(self, session: Session, why: str) -> None:
        """Forgets it, with what was out."""
        if self.sessions.get(session.worker) is not session:
            return
        del self.sessions[session.worker], self.keys[session.key]
        for node in session.nodes:
            del self.hosts[node]
        for _, task in session.calls.values():
            task.cancel()
        session.leave()
        self.store.forget(session.owner)
        if session.line:
            session.line.end()
        if session.joined:
            session.since = time()
            self.lost[session.worker] = present(session, why)
            self.events.put(Left(session.worker, session.nodes, why))

    async def watch(self) -> None:
        """Workers of which nothing came for the time of silence have left."""
        while True:
            still = await nap(self.silence / 20)
            for session in list(self.sessions.values()):
                session.pulse.forgive(still)
                if session.pulse.silent > self.silence:
                    self.leave(session, f"nothing was heard of it for {self.silence:g} s")


def place(context: Any) -> str:
    """Where a call comes from, `10.0.0.6:45370`."""
    return unquote(context.peer()).removeprefix("ipv4:").removeprefix("ipv6:")


def _or_refused(answer: Any) -> Any:
    """Raises Refused for a refusal."""
    if isinstance(answer, Refusal):
        raise Refused(answer)
    return answer
