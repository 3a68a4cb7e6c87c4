"""Numbers as they are, in shorter types, and one codec after another."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.rows import Rows
from fedsim.codecs.base import Codec
from fedsim.codecs.sparse import Some
from fedsim.settings.part import setting


@dataclass(frozen=True)
class Identity(Codec):
    """Sends the numbers as they are."""

    name: ClassVar[str] = "none"
    lossless: ClassVar[bool] = True

    def alpha(self, size: int) -> float | None:
        return 1.0

    def omega(self, size: int) -> float | None:
        return 0.0


@dataclass(frozen=True)
class Float16(Codec):
    """Rounds every number to half precision (IEEE 754 binary16); above 65,504 becomes infinite."""

    dtype: ClassVar[torch.dtype] = torch.float16

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return {name: rows.to(self.dtype) if rows.is_floating_point() else rows for name, rows in parts.items()}

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return {name: rows.float() if rows.dtype == self.dtype else rows for name, rows in wire.items()}, memory


@dataclass(frozen=True)
class BFloat16(Float16):
    """Rounds every number to bfloat16: the range of single precision, 8 bits of significand."""

    name: ClassVar[str] = "bfloat16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16

    def alpha(self, size: int) -> float | None:
        return 1 - 2.0**-16  # off by at most 2^-8 of each number


@dataclass(frozen=True)
class Chain(Codec):
    """One codec after the other, each on what the one before sends: the places and 16-bit numbers of `[topk, float16]`."""

    parts: tuple[Codec, ...] = setting(help="codecs that remember nothing, the first one first")

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("`parts` is empty; `none` sends the numbers as they are")
        some = {"part": torch.zeros(1, 400)}
        if keeps := [part.name for part in self.parts if part.init(some)]:
            raise ValueError(f"`{keeps[0]}` remembers, and does not stand in a chain; it may stand around one")

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        for part in self.parts:
            parts = part.encode(parts, {}, key)
        return parts

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        for part in reversed(self.parts):
            wire, _ = part.decode(wire, {}, key)
        return wire, memory

    def alpha(self, size: int) -> float | None:
        """Of codecs after one that sends some of the numbers: what each of the two leaves out is orthogonal to the other."""
        found = [part.alpha(count) for part, count in self._sizes(size)]
        return None if None in found or not isinstance(self.parts[0], Some) else prod(alpha or 0.0 for alpha in found)

    def omega(self, size: int) -> float | None:
        found = [part.omega(count) for part, count in self._sizes(size)]
        return None if None in found else prod(1 + (omega or 0.0) for omega in found) - 1

    def shortening(self, size: int) -> float:
        return prod(part.shortening(count) for part, count in self._sizes(size))

    def _sizes(self, size: int) -> list[tuple[Codec, int]]:
        """Each part, and how many numbers come to it."""
        found = []
        for part in self.parts:
            found.append((part, size))
            size = part.numbers(size)
        return found
