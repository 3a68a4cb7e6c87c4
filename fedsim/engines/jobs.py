"""Jobs as rows: what workers are given, what they reply, and pieces of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.rows import Rows, as_sent
from fedsim.base.store import room, write
from fedsim.codecs import Codec

Carry = Callable[[Codec, Rows, Rows, Tensor], tuple[Rows, Rows]]  # what becomes of messages on their way up


@dataclass(frozen=True)
class Jobs:
    """Work to do, one row each: node, turn (the node's own job count, from 1) and round int64 [m]; what was heard, and memories.

    Job i has row `heard[i]` of what was received, where that is given (on the host), and row i otherwise; so have memories `known` and
    `linked`. These may be tables that must not be written to.
    """

    node: Ints
    turn: Ints
    round: Ints
    received: Rows
    memory: Rows
    link: Rows | None  # memory of the uplink; None: fresh
    heard: Tensor | None = None
    known: Tensor | None = None
    linked: Tensor | None = None


class Replies(NamedTuple):
    """What jobs [m] send, as the hearer decodes it, and memories of after."""

    parts: Rows
    memory: Rows
    link: Rows


def title(jobs: Jobs) -> str:
    """Whose work it is, for messages."""
    return titled(jobs.node, jobs.round)


def titled(nodes: Ints, round: Ints) -> str:
    """The same of nodes and rounds."""
    some = ", ".join(map(str, nodes[:5])) + (" ..." if len(nodes) > 5 else "")
    return f"round {int(round.max()) + 1}: the work of clients {some}"


def part(jobs: Jobs, at: Tensor, neighbours: bool) -> Jobs:
    """Jobs at these places (on the host), as views where they are neighbours."""
    rows: Any = slice(int(at[0]), int(at[-1]) + 1) if neighbours else at
    where = at.numpy()

    def mine(part: Rows, of: Tensor | None) -> Rows:
        return _rows(part, rows if of is None else of[rows], len(at))

    received, memory = mine(jobs.received, jobs.heard), mine(jobs.memory, jobs.known)
    link = None if jobs.link is None else mine(jobs.link, jobs.linked)
    return Jobs(jobs.node[where], jobs.turn[where], jobs.round[where], received, memory, link)


def owned(memory: Rows) -> Rows:
    """The same to be written to: where it is one row, or one expanded, others may share it, and it is copied."""
    return {name: rows if len(rows) > 1 and rows.stride(0) else rows.clone() for name, rows in memory.items()}


def put(whole: Rows, found: Rows, at: Tensor, count: int, memory: int) -> None:
    """Rows that were found go to places `at` of the whole, [count, ...], which is made where it has none; see `room` for `memory`."""
    for name, tensor in found.items():
        if name not in whole:
            whole[name] = room(tensor, count, memory)
        write(whole[name], at, tensor)


def _rows(part: Rows, rows: Any, count: int) -> Rows:
    """The given rows; those of an expanded single row stay expanded."""
    if not isinstance(rows, Tensor):
        return {name: tensor[rows] if tensor.stride(0) else tensor[:count] for name, tensor in part.items()}
    at = {device: sent(rows, device) for device in {tensor.device for tensor in part.values() if tensor.stride(0)}}
    return {name: tensor.index_select(0, at[tensor.device]) if tensor.stride(0) else tensor[:count] for name, tensor in part.items()}


def carried(codec: Codec, parts: Rows, link: Rows, key: Tensor) -> tuple[Rows, Rows]:
    """What a codec delivers of parts [m, ...], and the links' memory of after."""
    if codec.lossless:
        return parts, link
    came, link = codec.carry(parts, link, key)
    return as_sent(came, parts), link
