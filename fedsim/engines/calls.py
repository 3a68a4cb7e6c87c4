"""What the driver of actors keeps of what it asked them for, so that it can be asked of another one."""

# n: nodes, m: jobs of a block

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.engines.actor import Block, Settled


@dataclass
class Given:
    """A block for an actor; `home` has its nodes' memories, None: anybody may do it. `own`: bytes held for it alone."""

    block: Block
    arrays: list[Any]
    home: int | None
    own: int
    title: str


@dataclass
class Call:
    """What would be repeated: what became of replies, and then a block, or what a method is told of nodes.

    `number`: the block's place in the work at hand, while it is awaited. `nodes`, `turn`: whose replies it leaves open.
    """

    settled: Settled
    given: Given | None = None
    number: int | None = None
    method: str = "settle"
    told: Any = None  # where it is
    nodes: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    turn: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def own(self) -> int:
        """Bytes that are held for it alone."""
        return self.given.own if self.given else 0


@dataclass
class Sync:
    """A copy on its way to another actor; with it, of the first `calls` calls only those count whose replies were open."""

    answers: list[Any]
    calls: int
    open: Ints
    nodes: Ints


@dataclass
class Share:
    """What the driver knows of an actor's work."""

    calls: list[Call] = field(default_factory=list)
    settled: Settled = field(default_factory=list)  # not yet told
    flying: int = 0
    begun: bool = False
    sync: Sync | None = None
    whole: bool = True  # its copy and `calls` tell all that its nodes remember


def still_open(calls: list[Call], open: Ints) -> list[Call]:
    """Those of calls with jobs that were open [n] then; their other jobs are dropped again."""
    found = []
    for call in calls:
        there = open[call.nodes] == call.turn
        if there.any() or call.number is not None:
            found.append(replace(call, settled=[]))
            if not there.all():
                found.append(Call([("drop", call.nodes[~there])]))
    return found


def dealt(cost: NDArray[Any], actors: int) -> Ints:
    """The share of each node [n]: in falling order of cost to and fro, so that all shares cost about the same."""
    order = np.argsort(-cost, kind="stable")
    place = np.arange(len(order)) % (2 * actors)
    home = np.empty(len(order), dtype=np.int64)
    home[order] = np.minimum(place, 2 * actors - 1 - place)
    return home


def keepers(hosts: list[str]) -> list[int | None]:
    """Who has the copy of each share: the next actor, of another machine where there is one; None: the driver's own process."""
    found = list[int | None]()
    for k, host in enumerate(hosts):
        others = [(k + step) % len(hosts) for step in range(1, len(hosts))]
        found.append(next(iter([one for one in others if hosts[one] != host] or others), None))
    return found
