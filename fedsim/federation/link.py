"""A link: a codec between hearers and nodes or among hearers, and what both of its ends remember."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import SettingError, Unfit
from fedsim.base.keys import fold
from fedsim.base.rows import Rows, as_sent, parted
from fedsim.base.store import Memories
from fedsim.codecs import Codec, row_bytes


@contextmanager
def fitting(key: str) -> Iterator[None]:
    """A codec that does not suit what it is given is a mistake of the scenario, at this key."""
    try:
        yield
    except Unfit as error:
        raise SettingError(key, str(error)) from error


class Link:
    """One direction of travel. Memories are by node and kept as soon as something is sent; a lossless codec is not run."""

    keeps: ClassVar[tuple[str, ...]] = ("memories",)

    def __init__(self, codec: Codec, purpose: str, seed: int, nodes: int) -> None:
        self.codec, self.purpose, self.key, self.memories = codec, purpose, fold(seed, purpose), Memories(nodes)

    def size(self, parts: Rows) -> int:
        """Bytes of one row of parts on the wire; running statistics go as they are. Raises SettingError where the codec can't take them."""
        if not parts or self.codec.lossless:
            return row_bytes(parts)
        parts, buffers = parted(parts)
        with fitting(self.purpose):
            return self.codec.size(self.codec.encode(parts, self.codec.init(parts), self._keys(parts)) | buffers)

    def sizes(self, parts: Rows) -> tuple[int, int]:
        """Bytes of a link's first message, and of each later one."""
        first, own = self.size(parts), parted(parts)[0]
        if not own or not (memory := self.codec.init(own)):
            return first, first
        keys = self._keys(own)
        _, memory = self.codec.carry(own, memory, keys)
        return first, self.codec.size(self.codec.encode(own, memory, keys) | parted(parts)[1])

    def _keys(self, parts: Rows) -> Tensor:
        """One a row, where the rows are."""
        first = next(iter(parts.values()))
        return fold(self.key, torch.arange(len(first), device=first.device))

    def carry(self, parts: Rows, who: Ints, version: int) -> Rows:
        """Parts, a row for each of `who`, as the other end decodes them."""
        if self.codec.lossless:
            return parts
        came, memory = self.codec.carry(parts, *self._ends(parts, who, version))
        self.memories.put(who, memory)
        return as_sent(came, parts)

    def _ends(self, parts: Rows, who: Ints, version: int) -> tuple[Rows, Tensor]:
        """The memories of before of `who` and the keys, where the parts are."""
        device = next(iter(parts.values())).device
        memory = self.memories.get(who, lambda new: self.codec.init({name: rows[: len(new)] for name, rows in parts.items()}), device)
        return memory, fold(self.key, version, sent(who, device))

    def broadcast(self, parts: Rows, nodes: Ints, version: int, row: Ints, sender: Ints | None = None) -> tuple[Rows, Ints]:
        """What each of `sender` (None: the hearers, in order) says, a row of parts each, as nodes decode it who hear row `row` [k] of it.

        A row a sender, or one each where the codec remembers each node; and who has which row.
        """
        count = len(next(iter(parts.values()))) if parts else 1
        if self.codec.lossless or not self.codec.init(parts):
            return self.carry(parts, np.arange(count) if sender is None else sender, version), row
        at = sent(row, next(iter(parts.values())).device)
        each = {name: rows.expand(len(nodes), *rows.shape[1:]) if len(rows) == 1 else rows[at] for name, rows in parts.items()}
        return self.carry(each, nodes, version), np.arange(len(nodes))


class Downlink(Link):
    """From a server to nodes: what a version says is worked out once, and one copy is kept for all who hear it.

    `packs`: `wire` keeps what the last message was on the way, [1, ...] or a row for each node that heard it.
    """

    keeps: ClassVar[tuple[str, ...]] = ("memories", "version", "said")

    def __init__(self, codec: Codec, purpose: str, seed: int, nodes: int) -> None:
        super().__init__(codec, purpose, seed, nodes)
        self.version, self.said = -1, dict[str, Tensor]()
        self.packs, self.wire, self.packed = False, dict[str, Tensor](), -1  # and its version

    def told(self, say: Callable[[], Rows], nodes: Ints, version: int, row: Ints) -> tuple[Rows, Ints]:
        """What nodes [k] hear of a version, of which `say` makes the parts: their row `row` [k]; see `broadcast`."""
        if self.version != version:
            self.version, self.said = version, {name: rows.clone() for name, rows in say().items()}
        return self.broadcast(self.said, nodes, version, row)

    def over(self) -> None:
        """Nobody is told this version any more; who works from it keeps what was said. Its shapes stay, and take no memory."""
        self.said = {name: rows.new_zeros(1).expand(rows.shape) for name, rows in self.said.items()}

    def carry(self, parts: Rows, who: Ints, version: int) -> Rows:
        if self.packs and not self.codec.lossless and (self.each or self.packed != version):
            self.wire, self.packed = self.codec.encode(parts, *self._ends(parts, who, version)), version
        return super().carry(parts, who, version)

    @property
    def each(self) -> bool:
        """Has each node a message of its own, after what it has heard before?"""
        return bool(self.codec.init(self.said))

    @property
    def follows(self) -> bool:
        """Must a node have decoded its message of before to decode the next?"""
        return bool(self.codec.heard(self.codec.init(self.said)))

    def known(self, nodes: Ints) -> Rows:
        """What nodes [m] must remember to decode their next message, [m, ...]; {} where nothing."""
        return self.codec.heard(self.memories.get(nodes, self._fresh)) if self.follows else {}

    def decoded(self, wire: Rows, nodes: Ints, version: Ints) -> Rows:
        """The other end, which keeps what was decoded last in `memories`: parts [m, ...] of what travelled to nodes [m] in versions [m]."""
        device = next(iter(wire.values())).device
        keys = fold(self.key, sent(version, device), sent(nodes if self.each else 0 * nodes, device))
        parts, memory = self.codec.decode(wire, self.known(nodes), keys)
        self.memories.put(nodes, self.codec.heard(memory))
        return as_sent(parts, self.said)

    def _fresh(self, nodes: Ints) -> Rows:
        return self.codec.init({name: rows[:1].expand(len(nodes), *rows.shape[1:]) for name, rows in self.said.items()})
