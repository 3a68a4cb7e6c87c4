"""Replicated parameters: every node holds the same state bit by bit, and only what changes it travels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from fedsim.clock import Ints
from fedsim.errors import SettingError
from fedsim.messages import MessageLog
from fedsim.part import setting
from fedsim.rows import Rows
from fedsim.strategy import State, Strategy
from fedsim.task import Task


@dataclass(frozen=True)
class Replicated(Strategy):
    """Methods of which each node makes the merge itself: it hears the others' messages, never the state, which it has.

    The hearer stands for all replicas: what it broadcasts is handed to jobs as one row, and not billed. All start from one model.
    """

    abstract: ClassVar[bool] = True
    one_hearer: ClassVar[bool] = True

    catch_up: Literal["weights", "replay"] = setting(
        "weights", "what a node that joins or missed merges hears: the whole state, or the log of all messages that it has not taken in"
    )

    def start(self, x: Tensor, task: Task) -> State:
        if task.buffers.size:
            raise SettingError("task.model", f"has running statistics, which would differ between the replicas of `{self.name}`")
        return {"model": x}

    def fits(self) -> None:
        """Raises SettingError where schedule, downlink or privacy have no meaning with replicas."""
        if self.privacy is not None:
            raise SettingError("privacy", f"a server adds its noise, and under `{self.name}` nodes hear each other's messages themselves")
        if not self.schedule.rounds or self.schedule.staleness_limit() != 0:
            raise SettingError("schedule", f"`{self.name}` needs replicas that are equal when work begins: `rounds` with `late: drop`")
        if not self.downlink.lossless:
            raise SettingError("downlink", f"under `{self.name}` nodes hear each other's messages as the uplink made them")


class Replicas:
    """What each node has taken in, as a count; and so what it has still to hear, in bytes. Its own messages it knows; `log` has all."""

    keeps: ClassVar[tuple[str, ...]] = ("merged", "heard", "own", "version", "log")

    def __init__(self, nodes: int, replay: bool, log: MessageLog) -> None:
        self.replay, self.log = replay, log
        self.merged = 0  # messages so far
        self.heard = np.zeros(nodes, dtype=np.int64)  # of them, when each node last heard
        self.own = np.zeros(nodes, dtype=np.int64)  # its own since then
        self.version = np.zeros(nodes, dtype=np.int64)  # merges that it had taken in then

    def hear(self, nodes: Ints, version: int, message: int, state: int) -> Ints:
        """Nodes take in all that was merged before this version; the bytes of each [k], by those of a message and of the whole state."""
        owed = (self.merged - self.heard[nodes] - self.own[nodes]) * message
        if not self.replay:
            owed = np.where(version - self.version[nodes] > 1, state, owed)
        self.heard[nodes], self.own[nodes], self.version[nodes] = self.merged, 0, version
        return owed

    def take(self, version: int, senders: Ints, jobs: Ints, parts: Rows, state: Rows) -> None:
        """Merge number `version` took in the messages of these nodes [m] and jobs, with parts [m, ...], and led to a state."""
        self.merged += len(senders)
        np.add.at(self.own, senders, 1)
        self.log.add(version, senders, jobs, parts, state)


class Stream:
    """What each node that follows the server's state has heard of it, as a version: it is told what it missed. The first state it knows."""

    keeps: ClassVar[tuple[str, ...]] = ("heard",)

    def __init__(self, nodes: int, packet: int, whole: int) -> None:
        """Bytes of what a merge tells, and of the whole state, which a node hears where that is less."""
        self.packet, self.whole = packet, whole
        self.heard = np.zeros(nodes, dtype=np.int64)

    def hear(self, nodes: Ints, version: int) -> Ints:
        """Nodes take in all that was told before this version; the bytes of each [k]."""
        owed = np.minimum((version - self.heard[nodes]) * self.packet, self.whole)
        self.heard[nodes] = version
        return owed
