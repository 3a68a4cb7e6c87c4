"""What travels, as bytes. A codec turns named rows into a wire (typed rows) and back; codecs wrap codecs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor

from fedsim.part import Part
from fedsim.rows import Rows


class Codec(Part):
    """Pure functions on rows. `lossless` codecs are not run in a simulation: they deliver what was sent, and only their size counts.

    `encode` is the sender's side and `decode` the receiver's; both see the same memory (one row a link, {} by default) and key
    (int64, one a row), and `decode` returns the memory of after. Memory is kept where the message arrives and dropped where it does not.
    """

    slot: ClassVar[str] = "codec"
    lossless: ClassVar[bool] = False

    def init(self, parts: Rows) -> Rows:
        """Memory of a fresh link, a row for each row of parts."""
        return {}

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return parts

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return wire, memory


@dataclass(frozen=True)
class Identity(Codec):
    """Sends the numbers as they are."""

    name: ClassVar[str] = "none"
    lossless: ClassVar[bool] = True


@dataclass(frozen=True)
class Float16(Codec):
    """Rounds every number to half precision (IEEE 754 binary16); above 65,504 becomes infinite."""

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return {name: rows.half() if rows.is_floating_point() else rows for name, rows in parts.items()}

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return {name: rows.float() if rows.dtype == torch.float16 else rows for name, rows in wire.items()}, memory


def pack(wire: Rows) -> bytes:
    """The bytes of a message on a real network: safetensors of its typed rows."""
    return safetensors.torch.save({name: rows.clone(memory_format=torch.contiguous_format) for name, rows in wire.items()})


@lru_cache(maxsize=1024)
def _packed_size(shapes: tuple[tuple[str, torch.Size, torch.dtype], ...]) -> int:
    return len(pack({name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in shapes}))


def row_bytes(wire: Rows) -> int:
    """Length of one row's message, header included: that of a packed message of these shapes."""
    return _packed_size(tuple((name, rows.shape[1:], rows.dtype) for name, rows in wire.items())) if wire else 0
