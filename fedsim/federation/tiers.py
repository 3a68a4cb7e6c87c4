"""Edge servers between nodes and the server: an edge hears nodes as a server does, and is heard as a node is."""

# e: edges of all levels, those of the first one first; d: parameters

from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.keys import fold
from fedsim.base.memory import afford
from fedsim.base.rows import Rows
from fedsim.base.text import size
from fedsim.federation.federation import Federation
from fedsim.federation.link import Link
from fedsim.method.contract import sent_of
from fedsim.method.inbox import Inbox
from fedsim.schedule.hierarchy import Hierarchy
from fedsim.schedule.news import News
from fedsim.settings.values import Floats


class Tiers(Federation):
    """The model of an edge is the one it `heard` last from above and what its own took it on since (`gone`), [e, d] each; `behind` [e] is
    the share of all samples behind that, `since` [e] how many merges the server had done when it heard, of `merges`. The state is the
    server's. Without a server the edges are the hearers, and have the method's state.
    """

    schedule: Hierarchy
    keeps: ClassVar[tuple[str, ...]] = (*Federation.keeps, "heard", "gone", "behind", "since", "merges", "back")

    def __init__(self, *around: Any) -> None:
        super().__init__(*around)
        self.part, said = next(iter(self.strategy.broadcast(self.state).items()))  # there is one, or the method is refused
        first, self.starts = said[0], [0, *accumulate(self.schedule.sizes)]
        self.served, edges = self.schedule.served, self.starts[-1]
        rows = edges if self.served else 0
        self.around = self.nature.of_edges(edges, int(fold(self.seed, "edges")))
        self.cross = Link(self.strategy.crosslink, "crosslink", self.seed, edges)
        self.back = Link(self.schedule.downlink, "schedule.downlink", self.seed, edges)
        afford(2 * rows * first.nbytes, "schedule.edges", f"two models of {len(first):,} parameters for each of {edges:,} edges")
        self.heard, self.gone = first.expand(rows, -1).clone(), first.new_zeros(rows, len(first))
        self.behind, self.since, self.merges = np.zeros(rows), np.zeros(rows, dtype=np.int64), 0
        self.known: tuple[Ints, Tensor] | None = None  # edges and their models, where these have not changed since

    def _homes(self) -> Ints:
        """Of each node its edge: also where that is not the hearer whose state this is."""
        return self.schedule.homes(self.nature.people, self.key("edges"))

    @property
    def about(self) -> str:
        """How many edges there are, with how many nodes each, and what a report takes."""
        sizes, nodes = self.schedule.sizes, np.bincount(self.home)
        levels = " and ".join(f"{edges:,}" for edges in sizes)
        one = self.heard[:1]
        sent = f"a report {size(self.cross.size({'update': one}))} up, {size(self.back.size({self.part: one}))} down"
        sent = sent if self.served else f"{size(self.flight.peer_bytes)} between two of them"
        return f"{levels} of {nodes.min():,} to {nodes.max():,} nodes; {sent}"

    # What a schedule may ask

    def up(self) -> NDArray[np.bool_]:
        """As in `Edged`."""
        calendar, edges = self.around.calendar, self.starts[1]
        while calendar is not None and not self._standing()[:edges].any():
            self.wait(calendar.comes(self.now))
        return self._standing()[:edges]

    def report(self, levels: int, turn: int) -> None:
        """As in `Edged`. Each level waits for the last of those who report, and for the last who hears."""
        there = self._standing()
        if not self.served:
            return self._mix(there, turn)
        for level in range(1, len(self.schedule.sizes)):  # who is below one that is down is cut off
            there[self._of(level - 1)] &= there[self.starts[level] + self.schedule.parents(level - 1)]
        for level in range(levels):
            self._ascend(level, self._some(level, there))
        for level in reversed(range(levels)):
            self._descend(level, self._some(level, there))

    # Between verbs

    def _standing(self) -> NDArray[np.bool_]:
        """bool [e]"""
        return self.around.present(self.version, self.now).copy()

    def _of(self, level: int) -> slice:
        return slice(self.starts[level], self.starts[level + 1])

    def _some(self, level: int, there: NDArray[np.bool_]) -> Ints:
        """The edges of a level that are there, int64, rising."""
        return self.starts[level] + np.flatnonzero(there[self._of(level)])

    def _above(self, level: int, edges: Ints) -> Ints | None:
        """To whom of the next level these edges report, int64; None: the server."""
        if level + 1 == len(self.schedule.sizes):
            return None
        return self.starts[level + 1] + self.schedule.parents(level)[edges - self.starts[level]]

    def _said(self, nodes: Ints) -> tuple[Rows, Ints]:
        """The model of each node's edge, through the downlink."""
        edges, row = np.unique(self.home[nodes], return_inverse=True)
        if self.served:
            parts = {self.part: self._models(edges)}
        else:
            at = self._ids(edges)
            parts = self.strategy.broadcast({name: rows[at] for name, rows in self.state.items()})
        return self.down.broadcast(parts, nodes, self.version, row, edges)

    def _taken_in(self, news: News, parts: Rows, hearers: Ints | None) -> Tensor:
        """Updates change the models of their nodes' edges, which come back."""
        if not self.served or not len(news.node):
            return super()._taken_in(news, parts, hearers)
        return self._into(self.home[news.node], self.inbox(news, parts, None), self.share[news.node])

    def _into(self, home: Ints, inbox: Inbox, behind: Floats) -> Tensor:
        """Edges `home` [m], one a message, take in the mean of theirs, behind which are such shares [m] of all samples; their models."""
        edges, place = np.unique(home, return_inverse=True)
        inbox = replace(inbox, hearers=len(edges), hearer=None if len(edges) == 1 else self._ids(place))
        self.gone[self._rows(edges)] += inbox.mean("update")
        np.add.at(self.behind, home, behind)
        self.known = None
        return self._models(edges)

    def _models(self, edges: Ints) -> Tensor:
        """[k, d]: of edges [k], rising, to be read only."""
        if self.known is None or not np.array_equal(self.known[0], edges):
            at = self._rows(edges)
            self.known = edges, self.heard[at] + self.gone[at]
        return self.known[1]

    def _rows(self, edges: Ints) -> Any:
        """Where edges [k], rising, lie: those of neighbours are seen, and not copied."""
        first, end = int(edges[0]), int(edges[-1]) + 1
        return slice(first, end) if end - first == len(edges) else self._ids(edges)

    def _ascend(self, level: int, edges: Ints) -> None:
        """Edges of a level report what came of their nodes' updates to who is above them, and it is taken in there."""
        edges = edges[self.behind[edges] > 0]
        if not len(edges):
            return
        at, above, behind = self._rows(edges), self._above(level, edges), self.behind[edges]
        self._carried(edges, self.cross.size({"update": self.gone[:1]}), "up")
        inbox = Inbox(
            parts=sent_of(self.cross.carry({"update": self.gone[at]}, edges, self.version)),
            weight=self._numbers(behind),
            sender=self._ids(edges),
            age=self._numbers(self.merges - self.since[edges]),
            layout=self.task.layout,
            round=self.merges,
        )
        if above is None:
            self._merged(inbox)
            self.merges += 1
        else:
            self._into(above, inbox, behind)
        self.gone[at], self.behind[edges], self.known = 0, 0, None

    def _descend(self, level: int, edges: Ints) -> None:
        """Edges of a level hear the model of who is above them."""
        if not len(edges):
            return
        above = self._above(level, edges)
        if above is None:
            sender, row, parts = edges[:1] * 0, edges * 0, self.strategy.broadcast(self.state)
        else:
            sender, row = np.unique(above, return_inverse=True)
            parts = {self.part: self._models(sender)}
        told = self.back.size({name: rows[:1] for name, rows in parts.items()})
        came, row = self.back.broadcast(parts, edges, self.version, row, sender)
        rows = came[self.part]
        self.heard[self._rows(edges)] = rows if len(rows) == 1 else rows[self._ids(row)]
        self.known = None
        self.since[edges] = self.merges if above is None else self.since[above]
        self._carried(edges, told, "down")

    def _carried(self, edges: Ints, message: int, way: str) -> None:
        """Messages of so many bytes travel between edges and who is above them; the last is through when this returns."""
        around = self.around
        turn, rate = np.full(len(edges), self.version), around.up if way == "up" else around.down
        sent = around.bytes(edges, np.full(len(edges), message), turn, way)
        self.wait(self.now + int(around.travel(edges, sent, rate).max()))
        self.ledger.add("mix", len(edges), time=self.now, node=edges, version=self.version, **{f"bytes_{way}": sent})

    def _mix(self, there: NDArray[np.bool_], turn: int) -> None:
        """The edges that are there mix by the topology."""
        topology = self.schedule.topology
        assert topology is not None
        mixing = topology.mixing(len(there), turn - 1, self.key("topology")).among(np.flatnonzero(there), self.strategy.stochastic)
        out, into = (count * self.flight.peer_bytes for count in (mixing.said, mixing.heard))
        self.wait(self.now + int(self.around.exchange(np.arange(len(there)), out, into).max()))
        self.mix(mixing)
