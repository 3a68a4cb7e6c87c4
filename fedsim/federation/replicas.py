"""What nodes have still to hear, in bytes: of the others' messages where all are replicas, of the state's changes where they follow it."""

from typing import ClassVar

import numpy as np

from fedsim.base.clock import Ints
from fedsim.federation.messages import MessageLog
from fedsim.method.companion import Companion, Merged


class Replicas(Companion):
    """What each node has taken in, as a count; and so what it has still to hear, in bytes. Its own messages it knows; `log` has all."""

    keeps: ClassVar[tuple[str, ...]] = ("merged_so_far", "heard", "own", "version", "log")

    def __init__(self, nodes: int, replay: bool, log: MessageLog, message: int, state: int) -> None:
        """`replay`: who missed merges hears their messages, else the whole state; bytes of a message, and of that state."""
        self.replay, self.log, self.message, self.state = replay, log, message, state
        self.merged_so_far = 0  # messages
        self.heard = np.zeros(nodes, dtype=np.int64)  # of them, when each node last heard
        self.own = np.zeros(nodes, dtype=np.int64)  # its own since then
        self.version = np.zeros(nodes, dtype=np.int64)  # merges that it had taken in then

    def billed(self, nodes: Ints, version: int, size: Ints) -> Ints:
        """Nodes take in all that was merged before this version."""
        owed = (self.merged_so_far - self.heard[nodes] - self.own[nodes]) * self.message
        if not self.replay:
            owed = np.where(version - self.version[nodes] > 1, self.state, owed)
        self.heard[nodes], self.own[nodes], self.version[nodes] = self.merged_so_far, 0, version
        return owed

    def merged(self, merged: Merged) -> None:
        """The senders' messages led to a state."""
        news = merged.news
        self.merged_so_far += len(news.node)
        np.add.at(self.own, news.node, 1)
        self.log.add(merged.version, news.node, news.job, merged.parts, merged.state)

    def flush(self) -> None:
        self.log.flush()


class Stream(Companion):
    """What each node that follows the server's state has heard of it, as a version: it is told what it missed. The first state it knows."""

    keeps: ClassVar[tuple[str, ...]] = ("heard",)

    def __init__(self, nodes: int, packet: int, whole: int) -> None:
        """Bytes of what a merge tells, and of the whole state, which a node hears where that is less."""
        self.packet, self.whole = packet, whole
        self.heard = np.zeros(nodes, dtype=np.int64)

    def billed(self, nodes: Ints, version: int, size: Ints) -> Ints:
        """Nodes take in all that was told before this version."""
        owed = np.minimum((version - self.heard[nodes]) * self.packet, self.whole)
        self.heard[nodes] = version
        return owed
