"""What workers are sent: their nodes' jobs, and what these hear, as the downlink's codec packed it."""

from abc import abstractmethod

import numpy as np
import torch

from fedsim.base.clock import Ints
from fedsim.base.rows import Rows
from fedsim.deploy.live import Live
from fedsim.deploy.packing import KNOWN, PACKED, in_bytes
from fedsim.deploy.reality import Reality
from fedsim.engines.local import Worker
from fedsim.federation.ledger import Ledger
from fedsim.federation.link import Downlink
from fedsim.settings.values import Floats
from fedsim.transport.messages_pb2 import Job


class Dispatching(Live):
    """`mail` has messages as they travel, in the place of what nodes hear; where each message follows on those before, beside it."""

    down: Downlink

    def __init__(self, worker: Worker, nature: Reality, ledger: Ledger, peers: bool) -> None:
        super().__init__(worker, nature, ledger, peers)
        self.packed = -1, torch.empty(0)  # a version, and its message where all hear the same
        self.decoded: set[int] = set()  # jobs in flight whose message was said again as it is decoded

    @abstractmethod
    def _lasting(self) -> None:
        """All that was decided is on the disk when this returns."""

    def start(self, nodes: Ints, at: Ints, heard: Rows, row: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        super().start(nodes, at, self._packed(heard, version), row, down, version, round, chance)
        if self._next() is None:
            self._order(nodes)

    def _packed(self, heard: Rows, version: int) -> Rows:
        """What nodes hear, with what the codec packed of it in its place: beside it where its decoding follows on what was heard before."""
        if not self.down.wire:
            return heard
        if self.down.each or self.packed[0] != version:
            self.packed = version, in_bytes(self.down.wire)
        packed, count = self.packed[1], len(next(iter(heard.values())))
        rest = {name: rows for name, rows in heard.items() if self.down.each or name not in self.down.said}
        return rest | {PACKED: packed.expand(count, -1) if len(packed) == 1 else packed}

    def _order(self, nodes: Ints, packed: bool = True) -> None:
        """Sends nodes' jobs to those who host them; to those who are away when they come back. What they hear travels as its codec packed
        it; not `packed`, or to workers that remember nothing, as it was decoded, with what the next message follows on."""
        assert self.hub is not None
        self._lasting()
        for worker, mine in self._by_host((node, node) for node in nodes.tolist()).items():
            columns = np.stack([self.job[mine], mine, self.turn[mine], self.round[mine], self.version[mine]], 1).tolist()
            names = ("id", "node", "turn", "round", "version")
            jobs = [Job(**dict(zip(names, column, strict=True))) for column in columns]
            self.hub.order(worker, self.orders.order(jobs, self._spoken(np.array(mine), packed)))

    def _spoken(self, nodes: Ints, packed: bool) -> Rows:
        """What travels to nodes [m], [m, ...]."""
        assert self.hub is not None
        heard = self.mail.take(self.heard[nodes])
        if PACKED not in heard or not self.down.each:
            return heard
        if packed and self.hub.remembers:
            return {name: rows for name, rows in heard.items() if name not in self.down.said}
        del heard[PACKED]
        return heard | ({KNOWN + name: rows for name, rows in self.down.known(nodes).items()} if self.hub.remembers else {})

    def _say_again(self, worker: bytes, nodes: dict[int, int]) -> None:
        """A worker lacks what the messages of jobs follow on: it was started again, or is new to these nodes, by job."""
        assert self.hub is not None
        self.hub.settle(worker, [], [*nodes])
        self.orders.done(nodes)
        self.decoded.update(nodes)
        self._order(np.array([*nodes.values()], dtype=np.int64), packed=False)
