"""Where rows wait: messages on their way as shared blocks, memories of nodes as one growing table."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.rows import Rows

Ints = NDArray[np.int64]
ROW_BITS = 24  # a slot is block << ROW_BITS | row


class Blocks:
    """Rows posted together stay one block until the last of them is released; a block is never written again, so views of it are safe."""

    keeps: ClassVar[tuple[str, ...]] = ("blocks", "uses", "next")

    def __init__(self) -> None:
        self.blocks: dict[int, Rows] = {}
        self.uses: dict[int, int] = {}
        self.next = 0

    def post(self, rows: Rows, count: int, at: Ints | None = None) -> Ints:
        """Keeps rows for `count` readers; their slots, int64 [count]. Reader i reads row `at[i]`, row i by default."""
        block, self.next = self.next, self.next + 1
        self.blocks[block], self.uses[block] = rows, count
        return (block << ROW_BITS) + (np.arange(count) if at is None else at)

    def take(self, slots: Ints) -> Rows:
        """The rows of slots (at least one), in that order; where possible views, so they must not be written to."""
        block, row = slots >> ROW_BITS, slots & ((1 << ROW_BITS) - 1)
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        if len(starts) > 1 and len(np.unique(block)) < len(starts):  # blocks interleave: gather by block, then put in order
            order = np.argsort(block, kind="stable")
            back = torch.from_numpy(np.argsort(order, kind="stable"))
            return {name: rows.index_select(0, back.to(rows.device)) for name, rows in self.take(slots[order]).items()}
        ends = [*starts[1:], len(slots)]
        pieces = [_pick(self.blocks[int(block[a])], row[a:b]) for a, b in zip(starts, ends, strict=True)]
        if len(pieces) == 1:
            return pieces[0]
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}

    def release(self, slots: Ints) -> None:
        """One reader of each slot is done; a block without readers is forgotten."""
        for block, count in zip(*np.unique(slots >> ROW_BITS, return_counts=True), strict=True):
            self.uses[int(block)] -= int(count)
            if not self.uses[int(block)]:
                del self.uses[int(block)], self.blocks[int(block)]


def _pick(rows: Rows, at: Ints) -> Rows:
    count = len(at)
    if (at == at[0]).all():
        one = int(at[0])
        return {name: tensor[one : one + 1].expand(count, *tensor.shape[1:]) for name, tensor in rows.items()}
    if (np.diff(at) == 1).all():
        return {name: tensor[int(at[0]) : int(at[0]) + count] for name, tensor in rows.items()}
    return {name: tensor.index_select(0, torch.from_numpy(at).to(tensor.device)) for name, tensor in rows.items()}


class Memories:
    """A row for each node that ever had one, in a table that doubles when full; others read the default."""

    keeps: ClassVar[tuple[str, ...]] = ("row", "count", "filled")

    def __init__(self, nodes: int) -> None:
        self.row = np.full(nodes, -1, dtype=np.int32)
        self.rows: Rows = {}
        self.count = 0

    @property
    def filled(self) -> Rows:
        """The table without the room that is still free."""
        return {name: rows[: self.count] for name, rows in self.rows.items()}

    @filled.setter
    def filled(self, rows: Rows) -> None:
        self.rows = rows

    def get(self, nodes: Ints, default: Callable[[int], Rows]) -> Rows:
        """Rows of nodes, in that order; `default(k)` makes k fresh ones."""
        at = self.row[nodes]
        fresh = int((at < 0).sum())
        if fresh == len(at):
            return default(fresh)
        device = next(iter(self.rows.values())).device
        out = {name: rows.index_select(0, torch.from_numpy(at.clip(0)).to(device)) for name, rows in self.rows.items()}
        if fresh:
            where = torch.from_numpy(np.flatnonzero(at < 0)).to(device)
            for name, rows in default(fresh).items():
                out[name].index_copy_(0, where, rows)
        return out

    def put(self, nodes: Ints, rows: Rows) -> None:
        """Remembers a row for each of the nodes."""
        if not rows:
            return
        new = nodes[self.row[nodes] < 0]
        self.row[new] = np.arange(self.count, self.count + len(new))
        self.count += len(new)
        at = torch.from_numpy(self.row[nodes].astype(np.int64))
        for name, tensor in rows.items():
            table = self._room(name, tensor)
            table.index_copy_(0, at.to(tensor.device), tensor)

    def _room(self, name: str, like: Tensor) -> Tensor:
        table = self.rows.get(name)
        if table is None or len(table) < self.count:
            bigger = like.new_zeros(max(16, 2 * self.count), *like.shape[1:])
            if table is not None:
                bigger[: len(table)] = table
            self.rows[name] = bigger
        return self.rows[name]
