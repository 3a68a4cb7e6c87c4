"""What travels, as bytes. A codec turns named rows into a wire (typed rows) and back; codecs wrap codecs."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import safetensors.torch
import torch
from torch import Tensor

from fedsim.part import Part, setting
from fedsim.rows import Rows
from fedsim.values import Share


class Codec(Part):
    """Pure functions on rows. `lossless` codecs are not run in a simulation: they deliver what was sent, and only their size counts.

    `encode` is the sender's side and `decode` the receiver's; both see the same memory (one row a link, {} by default) and key
    (int64, one a row), and `decode` returns the memory of after. Memory is kept where the message arrives and dropped where it does not.
    """

    slot: ClassVar[str] = "codec"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.codecs_scalar",)
    lossless: ClassVar[bool] = False

    def init(self, parts: Rows) -> Rows:
        """Memory of a fresh link, a row for each row of parts."""
        return {}

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return parts

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return wire, memory

    def size(self, wire: Rows) -> int:
        """Bytes of one row's message."""
        return row_bytes(wire)


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


@dataclass(frozen=True)
class TopK(Codec):
    """Sends the greatest numbers of each part by absolute value, with their places; the others arrive as 0. Of equal ones the first go.

    A part on the wire is `NAME of SHAPE`, the numbers [m, k], and `NAME at`, their places in as many bits as a place needs, or one
    bit for each number of the part where that is less. Whole numbers, and parts of which all is sent, travel as they are.
    """

    name: ClassVar[str] = "topk"

    fraction: Share | None = setting(None, "share of the numbers that is sent; 1 % if `count` is not set either", gt=0, le=1)
    count: int | None = setting(None, "how many numbers instead", ge=1)

    def __post_init__(self) -> None:
        if self.fraction is not None and self.count is not None:
            raise ValueError("`fraction` and `count` exclude each other")

    def kept(self, size: int) -> int:
        """How many of `size` numbers are sent, at least 1."""
        return min(size, self.count or math.ceil(size * (self.fraction or 0.01) - 1e-9))

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        wire = {}
        for name, rows in parts.items():
            count = self.kept(rows[0].numel())
            if count == rows[0].numel() or not rows.is_floating_point():
                wire[name] = rows
                continue
            flat = rows.flatten(1)
            mask = greatest(flat, count)
            at = mask.nonzero()[:, 1].view(-1, count)
            wire[f"{name} of {'x'.join(map(str, rows.shape[1:]))}"] = flat.gather(1, at)
            wire[f"{name} at"] = to_bytes(_bits(at, flat.shape[1]) if _listed(count, flat.shape[1]) else mask)
        return wire

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        parts: Rows = {}
        for name, rows in wire.items():
            plain, _, shape = name.rpartition(" of ")
            if not plain or f"{plain} at" not in wire:
                parts |= {} if name.endswith(" at") else {name: rows}
                continue
            sizes = [int(word) for word in shape.split("x")]
            count, size = rows.shape[1], math.prod(sizes)
            bits = to_bits(wire[f"{plain} at"])
            at = _places(bits, count, size) if _listed(count, size) else bits[:, :size].nonzero()[:, 1].view(-1, count)
            parts[plain] = rows.new_zeros(len(rows), size).scatter_(1, at, rows).view(len(rows), *sizes)
        return parts, memory


def greatest(x: Tensor, count: int) -> Tensor:
    """bool [m, d]: the `count` numbers of each row of x [m, d] of greatest absolute value; of equal ones the first, NaN as infinite."""
    size = x.abs().nan_to_num(nan=torch.inf)
    least = size.topk(count, dim=1).values[:, -1:]
    above, equal = size > least, size == least
    return above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))


def _width(size: int) -> int:
    """Bits of a place among `size`."""
    return max(1, (size - 1).bit_length())


def _listed(count: int, size: int) -> bool:
    """Whether places are listed, and not marked by a bit for each number."""
    return count * _width(size) < size


def _bits(at: Tensor, size: int) -> Tensor:
    """bool [m, k x bits] of places [m, k], the lowest bit of each first."""
    return torch.stack([(at >> bit & 1).bool() for bit in range(_width(size))], -1).flatten(1)


def _places(bits: Tensor, count: int, size: int) -> Tensor:
    """int64 [m, k]: what `_bits` took apart."""
    each = bits[:, : count * _width(size)].view(len(bits), count, _width(size))
    out = torch.zeros(len(bits), count, dtype=torch.int64, device=bits.device)
    for bit in range(_width(size)):
        out |= each[..., bit].long() << bit
    return out


def to_bytes(bits: Tensor) -> Tensor:
    """uint8 [m, ceil(n / 8)] of bool [m, n], the first bit lowest."""
    padded = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).to(torch.uint8).view(len(bits), -1, 8)
    out = padded[..., 0].clone()
    for bit in range(1, 8):
        out |= padded[..., bit] << bit
    return out


def to_bits(packed: Tensor) -> Tensor:
    """bool [m, 8 n] of uint8 [m, n]."""
    return torch.stack([(packed >> bit & 1).bool() for bit in range(8)], -1).flatten(1)


@dataclass(frozen=True)
class Ef21(Codec):
    """Both ends keep an estimate, only the change since then travels, through the inner codec, and the new estimate is what arrives.

    Richtárik, Sokolov, Fatkhullin 2021, "EF21", https://arxiv.org/abs/2106.05203, Algorithm 2: g += C(x - g), from g = 0.
    """

    source: ClassVar[str] = "Richtárik et al. 2021"

    inner: Codec = setting(TopK(fraction=0.05), "what the change goes through")

    def init(self, parts: Rows) -> Rows:
        inner = {f"inner {name}": rows for name, rows in self.inner.init(parts).items()}
        return {f"known {name}": torch.zeros_like(rows) for name, rows in parts.items()} | inner

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return self.inner.encode({name: rows - memory[f"known {name}"] for name, rows in parts.items()}, _inner(memory), key)

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        change, inner = self.inner.decode(wire, _inner(memory), key)
        parts = {name: memory[f"known {name}"] + rows for name, rows in change.items()}
        return parts, {f"known {name}": rows for name, rows in parts.items()} | {f"inner {name}": rows for name, rows in inner.items()}


def _inner(memory: Rows) -> Rows:
    return {name.removeprefix("inner "): rows for name, rows in memory.items() if name.startswith("inner ")}


def pack(wire: Rows) -> bytes:
    """The bytes of a message on a real network: safetensors of its typed rows."""
    return safetensors.torch.save({name: rows.clone(memory_format=torch.contiguous_format) for name, rows in wire.items()})


@lru_cache(maxsize=1024)
def _packed_size(shapes: tuple[tuple[str, torch.Size, torch.dtype], ...]) -> int:
    return len(pack({name: torch.zeros(shape, dtype=dtype) for name, shape, dtype in shapes}))


def row_bytes(wire: Rows) -> int:
    """Length of one row's message, header included: that of a packed message of these shapes."""
    return _packed_size(tuple((name, rows.shape[1:], rows.dtype) for name, rows in wire.items())) if wire else 0
