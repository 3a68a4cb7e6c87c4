"""The simulated field over actors: what nodes remember lies with whoever computes their jobs, and comes here for checkpoints only."""

from math import inf, isinf
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows
from fedsim.base.text import size
from fedsim.engines.actor import Block
from fedsim.engines.calls import Given
from fedsim.engines.cluster import RayWorker
from fedsim.engines.jobs import put, titled
from fedsim.engines.parcels import Shelf
from fedsim.engines.recall import Recall, together
from fedsim.engines.shares import Shares
from fedsim.federation.flight import Flight


def _of_whole(name: str) -> Any:
    """An attribute that is gathered from actors when it is asked for, and given to them when it was set."""

    def get(self: "Spread") -> Any:
        return getattr(self.gathered(), name)

    def set(self: "Spread", value: Any) -> None:
        setattr(self.whole, name, value)
        self.loaded = True

    return property(get, set)


class Spread(Flight):
    """Jobs are computed by the actors of a `RayWorker`; a checkpoint has the same as one of `Flight`."""

    worker: RayWorker
    after, memory, links, kept = (_of_whole(name) for name in ("after", "memory", "links", "kept"))

    def __init__(self, worker: RayWorker, *around: Any) -> None:
        rows = worker.task.nodes * worker.task.init.nbytes
        if worker.strategy.schedule.peers and rows > worker.memory:
            what = (
                f"{size(worker.memory)}, and the models of {worker.task.nodes:,} peers, which are mixed in this process, take {size(rows)}"
            )
            raise SettingError("engine.memory", what)
        self.whole: Any = Recall(worker)  # None: it lies with the actors
        self.shares: Shares | None = None
        super().__init__(worker, *around)
        self.loaded = False
        self.shelf = Shelf(lambda rows: worker.actors().put(rows))

    def ready(self) -> Shares:
        """The actors, with what they have to remember."""
        if self.shares is None:
            self.shares = self.worker.shares(self.like, self.remembers, self.effort[0])
        if self.loaded:
            self.loaded, whole = False, self.whole
            if len(nodes := np.flatnonzero((whole.memory.row >= 0) | (whole.links.row >= 0))):
                memory, links = whole.memory.get(nodes, self.fresh), whole.links.get(nodes, self.fresh_links)
                self.shares.write(nodes, together(memory, links))
            if len(nodes := self._computed()) and len(rows := whole.outstanding(nodes)):
                self.shares.wait(nodes, self.turn[nodes], rows)
        self.whole = None
        return self.shares

    def gathered(self) -> Recall:
        """All that nodes remember, here. Raises RunError where the disk has no room for it."""
        if self.whole is None:
            self.whole = Recall(self.worker)
            if self.shares and self.remembers:
                self.whole.like = self.like
                for nodes, rows in self.shares.read(np.flatnonzero(self.shares.has)):
                    self.whole.write(nodes, rows)
                for nodes, rows in self.shares.read(self._computed(), "outstanding"):
                    self.whole.wait(nodes, rows)
        whole: Recall = self.whole
        return whole

    def _computed(self) -> Ints:
        """Nodes whose replies are on their way."""
        return np.flatnonzero((self.job >= 0) & (self.reply >= 0))

    def linked(self, nodes: Ints) -> NDArray[np.bool_]:
        """Whether each node's link has a memory, bool [m]."""
        return self.ready().has[nodes] if self.fresh_links(nodes[:1]) else np.zeros(len(nodes), dtype=bool)

    def commit(self, nodes: Ints) -> None:
        """Replies have arrived: what their nodes remember is theirs from now on."""
        if self.remembers and len(nodes):
            self.ready().settle("commit", nodes)

    def drop(self, nodes: Ints) -> None:
        """Replies never arrive: what waited for them goes."""
        if self.remembers and len(nodes):
            self.ready().settle("drop", nodes)

    def answers(self, nodes: Ints) -> Rows:
        """What nodes [m], rising, send."""
        shares, whole = self.ready(), dict[str, torch.Tensor]()
        blocks, places = [], []
        for k in range(shares.count) if self.remembers else [None]:
            mine = np.arange(len(nodes)) if k is None else np.flatnonzero(shares.home[nodes] == k)
            if len(mine):
                for at in self.worker.cut(nodes[mine], shares.count)[0]:
                    places.append(torch.from_numpy(mine)[at])
                    blocks.append(self._block(nodes[places[-1].numpy()], k))
        order = sorted(range(len(blocks)), key=lambda at: -self._cost(blocks[at]))
        shares.compute([blocks[at] for at in order], lambda at, parts: put(whole, parts, places[order[at]], len(nodes), self.worker.memory))
        return whole

    def _cost(self, given: Given) -> int:
        return int(self.steps[given.block.nodes].sum())

    def _block(self, nodes: Ints, home: int | None) -> Given:
        slots = self.heard[nodes]
        ones, at = self.mail.distinct(slots)
        if len(ones) > len(nodes) // 2 and len(ones) > 1:  # each its own
            heard, arrays, own = self.shelf.pack([self.mail.take(slots)], None, len(nodes))
        else:
            heard, arrays, own = self.shelf.pack(ones, at, len(nodes))
        left = self.worker.ends
        block = Block(nodes, self.turn[nodes], self.round[nodes], heard, inf if isinf(left) else left - monotonic())
        return Given(block, arrays, home, own, titled(nodes, block.round))
