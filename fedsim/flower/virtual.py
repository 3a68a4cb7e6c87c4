"""Flower's Grid over simulated nodes: a ServerApp's messages travel, are worked on and come back by a virtual clock."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from flwr.app import Message

from fedsim.base.clock import FOREVER
from fedsim.base.errors import RunError
from fedsim.federation.ledger import Ledger
from fedsim.flower import private
from fedsim.flower.clients import Clients
from fedsim.flower.course import Course
from fedsim.flower.grid import OwnGrid, node_id
from fedsim.flower.nodes import Facts, Nodes, Sent

EPOCH = 2**30  # the virtual clock's start in Unix time: 10 January 2004

IDLE = 100_000  # sleeps in a row with nothing under way, after which it is asked whether there is anything to wait for


class Ended(BaseException):
    """The time of the run is up. No `Exception`, so that no app takes it for an error of its own."""


class VirtualGrid(OwnGrid):
    """One run's Grid.

    A node takes its next message when its last reply is in. Time passes in `send_and_receive`, until all replies are in; in `advance`, of
    a sleep; and in a pull that finds nothing where one before it did, at the same time: until there is something. Nobody hears of a lost
    reply before the message expires (error 3); of a node that is away or leaves (5), or a ClientApp that crashes (8), at once.
    """

    def __init__(self, run: private.Run, facts: Facts, clients: Clients, ledger: Ledger, course: Course) -> None:
        self._run, self.facts, self.course = run, facts, course
        self.lock = threading.RLock()
        self.ids = [node_id(node) for node in range(facts.nature.people.nodes)]
        self.numbers = {name: node for node, name in enumerate(self.ids)}
        self.sent: dict[str, Sent] = {}
        self.ready: set[str] = set()
        self.told = self.idle = 0
        self.errors: Counter[int] = Counter()  # by Flower's code
        self.empty: tuple[int, int] | None = None  # when a pull found nothing: the time, and messages sent by then
        self.nodes = Nodes(self, facts, clients, ledger)

    # Flower's

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are there, by number."""
        with self._turn():
            there = self.nodes.present()
            return [self.ids[node] for node in np.flatnonzero(there)] if not there.all() else [*self.ids]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Ids of messages in their order, None for a node that there is not. Raises ValueError for a time to live that is none."""
        with self._turn():
            self.course.look()
            sizes: dict[int, tuple[Any, int]] = {}
            ids = [self._push(message, sizes) for message in messages]
            self.nodes.start({self.sent[name].node for name in ids if name is not None})
        if None in ids:
            self.facts.say(f"{ids.count(None)} of {len(ids)} messages were for nodes that there are not")
        return cast(list[str], ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there, each once."""
        ids = {name for name in message_ids if name is not None}
        with self._turn():
            self.course.look()
            mark = (self.now, self.told)
            if self._none(ids) and self.empty == mark:
                self._until(lambda: not self._none(ids))
            self.empty = mark if self._none(ids) else None
            return self._taken(ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Replies in the order of the messages, of those that came before the timeout, in virtual seconds."""
        with self._turn():
            ids = [name for name in self.push_messages(messages) if name is not None]
            end = FOREVER if timeout is None else self.nodes.at(timeout)
            left = [*ids]

            def done() -> bool:
                while left and (left[-1] in self.ready or left[-1] not in self.sent):
                    left.pop()
                return not left

            self._until(done, end)
            found = {
                reply.metadata.reply_to_message_id: reply for reply in self._taken({*ids} & (self.ready | ({*ids} - self.sent.keys())))
            }
            for name in ids:
                if sent := self.sent.get(name):  # nobody asks for it again
                    self._over(sent)
            return [found[name] for name in ids if name in found]

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread of the ServerApp is in here, and goes on as it was."""
        with self.lock:
            try:
                yield
            finally:
                self.nodes.clients.back()

    # The clock

    @property
    def now(self) -> int:
        """Ticks."""
        return self.nodes.now

    @property
    def seconds(self) -> float:
        return self.now / self.facts.nature.per_second

    @property
    def version(self) -> int:
        return self.course.version

    def advance(self, seconds: float) -> None:
        """Time passes. Raises Ended where the run's is up, RunError where the ServerApp waits for what will never be."""
        with self._turn():
            self.course.look()
            self.idle = 0 if self.nodes.busy else self.idle + 1
            if self.idle >= IDLE and self._still():
                raise RunError(f"the ServerApp slept {IDLE:,} times, {self.told:,} messages were sent before, and nothing will ever happen")
            self._until(lambda: False, self.nodes.at(seconds))

    def wait(self, seconds: float) -> None:
        """A strategy sleeps because nodes are too few. Raises RunError where no more will come."""
        if self._still():
            there = len(list(self.get_node_ids()))
            raise RunError(f"the strategy waits for more nodes than there are: {there} of {len(self.ids)}, and no more will come")
        self.advance(seconds)

    def _still(self) -> bool:
        """Will the nodes that are there stay those, whatever time passes?"""
        calendar = self.facts.nature.calendar
        return calendar is None or calendar.comes(self.now) >= FOREVER

    def _until(self, done: Callable[[], bool], end: int = FOREVER) -> None:
        """Lets happen what happens, until it is `done`, or the time is `end`."""
        last = min(end, self.facts.end)
        while not done():
            self.course.moves()
            if (time := self.nodes.next(last)) >= FOREVER <= last:
                raise RunError(f"the ServerApp waits for what will never be: nothing happens after {self.seconds:g} s")
            if time > last:
                self.nodes.now = max(self.now, last)
                if last == self.facts.end < FOREVER and end >= last:
                    raise Ended
                break
            self.nodes.now = max(self.now, time)
            self.nodes.happen()
            self.facts.moved()

    # Messages

    def _push(self, message: Message, sizes: dict[int, tuple[Any, int]]) -> str | None:
        about = message.metadata
        if about.ttl <= 0:
            raise ValueError(f"a message with a time to live of {about.ttl:g} s")
        node = self.numbers.get(about.dst_node_id)
        if node is None or about.reply_to_message_id or not message.has_content():
            return None
        self.told += 1
        name = str(self.told)
        version = self.course.pushed(message)
        private.number(message, name)
        about.created_at = EPOCH + self.seconds
        if id(message.content) not in sizes:
            sizes[id(message.content)] = message.content, private.size(message)
        self.sent[name] = sent = Sent(name, message, node, version, sizes[id(message.content)][1])
        self.nodes.send(sent)
        return name

    def _none(self, ids: set[str]) -> bool:
        """Is there nothing to say of these?"""
        return bool(ids) and ids <= self.sent.keys() and not ids & self.ready

    def _taken(self, ids: set[str]) -> list[Message]:
        """Replies that are there, and error 3 for messages that are no more."""
        found = sorted(ids & self.ready, key=int)
        self.ready -= {*found}
        replies = []
        for name in found:
            sent = self.sent.pop(name)
            assert sent.reply
            self._over(sent, sent.reply)
            replies.append(sent.reply)
        return replies + [private.unknown(name, self._run.run_id) for name in sorted(ids - self.sent.keys() - {*found})]

    def _over(self, sent: Sent, reply: Message | None = None) -> None:
        """The ServerApp has the reply, or will never have one."""
        if sent.open:
            sent.open = False
            self.course.ended(sent.message, sent.version, sent.node, sent.job, reply)

    # The nodes'

    def reply(self, sent: Sent, reply: Message) -> None:
        """A reply, or an error, is there now."""
        private.number(reply, f"{sent.name}.0")
        about, to = reply.metadata, sent.message.metadata
        about.created_at = EPOCH + self.seconds
        about.ttl = max(0.0, to.created_at + to.ttl - about.created_at)
        if reply.has_error():
            self.errors[reply.error.code] += 1
        sent.reply = reply
        self.ready.add(sent.name)

    def expire(self, name: str) -> None:
        """A message's time to live is over."""
        if sent := self.sent.pop(name, None):
            self.errors[private.EXPIRED] += sent.reply is None
            self.ready.discard(name)
            self._over(sent)
