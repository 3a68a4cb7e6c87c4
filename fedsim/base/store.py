"""Where rows wait: messages on their way as shared blocks, memories of nodes as one growing table."""

import os
from collections import Counter
from collections.abc import Callable
from mmap import mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, ClassVar
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.devices import sent
from fedsim.base.files import writing
from fedsim.base.rows import Rows

Ints = NDArray[np.int64]
LARGE = 1 << 30  # bytes of a table that stays in memory
ROW_BITS = 24  # a slot is block << ROW_BITS | row


def room(like: Tensor, rows: int, memory: int = LARGE) -> Tensor:
    """Space for so many rows like these, [rows, ...]; more than `memory` bytes lie in a nameless file that goes with the tensor.

    Raises RunError where the disk has no room for it.
    """
    size = rows * like[0].nbytes
    if size <= memory or like.device.type != "cpu":
        return like.new_empty(rows, *like.shape[1:])
    with writing(Path("rows of clients")), TemporaryFile() as file:
        return _mapped(file, like, rows)


def write(table: Tensor, at: Tensor, rows: Tensor) -> None:
    """Row `at[i]`, int64 [m] on the host, of the table becomes row i of rows [m, ...].

    By NumPy on a CPU, which copies large rows as memory; torch takes twice as long.
    """
    if table.device.type == rows.device.type == "cpu" and table.dtype == rows.dtype != torch.bfloat16:
        table.numpy()[at.numpy()] = rows.numpy()
    else:
        table.index_copy_(0, sent(at, table.device), rows.to(table.device))


def _mapped(file: IO[bytes], like: Tensor, rows: int) -> Tensor:
    """The file's first bytes as rows like these, with the space for them reserved: a full disk shows now, not at some write."""
    size = rows * like[0].nbytes
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        os.truncate(file.fileno(), size)
    return torch.frombuffer(mmap(file.fileno(), size), dtype=like.dtype).view(rows, *like.shape[1:])


class Blocks:
    """Rows posted together stay one block until the last of them is released; a block is never written again, so views of it are safe.

    Copies of more than `memory` bytes are made in files, see `room`.
    """

    keeps: ClassVar[tuple[str, ...]] = ("blocks", "uses", "next")

    def __init__(self, memory: int = LARGE) -> None:
        self.memory = memory
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
        if (block[0] == block).all():
            return self._pick(self.blocks[int(block[0])], row)
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        if 2 * len(starts) >= len(slots):  # most lie alone
            ones = zip(block.tolist(), row.tolist(), strict=True)
            pieces = [
                {name: rows if rows.size(0) == 1 else rows[at : at + 1] for name, rows in self.blocks[one].items()} for one, at in ones
            ]
        elif len(np.unique(block)) < len(starts):  # blocks interleave: gather by block, then put in order
            order = np.argsort(block, kind="stable")
            back = torch.from_numpy(np.argsort(order, kind="stable"))
            return {name: self._chosen(rows, back) for name, rows in self.take(slots[order]).items()}
        else:
            ends = [*starts[1:], len(slots)]
            pieces = [self._pick(self.blocks[int(block[a])], row[a:b]) for a, b in zip(starts, ends, strict=True)]
        several = {name: [piece[name] for piece in pieces] for name in pieces[0]}
        return {name: torch.cat(rows, out=room(rows[0], len(slots), self.memory)) for name, rows in several.items()}

    def lend(self, slots: Ints) -> tuple[Rows, Tensor | None]:
        """The same without a copy where one block has them all: its rows, and which of them each slot has, int64 [m]; None: in order."""
        block, row = slots >> ROW_BITS, slots & ((1 << ROW_BITS) - 1)
        if (block[0] == block).all() and not (np.diff(row) == 1).all() and not (row[0] == row).all():
            return self.blocks[int(block[0])], torch.from_numpy(row)
        return self.take(slots), None

    def _pick(self, rows: Rows, at: Ints) -> Rows:
        count, first = len(at), int(at[0])
        if count == 1:
            return {name: tensor[first : first + 1] for name, tensor in rows.items()}
        if (at == first).all():
            return {name: tensor[first : first + 1].expand(count, *tensor.shape[1:]) for name, tensor in rows.items()}
        if int(at[-1]) - first == count - 1 and (at[1:] > at[:-1]).all():
            return {name: tensor[first : first + count] for name, tensor in rows.items()}
        return {name: self._chosen(tensor, torch.from_numpy(at)) for name, tensor in rows.items()}

    def _chosen(self, rows: Tensor, at: Tensor) -> Tensor:
        return torch.index_select(rows, 0, sent(at, rows.device), out=room(rows, len(at), self.memory))

    def distinct(self, slots: Ints) -> tuple[list[Rows], Ints]:
        """The rows that slots [m] have, each once as a view [1, ...], and which of them each slot has, int64 [m]."""
        ones, at = np.unique(slots, return_inverse=True)
        places = zip((ones >> ROW_BITS).tolist(), (ones & ((1 << ROW_BITS) - 1)).tolist(), strict=True)
        return [{name: rows[row : row + 1] for name, rows in self.blocks[block].items()} for block, row in places], at

    def release(self, slots: Ints) -> None:
        """One reader of each slot is done; a block without readers is forgotten."""
        blocks = (slots >> ROW_BITS).tolist()
        for block, count in ({blocks[0]: len(blocks)} if len({*blocks}) == 1 else Counter(blocks)).items():
            self.uses[block] -= count
            if not self.uses[block]:
                del self.uses[block], self.blocks[block]


class Memories:
    """A row for each node that ever had one, in tables that double when full; others read the default.

    A table that would take more than `large` bytes lies in a file without a name, mapped into memory: it goes with the process, and
    the system keeps of it in memory what there is room for. It grows by a quarter, without a copy. TMPDIR says where it is.
    """

    keeps: ClassVar[tuple[str, ...]] = ("row", "count", "filled")

    def __init__(self, nodes: int, large: int = LARGE) -> None:
        self.row = np.full(nodes, -1, dtype=np.int32)
        self.rows: Rows = {}
        self.count = 0
        self.large, self.files = large, dict[str, IO[bytes]]()

    @property
    def filled(self) -> Rows:
        """The tables without the room that is still free. Set after `count`."""
        return {name: rows[: self.count] for name, rows in self.rows.items()}

    @filled.setter
    def filled(self, rows: Rows) -> None:
        self.rows = dict(rows)

    def get(self, nodes: Ints, default: Callable[[Ints], Rows], device: torch.device | None = None) -> Rows:
        """Rows of nodes, in that order, on a device (None: where the table is); `default` makes fresh ones of some nodes there."""
        at = self.row[nodes]
        fresh = np.flatnonzero(at < 0)
        if len(fresh) == len(at):
            return default(nodes)
        old = torch.from_numpy(at.clip(0))
        out = {name: sent(table.index_select(0, sent(old, table.device)), device or table.device) for name, table in self.rows.items()}
        if len(fresh):
            where = torch.from_numpy(fresh)
            for name, rows in default(nodes[fresh]).items():
                out[name].index_copy_(0, sent(where, rows.device), rows)
        return out

    def lend(self, nodes: Ints, default: Callable[[Ints], Rows], device: torch.device) -> tuple[Rows, Tensor | None]:
        """The same without a copy where nobody is new: the tables, and which of their rows each node has, int64 [m]; None: in order."""
        at = self.row[nodes]
        if at.min(initial=0) < 0 or not self.rows or any(table.device != device for table in self.rows.values()):
            return self.get(nodes, default, device), None
        return self.rows, torch.from_numpy(at.astype(np.int64))

    def put(self, nodes: Ints, rows: Rows) -> None:
        """Remembers a row for each of the nodes. Raises RunError where a large table finds no room on disk."""
        if not rows or not len(nodes):
            return
        new = nodes[self.row[nodes] < 0]
        self.row[new] = np.arange(self.count, self.count + len(new))
        self.count += len(new)
        at = torch.from_numpy(self.row[nodes].astype(np.int64))
        for name, tensor in rows.items():
            table = self._room(name, tensor)
            write(table, at, tensor)

    def _room(self, name: str, like: Tensor) -> Tensor:
        """The table for rows of this kind, with room for all who have a memory."""
        table, wanted = self.rows.get(name), min(max(16, 2 * self.count), len(self.row))
        if table is not None and len(table) >= self.count:
            return table
        if wanted * like[0].nbytes <= self.large:
            self.rows[name] = like.new_zeros(wanted, *like.shape[1:])
        elif name in self.files:  # what was written stands in the file; the old view of it goes first, for both may be too much
            table = None
            del self.rows[name]
            self.rows[name] = self._in_file(name, like)
        else:
            with writing(Path("memories of clients")):
                self.files[name] = TemporaryFile()  # noqa: SIM115 (lives as long as the table)
            finalize(self, self.files[name].close)
            self.rows[name] = self._in_file(name, like)
        if table is not None:
            self.rows[name][: len(table)] = table
        return self.rows[name]

    def _in_file(self, name: str, like: Tensor) -> Tensor:
        with writing(Path("memories of clients")):
            return _mapped(self.files[name], like, min(self.count + self.count // 4, len(self.row)))


class Table:
    """What a server remembers of each node: a row, 0 before it is first set; space is taken only for nodes that have one.

    A state may hold it (see `Strategy.start`). `like` [d] says what a row is; reading and writing m rows costs the same however
    many nodes there are.
    """

    keeps: ClassVar[tuple[str, ...]] = ("memories",)

    def __init__(self, nodes: int, like: Tensor) -> None:
        self.memories, self.like = Memories(nodes), like

    def __len__(self) -> int:
        return len(self.memories.row)

    def __getitem__(self, nodes: Tensor) -> Tensor:
        """[m, d]: copies of the rows of nodes [m]."""
        return self.memories.get(nodes.cpu().numpy(), self._fresh, self.like.device)["row"]

    def __setitem__(self, nodes: Tensor, rows: Tensor) -> None:
        """Rows [m, d] of nodes [m], all different. Raises RunError where a large table finds no room on disk."""
        self.memories.put(nodes.cpu().numpy(), {"row": rows})

    def _fresh(self, nodes: Ints) -> Rows:
        return {"row": self.like.new_zeros(len(nodes), *self.like.shape)}
