"""Codecs for a handful of numbers a message: each becomes a byte or so, and nothing else is sent, for the receiver knows what is due."""

# m: rows, k: numbers of a part

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.errors import RunError
from fedsim.base.keys import bits, fold
from fedsim.base.rows import Rows
from fedsim.codecs import Codec

_CODED = "coded "  # before the name of a part on the wire


class Scalars(Codec):
    """Codes each real number for itself; whole numbers travel as they are. A message is its payload, without a header."""

    abstract: ClassVar[bool] = True

    def code(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Bytes, uint8 [m, ...] each, of x [m, k]; key int64 [m]."""
        raise NotImplementedError

    def value(self, coded: tuple[Tensor, ...], size: int) -> Tensor:
        """float32 [m, k] of what `code` made of k = `size` numbers. Raises RunError for bytes that it never makes."""
        raise NotImplementedError

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        """Raises RunError for a number that is none (nan)."""
        wire = {}
        for name, rows in parts.items():
            if not rows.is_floating_point():
                wire[name] = rows
                continue
            if bool(rows.isnan().any()):
                what = f"`{name}` has a number that is none (nan), which `{self.name}` can't send"
                raise RunError(f"{what}; if the run diverged, a smaller learning rate may help")
            shape = "x".join(map(str, rows.shape[1:]))
            wire |= {f"{_CODED}{at} {shape} {name}": coded for at, coded in enumerate(self.code(rows.flatten(1), fold(key, name)))}
        return wire

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        parts: Rows = {}
        for name, rows in wire.items():
            if not name.startswith(_CODED):
                parts[name] = rows
                continue
            at, shape, plain = name.removeprefix(_CODED).split(" ", 2)
            if at == "0":
                sizes = [int(size) for size in shape.split("x")]
                both = (f"{_CODED}{at} {shape} {plain}" for at in range(len(wire)))
                coded = tuple(wire[field] for field in both if field in wire)
                parts[plain] = self.value(coded, math.prod(sizes)).view(len(rows), *sizes)
        return parts, memory

    def size(self, wire: Rows) -> int:
        return sum(rows[0].nbytes for rows in wire.values())

    def pack(self, wire: Rows) -> bytes:
        """One row's message."""
        return b"".join(rows.contiguous().view(torch.uint8).numpy().tobytes() for rows in wire.values())

    def unpack(self, message: bytes, like: Rows) -> Rows:
        """The wire of one row; `like` is one row of the parts that are due. Raises RunError for a message of another length."""
        due = self.encode({name: torch.zeros_like(rows) for name, rows in like.items()}, {}, torch.zeros(1, dtype=torch.int64))
        if len(message) != self.size(due):
            raise RunError(f"a message of {len(message)} bytes; `{self.name}` makes {self.size(due)} of what is due")
        wire, at = {}, 0
        for name, rows in due.items():
            wire[name] = torch.frombuffer(bytearray(message[at : at + rows.nbytes]), dtype=rows.dtype).view(rows.shape)
            at += rows.nbytes
        return wire


def exponents(x: Tensor, steps: int, most: int) -> Tensor:
    """float64 as x: round(steps ln|x|), ties to even, clipped to -most..most; of 0 the least."""
    return (x.double().abs().log() * steps).round().clamp(-most, most)


@lru_cache
def _values(steps: int, most: int) -> Tensor:
    """float32 [2 most + 1]: exp(P / steps) for P = -most to most."""
    return torch.tensor([math.exp(place / steps) for place in range(-most, most + 1)], dtype=torch.float32)


def pack_bits(marks: Tensor) -> Tensor:
    """uint8 [m, ceil(k / 8)] of bool [m, k], the first bit lowest."""
    padded = torch.nn.functional.pad(marks.to(torch.uint8), (0, -marks.shape[1] % 8)).view(len(marks), -1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=marks.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, size: int) -> Tensor:
    """bool [m, size]: what `pack_bits` was given."""
    return (packed[..., None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1).flatten(1)[:, :size].bool()


@dataclass(frozen=True)
class SignBit(Scalars):
    """One bit a number: 1 or -1, the sign; of 0 by lot."""

    def code(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (pack_bits((x > 0) | ((x == 0) & (bits(key, x.shape[1]) > 0))),)

    def value(self, coded: tuple[Tensor, ...], size: int) -> Tensor:
        return unpack_bits(coded[0], size).to(torch.float32) * 2 - 1


@dataclass(frozen=True)
class Log8Byte(Scalars):
    """One byte a number: the sign and round(8 ln|p|) from -63 to 63, so 3.8e-4 to 2,630 within 6.45 %; byte 0 is zero, 128 is never sent.

    The strict byte of which the paper speaks; its code needs nine bits, see `log16_9bit`. Infinite numbers arrive as the greatest.
    """

    name: ClassVar[str] = "log8_byte"
    source: ClassVar[str] = "after Zelikman et al. 2023"

    def code(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        place = (exponents(x, 8, 63) + 64).to(torch.uint8)
        return (torch.where(x == 0, 0, place | ((x < 0).to(torch.uint8) << 7)),)

    def value(self, coded: tuple[Tensor, ...], size: int) -> Tensor:
        (byte,) = coded
        if bool((byte == 128).any()):
            raise RunError(f"byte 128, which `{self.name}` never sends")
        place = (byte & 127).long()
        found = _values(8, 63).to(byte.device)[(place - 1).clamp(min=0)]
        return torch.where(place == 0, 0, torch.where(byte > 127, -found, found))


@dataclass(frozen=True)
class Log16NineBit(Scalars):
    """Nine bits a number, as the paper's code has it: a sign and round(16 ln|p|) from -127 to 127, so 3.57e-4 to 2,800 within 3.18 %.

    Zero has the one code that is free. Infinite numbers arrive as the greatest.
    """

    name: ClassVar[str] = "log16_9bit"
    source: ClassVar[str] = "Zelikman et al. 2023 (code)"

    def code(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        place = torch.where(x == 0, 255, exponents(x, 16, 127) + 127).to(torch.uint8)
        return place, pack_bits(x < 0)

    def value(self, coded: tuple[Tensor, ...], size: int) -> Tensor:
        byte, signs = coded
        found = _values(16, 127).to(byte.device)[byte.long().clamp(max=254)]
        return torch.where(byte == 255, 0, torch.where(unpack_bits(signs, size), -found, found))
