"""Flower's Grid over a hub: a ServerApp's messages go out as orders, and replies are there as soon as they came."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from heapq import heappop, heappush
from math import inf
from time import monotonic, time
from typing import Any, cast

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedsim.base.errors import BrokenMessage
from fedsim.flower import private
from fedsim.transport.hub import Hub
from fedsim.transport.messages_pb2 import Job, Object, Order, Part
from fedsim.transport.objects import Store
from fedsim.transport.session import Came, Event, Joined, Left


def node_id(node: int) -> int:
    """Flower's id of a node: the same in each run, and within what a signed 64-bit number holds."""
    return int.from_bytes(sha256(f"fedsim node {node}".encode()).digest()[:8], "big") >> 1


class Shelf:
    """Contents in a store, each for as long as somebody needs it."""

    def __init__(self, store: Store) -> None:
        self.store, self.lock = store, threading.Lock()
        self.uses: Counter[bytes] = Counter()

    def put(self, data: bytes) -> Object:
        """Raises RunError where it can't be written."""
        with self.lock:
            content = self.store.put(data)
            self.uses[content.hash] += 1
            return content

    def take(self, name: bytes) -> None:
        """One more needs it."""
        with self.lock:
            self.uses[name] += 1

    def release(self, name: bytes) -> None:
        with self.lock:
            self.uses[name] -= 1
            if not self.uses[name]:
                del self.uses[name]
                self.store.drop(name)


@dataclass
class Sent:
    """A message that went out, without its content, until its reply is pulled."""

    message: Message
    job: int
    worker: bytes | None = None
    content: bytes = b""  # by hash
    reply: bytes | tuple[int, str] | None = None  # or code and reason of an error
    came: float = 0.0


class OwnGrid(Grid):
    """What all Grids of ours have alike: the run that they are for, and messages of it."""

    _run: private.Run

    def set_run(self, run: private.Run) -> None:
        if not isinstance(run, private.Run):
            raise TypeError(f"`run` must be a Run, not {type(run).__name__}")
        self._run = run

    @property
    def run(self) -> private.Run:
        return private.Run(**vars(self._run))

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class HubGrid(OwnGrid):
    """One run's Grid. Methods may be called from several threads.

    Like Flower's deployment: a message to a node that nobody knows gets None for an id; a reply is pulled once, and who asks again
    gets error 3. Unlike it: a pull may wait, and nothing polls; a reply that came stays when its node has gone; `send_and_receive` gives
    replies in the order of the messages, so that sums of floats come out the same whoever is first.
    """

    def __init__(self, hub: Hub, run: private.Run, say: Callable[[str], None] = lambda text: None) -> None:
        """`hub.events` belong to it from now on."""
        self.hub, self.say, self._run = hub, say, run
        self.shelf = Shelf(hub.desk.store)
        self.news = threading.Condition()  # guards what follows
        self.numbers: dict[int, int] = {}  # of nodes that were there once, by Flower's id
        self.host: dict[int, bytes] = {}  # who works for a node that is there
        self.sent: dict[str, Sent] = {}
        self.ready: set[str] = set()  # of these, which have a reply
        self.ends: list[tuple[float, str]] = []  # when messages expire, as a heap
        self.kept: set[int] = set()  # jobs whose replies were taken
        self.last = 0
        threading.Thread(target=self._listen, name="fedsim grid", daemon=True).start()

    def close(self) -> None:
        """Listens no more."""
        self.hub.events.put(cast(Any, None))

    # Flower's

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are there, by number."""
        with self.news:
            return [node_id(node) for node in sorted(self.host)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Ids of messages in their order. Raises ValueError for a time to live that is none."""
        ids: list[str | None] = []
        packed: dict[int, tuple[RecordDict, Object]] = {}
        try:
            for message in messages:
                if message.metadata.ttl <= 0:
                    raise ValueError(f"a message with a time to live of {message.metadata.ttl:g} s")
                ids.append(self._push(message, packed))
        finally:
            for _, content in packed.values():
                self.shelf.release(content.hash)
        if None in ids:
            self.say(f"{ids.count(None)} of {len(ids)} messages were for nodes that there are not, or had expired")
        return cast(list[str], ids)

    def pull_messages(self, message_ids: Iterable[str], *, wait: float = 0.0) -> Iterable[Message]:
        """Replies that are there, each once. With `wait` it returns with the first, or after so many seconds."""
        ids = {name for name in message_ids if name is not None}
        end = monotonic() + wait
        with self.news:
            while True:
                self._expire()
                strange, found = ids - self.sent.keys(), ids & self.ready
                left = end - monotonic()
                if found or strange or not ids or left <= 0:
                    break
                self.news.wait(min(left, self.ends[0][0] - time() if self.ends else inf, threading.TIMEOUT_MAX))
            self.ready -= found
            taken = sorted((self.sent.pop(name) for name in found), key=lambda sent: sent.job)
        return [*map(self._reply, taken), *(private.unknown(name, self._run.run_id) for name in sorted(strange))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        ids = [name for name in self.push_messages(messages) if name is not None]
        end = monotonic() + (inf if timeout is None else timeout)
        found: dict[str, Message] = {}
        while len(found) < len(ids) and (left := end - monotonic()) > 0:
            replies = self.pull_messages({*ids} - found.keys(), wait=left)
            found |= {reply.metadata.reply_to_message_id: reply for reply in replies}
        return [found[name] for name in ids if name in found]

    # Ours

    def wait_for_nodes(self, count: int) -> None:
        """Returns when so many are there."""
        with self.news:
            self.news.wait_for(lambda: len(self.host) >= count)

    def verdict(self, job: int) -> str | None:
        """For the hub."""
        return "kept" if job in self.kept else None

    def _push(self, message: Message, packed: dict[int, tuple[RecordDict, Object]]) -> str | None:
        about = message.metadata
        end = about.created_at + about.ttl
        with self.news:
            node = self.numbers.get(about.dst_node_id)
        if node is None or end <= time() or about.reply_to_message_id or not message.has_content():
            return None
        if id(message.content) not in packed:
            packed[id(message.content)] = message.content, self.shelf.put(private.packed(message.content))
        content = packed[id(message.content)][1]
        with self.news:
            self.last += 1
            private.number(message, name := str(self.last))
            sent = self.sent[name] = Sent(private.bare(message), self.last, self.host.get(node))
            heappush(self.ends, (end, name))
            if sent.worker is None:
                self._fail(sent, private.NODE_GONE, "its node is not there")
                return name
            sent.content = content.hash
            self.shelf.take(content.hash)
            job, part = Job(id=sent.job, node=node), Part(name="content", object=content)
            self.hub.order(sent.worker, Order(kind="flower", jobs=[job], parts=[part], head=private.head(message)))
            return name

    def _reply(self, sent: Sent) -> Message:
        """The reply as Flower gives it."""
        name = sent.message.metadata.message_id
        if not isinstance(sent.reply, bytes):
            return private.failed(sent.message, *cast(tuple[int, str], sent.reply))
        try:
            reply = private.answered(sent.reply, sent.message, f"{name}.0")
        except BrokenMessage as error:
            return private.failed(sent.message, private.REPLY_EXPIRED, str(error))
        if sent.came + reply.metadata.ttl < time():
            return private.failed(sent.message, private.REPLY_EXPIRED, "the reply has expired")
        return reply

    def _expire(self) -> None:
        """Forgets messages whose time is over, answered or not."""
        while self.ends and self.ends[0][0] <= time():
            name = heappop(self.ends)[1]
            if sent := self.sent.pop(name, None):
                self.ready.discard(name)
                if sent.reply is None:
                    self._done(sent)
                    self.hub.cancel(cast(bytes, sent.worker), [sent.job])

    def _fail(self, sent: Sent, code: int, reason: str) -> None:
        sent.reply = code, reason
        self._done(sent)

    def _done(self, sent: Sent) -> None:
        """Nobody computes it any more."""
        if sent.content:
            self.shelf.release(sent.content)
            sent.content = b""
        if sent.reply is not None:
            self.ready.add(str(sent.job))

    def _listen(self) -> None:
        """Takes what the hub tells, in a thread."""
        while (event := self.hub.events.get()) is not None:
            content = event.file.read_bytes() if isinstance(event, Came) and event.file else None
            with self.news:
                self._happened(event, content)
                self.news.notify_all()

    def _happened(self, event: Event, content: bytes | None) -> None:
        match event:
            case Joined(worker, name, nodes, _):
                self.say(f"{name}: {_named(nodes)} joined")
                self.host |= dict.fromkeys(nodes, worker)
                self.numbers |= {node_id(node): node for node in nodes}
            case Left(worker, nodes, why):
                self.say(f"{_named(nodes)} lost: {why}")
                self.host = {node: other for node, other in self.host.items() if other != worker}
                for sent in [sent for sent in self.sent.values() if sent.worker == worker and sent.reply is None]:
                    self._fail(sent, private.NODE_GONE, f"its node has gone: {why}")
            case Came(worker, reply, file):
                for job in reply.jobs:
                    self._came(worker, job, content or (private.UNKNOWN, reply.head.decode("utf-8", "replace")))
                if file:
                    self.hub.desk.store.drop(reply.object.hash)

    def _came(self, worker: bytes, job: int, told: bytes | tuple[int, str]) -> None:
        sent = self.sent.get(str(job))
        if sent is not None and sent.reply is None:
            sent.reply, sent.came = told, time()
            self.kept.add(job)
            self._done(sent)
        kept = job in self.kept
        self.hub.settle(worker, [job] if kept else [], [] if kept else [job])


def _named(nodes: tuple[int, ...]) -> str:
    return f"node {nodes[0]}" if len(nodes) == 1 else f"{len(nodes)} nodes ({nodes[0]} to {nodes[-1]})"
