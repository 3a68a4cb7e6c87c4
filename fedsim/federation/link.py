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
        device = next(iter(parts.values())).device
        memory = self.memories.get(who, lambda new: self.codec.init({name: rows[: len(new)] for name, rows in parts.items()}), device)
        keys = fold(self.key, version, sent(who, device))
        came, memory = self.codec.carry(parts, memory, keys)
        self.memories.put(who, memory)
        return as_sent(came, parts)

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
    """From a server to nodes: what a version says is worked out once, and one copy is kept for all who hear it."""

    keeps: ClassVar[tuple[str, ...]] = ("memories", "version", "said")

    def __init__(self, codec: Codec, purpose: str, seed: int, nodes: int) -> None:
        super().__init__(codec, purpose, seed, nodes)
        self.version, self.said = -1, dict[str, Tensor]()

    def told(self, say: Callable[[], Rows], nodes: Ints, version: int, row: Ints) -> tuple[Rows, Ints]:
        """What nodes [k] hear of a version, of which `say` makes the parts: their row `row` [k]; see `broadcast`."""
        if self.version != version:
            self.version, self.said = version, {name: rows.clone() for name, rows in say().items()}
        return self.broadcast(self.said, nodes, version, row)

    def over(self) -> None:
        """Nobody is told this version any more; who works from it keeps what was said."""
        self.said = {}

    def wire(self, version: int) -> Rows:
        """What travels of the version that a server said last, [1, ...]; nothing where it goes as it is, or as each node remembers."""
        if self.codec.lossless or self.version != version or not self.said or self.codec.init(self.said):
            return {}
        return self.codec.encode(self.said, {}, self._of(version, self.said))

    def heard(self, wire: Rows, version: int, like: Rows) -> Rows:
        """The other end of `wire`: parts [1, ...], in the precision of `like`."""
        return as_sent(self.codec.decode(wire, {}, self._of(version, wire))[0], like)

    def _of(self, version: int, rows: Rows) -> Tensor:
        """The key of a server's message, where the rows are."""
        return fold(self.key, version, torch.zeros(1, dtype=torch.int64, device=next(iter(rows.values())).device))
