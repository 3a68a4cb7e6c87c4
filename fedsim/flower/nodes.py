"""Simulated nodes that work on messages by a virtual clock: what takes how long, what breaks, and the events that tell of it."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol, cast

import numpy as np
from flwr.app import Message, RecordDict

from fedsim.base.clock import FOREVER, NONE, EventQueue, Ints
from fedsim.federation.journey import CRASHED, GONE, LOST, WELL, Journey, fated
from fedsim.federation.ledger import Ledger
from fedsim.federation.traffic import Traffic
from fedsim.flower import private
from fedsim.flower.clients import Clients, Outcome, Pending
from fedsim.flower.course import examples
from fedsim.world import Fate, Nature, Times

JOB, EXPIRY = 0, 1  # kinds of events; at equal times what comes back is first


@dataclass
class Sent:
    """A message whose reply was not pulled. `version` is that of the model it carries, `size` its bytes; `open`: the ServerApp may still
    hear of it."""

    name: str
    message: Message
    node: int
    version: int
    size: int
    job: int = -1
    reply: Message | None = None
    open: bool = True


@dataclass
class Work:
    """A message that a node has taken, at a time; what lies `ahead` is known when the outcome is."""

    sent: Sent
    turn: int
    at: int
    pending: Pending
    down: Ints = field(default_factory=lambda: single(0))  # bytes [1], and ticks of the way down and of the least of work
    travel: Ints = field(default_factory=lambda: single(0))
    least: Ints = field(default_factory=lambda: single(0))
    fate: Fate | None = None
    leave: Ints | None = None  # when its node does, and drops it
    outcome: Outcome | None = None
    ahead: Journey | None = None


@dataclass
class Facts:
    """How a world treats an app's messages. `measured`: work takes what it takes on this host; `say` is told what a user should know."""

    nature: Nature
    measured: bool = False
    end: int = FOREVER
    say: Callable[[str], None] = lambda text: None
    moved: Callable[[], None] = lambda: None
    said: set[str] = field(default_factory=set)


class Mail(Protocol):
    """Where messages come from and replies go to."""

    sent: dict[str, Sent]

    @property
    def version(self) -> int:
        """Of the ServerApp's model."""

    def reply(self, sent: Sent, reply: Message) -> None:
        """A reply, or an error, is there now."""

    def expire(self, name: str) -> None:
        """A message's time to live is over."""


def single(number: int) -> Ints:
    return np.array([number], dtype=np.int64)


def asked(message: Message) -> bool:
    """A query is answered at once."""
    return message.metadata.message_type.partition(".")[0] == "query"


class Nodes:
    """Nodes and the clock, `now` in ticks. A node takes its next message when its last reply is in."""

    def __init__(self, mail: Mail, facts: Facts, clients: Clients, ledger: Ledger) -> None:
        self.mail, self.facts, self.nature, self.clients, self.ledger = mail, facts, facts.nature, clients, ledger
        nodes = self.nature.people.nodes
        self.now = self.jobs = 0
        self.turn = np.zeros(nodes, dtype=np.int64)
        self.state: dict[int, RecordDict] = {}
        self.lines: dict[int, deque[str]] = {}  # messages that wait, by node
        self.busy: dict[int, Work] = {}
        self.events: list[tuple[int, int, int]] = []  # time, kind, and node or message
        self.queue = EventQueue()
        self.counts = bool(self.nature.sample.any())  # samples take time
        self.traffic = Traffic(self.nature, self.queue, nodes) if self.nature.shared else None

    def present(self) -> Any:
        """bool [nodes]: who is there now."""
        return self.nature.present(self.mail.version, self.now)

    def at(self, seconds: float) -> int:
        """The tick so many seconds from now."""
        ticks = seconds * self.nature.per_second
        return FOREVER if ticks >= FOREVER else min(FOREVER, self.now + round(ticks))

    def send(self, sent: Sent) -> None:
        """Into its node's line, from which `start` takes it."""
        heappush(self.events, (self.at(sent.message.metadata.ttl), EXPIRY, int(sent.name)))
        self.lines.setdefault(sent.node, deque()).append(sent.name)

    def next(self, last: int) -> int:
        """When the next event is, or a time beyond `last`; work is computed where it might come back by then."""
        while self.events:
            time, kind, node = self.events[0]
            if self.traffic is not None and len(ends := self.traffic.peek(1, min(time, last)).time):
                return int(ends[0])
            if kind == JOB and time <= last and (work := self.busy[node]).ahead is None:
                heappop(self.events)
                heappush(self.events, (int(self._resolved(work).ends[0]), JOB, node))
                continue
            return time
        batch = NONE if self.traffic is None else self.traffic.peek(1, last)
        return int(batch.time[0]) if len(batch.time) else FOREVER

    def happen(self) -> None:
        """The next event, which is now."""
        if self.traffic is not None and len((batch := self.traffic.peek(1, self.now)).time):
            self.queue.drop(1)
            node = int(batch.node[0])
            self._end(node, GONE if self.traffic.gone[node] else None)
            return
        _, kind, number = heappop(self.events)
        if kind == JOB:
            self._end(number, None)
        else:
            self.mail.expire(str(number))

    def start(self, among: Iterable[int]) -> None:
        """Those nodes that are there and idle take their next messages; those that are away have theirs refused."""
        there, works = None, list[Work]()
        for node in sorted(among):
            line = self.lines.get(node)
            if not line or node in self.busy:
                continue
            if there is None:
                there = self.present()
            if not there[node]:
                for name in self.lines.pop(node):
                    self._fail(name, private.NODE_GONE, "the node is away")
                continue
            while line and (name := line.popleft()) not in self.mail.sent:  # expired meanwhile
                name = ""
            if name:
                works.append(self._take(node, name))
        if not works:
            return
        rows = [(work.sent.node, work.sent.job, work.turn, work.sent.version, work.sent.size) for work in works]
        nodes, jobs, turns, versions, sizes = np.array(rows, dtype=np.int64).T.copy()
        down = self.nature.bytes(nodes, sizes, turns, "down")
        self.ledger.add("dispatch", len(works), time=self.now, node=nodes, job=jobs, version=versions, bytes_down=down)
        self._foresee(works, nodes, turns, down)
        if self.traffic is None:
            for work in works:
                heappush(self.events, (self._soonest(work), JOB, work.sent.node))
            return
        ahead = [self._resolved(work) for work in works]
        doing, up, point = (np.concatenate(parts) for parts in zip(*((one.times.work, one.up, one.point) for one in ahead), strict=True))
        leave = None if ahead[0].leave is None else np.concatenate([cast(Ints, one.leave) for one in ahead])
        self.traffic.start(self.now, nodes, jobs, down, doing, up, point, leave)

    def _foresee(self, works: list[Work], nodes: Ints, turns: Ints, down: Ints) -> None:
        """What the world says of works that begin now, before anything of them is computed; of all at once, which is fast."""
        none = np.zeros(len(nodes), dtype=np.int64)
        travel, least = self.nature.travel(nodes, down, self.nature.down), self.nature.work(nodes, none, none, turns)
        fate, leave = self.nature.fate(nodes, turns), self.nature.leaves(nodes, none + self.now)
        for place, work in enumerate(works):
            own = slice(place, place + 1)
            work.down, work.travel, work.least = down[own], travel[own], least[own] * (not asked(work.sent.message))
            work.fate = None if fate is None else Fate(fate.crash[own], fate.point[own], fate.lost[own])
            work.leave = None if leave is None else leave[own]

    def _soonest(self, work: Work) -> int:
        """When work may be back at the earliest, whatever comes of it: until then nobody waits for its outcome."""
        known = not self.facts.measured and self.nature.faultless
        return int(work.at + work.travel[0] + (work.least[0] if known else 0))

    def _take(self, node: int, name: str) -> Work:
        sent = self.mail.sent[name]
        self.turn[node] += 1
        sent.job, self.jobs = self.jobs, self.jobs + 1
        turn, state = int(self.turn[node]), self.state.get(node)
        pending = self.clients.submit(node, turn, private.delivered(sent.message), private.copied(state) if state else RecordDict())
        self.busy[node] = work = Work(sent, turn, self.now, pending)
        return work

    def _resolved(self, work: Work) -> Journey:
        """What lies ahead of a message, now that its outcome must be known."""
        work.outcome, node = work.pending(), single(work.sent.node)
        if trace := work.outcome.trace:
            self._once(f"node {work.sent.node}: the ClientApp raised\n{trace.rstrip()}", trace)
        up = self.nature.bytes(node, single(private.size(work.outcome.reply)), single(work.turn), "up")
        parts = Times(work.travel, self._effort(work, node), self.nature.travel(node, up, self.nature.up))
        work.ahead = fated(single(work.at), parts, (work.down, up), work.fate, work.leave, self.nature.shared)
        return work.ahead

    def _effort(self, work: Work, node: Ints) -> Ints:
        """Ticks of a ClientApp's work; a query is answered at once."""
        assert work.outcome
        if self.facts.measured:
            return single(round(work.outcome.seconds * self.nature.per_second))
        if asked(work.sent.message) or not self.counts:
            return work.least
        count = examples(work.outcome.reply.content) if work.outcome.reply.has_content() else 0.0
        if count is None:
            self._once(f"warning: a reply of node {work.sent.node} has no `num-examples`: `world.compute.sample` counts none", "sample")
        return self.nature.work(node, single(0), single(int(count or 0)), single(work.turn))

    def _once(self, text: str, about: str) -> None:
        """Says it, unless something was said about the same."""
        if about not in self.facts.said:
            self.facts.said.add(about)
            self.facts.say(text)

    def _end(self, node: int, fate: int | None) -> None:
        """A node's work comes back, or does not."""
        work = self.busy.pop(node)
        ahead, outcome = work.ahead, work.outcome
        assert ahead and outcome
        fate = int(ahead.fate[0]) if fate is None else fate
        there = self.mail.sent.get(work.sent.name) is work.sent
        well = fate == WELL and there
        up = int(ahead.up[0]) if fate in (WELL, LOST) else 0
        about = {"node": node, "job": work.sent.job, "version": work.sent.version, "bytes_up": up}
        self.ledger.add("arrival" if well else "drop", time=self.now, **about, **self._parts(work, ahead))
        if well:
            self.state[node] = outcome.state
            self.mail.reply(work.sent, private.replied(outcome.reply, work.sent.message))
        else:
            self.ledger.dropped += 1
            if fate == CRASHED:
                self._fail(work.sent.name, private.CRASHED, "the ClientApp crashed")
            elif fate == GONE:
                self._fail(work.sent.name, private.NODE_GONE, "the node has left")
        self.start([node])

    def _parts(self, work: Work, ahead: Journey) -> dict[str, Any]:
        """Columns of an end: what each part of the time took."""
        node, whole = single(work.sent.node), single(self.now - work.at)
        until = ahead.times.down if self.traffic is None else self.traffic.arrived[node] - work.at
        down = np.minimum(whole, until)
        doing = np.minimum(np.maximum(whole - until, 0), ahead.times.work)
        parts = Times(down, doing, whole - down - doing)
        joules = self.nature.joules(node, parts)
        return parts._asdict() | ({} if joules is None else {"energy": joules})

    def _fail(self, name: str, code: int, reason: str) -> None:
        """An error is the reply."""
        if sent := self.mail.sent.get(name):
            self.mail.reply(sent, private.failed(sent.message, code, reason))
