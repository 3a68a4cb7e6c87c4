"""A Flower Grid in the place of fedsim's own network: orders are messages to nodes, and what happened is asked for."""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from queue import Empty
from time import monotonic, sleep, time
from typing import NamedTuple, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim import __version__
from fedsim.base.errors import BrokenMessage, FedsimError, HostError, blame
from fedsim.base.visible import one_line
from fedsim.deploy.handshake import Doorkeeper
from fedsim.flower import envelope, private
from fedsim.transport.messages_pb2 import Order, Reply, Settled
from fedsim.transport.nodes import Nodes, parse
from fedsim.transport.objects import Store
from fedsim.transport.roll import Present
from fedsim.transport.session import Came, Carried, Event, Joined, Left

T = TypeVar("T")
NAP, LOOK = 0.1, 1.0  # seconds between looks for replies, and between looks who is there
AGAIN = 30.0  # seconds until a node that could not take part is asked again
QUESTION = 300.0  # seconds that a question and its answer may take
LASTING = 30 * 86400.0  # seconds that an order and its reply may take where nothing says how long


@dataclass
class Guest:
    """A Flower node, and what fedsim knows of it. `words`: what became of its jobs' replies, until it has heard that."""

    id: int
    nodes: tuple[int, ...] = ()
    facts: bytes = b""
    version: str = ""
    state: str = "preparing"
    since: float = field(default_factory=time)
    why: str = ""
    again: float = 0.0  # when it may be asked again
    words: dict[int, bool] = field(default_factory=dict)
    carried: Carried = field(default_factory=Carried)

    @property
    def worker(self) -> bytes:
        return self.id.to_bytes(8, "little")

    @property
    def name(self) -> str:
        return f"Flower node {self.id}"

    def turns(self, state: str, why: str = "") -> None:
        self.state, self.why, self.since = state, why, time()


class Sent(NamedTuple):
    """A message that is out: the jobs that it is about (none: a question), and the words that went along."""

    guest: Guest
    jobs: tuple[int, ...]
    words: tuple[int, ...]


class Asked:
    """Events of a network that says nothing by itself."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look, self.queue = look, deque[Event]()

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        """The next one. Raises queue.Empty where none came in so many seconds."""
        end = None if timeout is None else monotonic() + timeout
        while True:
            self.look()
            if self.queue:
                return self.queue.popleft()
            if not block or (end is not None and monotonic() >= end):
                raise Empty
            sleep(NAP if end is None else max(0.0, min(NAP, end - monotonic())))

    def get_nowait(self) -> Event:
        """The next one. Raises queue.Empty where there is none."""
        return self.get(block=False)


class GridNetwork:
    """Each Flower node is a worker. It is asked what it hosts and found, and joins where that fits; who could not is asked again later.

    Flower has no cancel: what nobody waits for any more is computed all the same, and thrown away.
    """

    full = remembers = False

    def __init__(
        self,
        grid: Grid,
        store: Store,
        door: Doorkeeper,
        beside: str,
        verdict: Callable[[int], str | None],
        patience: float | None,
        say: Callable[[str], None],
    ) -> None:
        """`beside`: where in the app's folder own modules lie; `patience`: seconds that a job may take."""
        self.grid, self.store, self.door, self.verdict, self.say = grid, store, door, verdict, say
        self.about = envelope.About(door.run, door.nodes, beside, door.scenario)
        self.lasting = LASTING if patience is None else patience
        self.events = Asked(self.look)
        self.guests: dict[bytes, Guest] = {}
        self.hosts: dict[int, Guest] = {}  # by node, who is there for it
        self.sent: dict[str, Sent] = {}  # by Flower's id of the message
        self.objects: dict[int, bytes] = {}  # by job, its reply's content
        self.uses: Counter[bytes] = Counter()
        self.looked = self.pulled = 0.0

    def start(self) -> list[str]:
        return ["Flower's SuperLink"]

    def stop(self, reason: str, drained: bool, grace: float = 5.0, failed: bool = False) -> None:
        """Nothing: the run ends with its ServerApp."""

    @property
    def roll(self) -> list[Present]:
        """Who works here, is preparing, or lost."""
        out = Counter(sent.guest.worker for sent in [*self.sent.values()] for _ in sent.jobs)
        return [
            Present(
                *(one.worker, one.name, "", one.nodes, one.version, one.facts, one.state, one.since, one.why, None, None),
                *(replace(one.carried), out[one.worker], 0),
            )
            for one in [*self.guests.values()]
            if one.nodes
        ]

    # Out

    def order(self, worker: bytes, order: Order) -> None:
        guest = self.guests[worker]
        files = {part.object.hash: self.store.path(part.object.hash) for part in order.parts}
        words = tuple(guest.words)
        settled = Settled(kept=[job for job in words if guest.words[job]], gone=[job for job in words if not guest.words[job]])
        content = envelope.ordered(self.about, order, settled, files)
        guest.carried.sent(order.ByteSize() + sum(part.object.size for part in order.parts))
        if not self._push(guest, "train", content, str(order.jobs[0].round), tuple(job.id for job in order.jobs), words):
            self._gone(guest, "Flower takes no message for it")

    def settle(self, worker: bytes, kept: Sequence[int], gone: Sequence[int]) -> None:
        if worker in self.guests:
            self.guests[worker].words |= dict.fromkeys(gone, False) | dict.fromkeys(kept, True)
        for job in (*kept, *gone):
            if name := self.objects.pop(job, None):
                self.uses[name] -= 1
                if not self.uses[name]:
                    self.store.drop(name)

    def cancel(self, worker: bytes, jobs: Sequence[int]) -> None:
        self.settle(worker, (), jobs)

    def _push(self, guest: Guest, kind: str, content: RecordDict, group: str, jobs: tuple[int, ...], words: tuple[int, ...]) -> bool:
        """Sends a message. Is it on its way?"""
        message = Message(content, dst_node_id=guest.id, message_type=kind, ttl=self.lasting if jobs else QUESTION, group_id=group)
        name = next(iter(_done(lambda: self.grid.push_messages([message]))), None)
        if name is not None:
            self.sent[name] = Sent(guest, jobs, words)
        return name is not None

    # In

    def look(self) -> None:
        """Takes replies that are there, and sees who is; not more often than is due."""
        now = monotonic()
        if now - self.looked >= LOOK:
            self.looked = now
            self._call({*_done(self.grid.get_node_ids)})
        if self.sent and now - self.pulled >= NAP:
            self.pulled = now
            for reply in _done(lambda: self.grid.pull_messages([*self.sent])):
                if sent := self.sent.pop(reply.metadata.reply_to_message_id, None):
                    self._answered(sent, reply)

    def _call(self, there: set[int]) -> None:
        """These nodes are there by Flower's knowledge."""
        known = {guest.id: guest for guest in self.guests.values()}
        for guest in known.values():
            if guest.state == "there" and guest.id not in there:
                self._gone(guest, "Flower says that it is offline")
        asked = {sent.guest.id for sent in self.sent.values() if not sent.jobs}
        for name in sorted(there - asked):
            guest = known.get(name) or Guest(name)
            if guest.state != "there" and monotonic() >= guest.again:
                self.guests[guest.worker] = guest
                guest.again = monotonic() + AGAIN
                self._push(guest, "query", RecordDict({"run": self.about.record}), "", (), ())

    def _answered(self, sent: Sent, reply: Message) -> None:
        guest, why = sent.guest, ""
        if reply.has_error():
            why = one_line(f"its ClientApp: {reply.error.reason} (Flower's error {reply.error.code})")
            if reply.error.code == private.NODE_GONE and guest.state == "there":
                self._gone(guest, "Flower says that it is gone")
        if not sent.jobs:
            return self._refuse(guest, why) if why else self._found(guest, reply.content)
        answered = set[int]()
        try:
            for one, content in [] if why else envelope.answers(reply.content):
                self._came(guest, one, content)
                answered.update(one.jobs)
        except BrokenMessage as error:
            why = f"its reply is broken: {error}"
        if not reply.has_error():
            guest.words = {job: kept for job, kept in guest.words.items() if job not in sent.words}
        if lacking := [job for job in sent.jobs if job not in answered]:
            head = json.dumps({"error": why or "its reply lacks jobs"}).encode()
            self.events.queue.append(Came(guest.worker, Reply(jobs=lacking, head=head), None))

    def _came(self, guest: Guest, reply: Reply, content: bytes) -> None:
        """Raises BrokenMessage where the content is not what the reply says, or a job is answered twice."""
        if len({*reply.jobs}) < len(reply.jobs):
            raise BrokenMessage("it answers a job twice")
        guest.carried.came(reply.ByteSize() + len(content))
        guest.carried.jobs += len(reply.jobs)
        if not content:
            self.events.queue.append(Came(guest.worker, reply, None))
            return
        found = self.store.put(content)
        if found.hash != reply.object.hash:
            if not self.uses[found.hash]:
                self.store.drop(found.hash)
            raise BrokenMessage("its checksum is wrong")
        for job in {*reply.jobs} - self.objects.keys():
            self.objects[job] = found.hash
            self.uses[found.hash] += 1
        self.events.queue.append(Came(guest.worker, reply, self.store.path(found.hash)))

    # Who comes and goes

    def _found(self, guest: Guest, content: RecordDict) -> None:
        """What a node has found; it joins where that fits."""
        try:
            facts = envelope.found(content)
            told = json.loads(facts)
            if "refused" in told:
                return self._refuse(guest, str(told["refused"]))
            nodes = parse(told["nodes"], word="") or Nodes()
            waiting = [int(job) for job in told["waiting"]]
            guest.nodes, guest.facts, guest.version = (*nodes,), facts, str(told["version"])
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
            return self._refuse(guest, "what it says it found makes no sense")
        if guest.version != __version__:
            return self._refuse(guest, f"it has fedsim {guest.version}, the server {__version__}; install the same version at both ends")
        if not nodes or guest.nodes[-1] >= self.door.nodes:
            return self._refuse(guest, f"it hosts nodes {nodes}; this run has nodes 0..{self.door.nodes - 1}")
        if other := next((self.hosts[node] for node in nodes if node in self.hosts), None):
            both = Nodes.of({*nodes} & {*other.nodes}).named
            return self._refuse(guest, f"{both} is hosted by {other.name} already; give each SuperNode a partition-id of its own")
        if refusal := self.door.admit(guest, facts):
            return self._refuse(guest, f"{refusal.cause}; {refusal.cure}")
        self.hosts |= dict.fromkeys(nodes, guest)
        guest.turns("there")
        guest.words |= {job: verdict == "kept" for job in waiting if (verdict := self.verdict(job) or "gone") != "open"}
        self.events.queue.append(Joined(guest.worker, guest.name, guest.nodes, facts))

    def _refuse(self, guest: Guest, why: str) -> None:
        """Said where it is news."""
        why = one_line(why)
        if guest.why != why:
            self.say(f"{guest.name} can't take part: {why}")
        guest.nodes = ()
        guest.turns("refused", why)

    def _gone(self, guest: Guest, why: str) -> None:
        self.hosts = {node: other for node, other in self.hosts.items() if other is not guest}
        guest.turns("lost", why)
        guest.again = 0.0
        self.events.queue.append(Left(guest.worker, guest.nodes, why))


def _done(call: Callable[[], Iterable[T]]) -> Iterable[T]:
    """Raises HostError where the Grid can't: nothing of the run is to blame, and it may go on later."""
    try:
        return call()
    except Exception as error:
        raise HostError(f"Flower's Grid: {blame(error)}") from error


def refuse_peers(name: str) -> FedsimError:
    """What is said of a scenario without a server."""
    return FedsimError(f"schedule: `{name}` has nodes that talk to each other, which Flower's can't; `fedsim serve` and `fedsim join` can")
