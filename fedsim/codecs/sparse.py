"""Some of the numbers, with their places."""

# m: rows, d: numbers of a part, k: those of them that are sent

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.keys import bits
from fedsim.codecs.base import Flat, share_of
from fedsim.codecs.bits import pack_codes, unpack_codes
from fedsim.settings.part import setting
from fedsim.settings.values import Share


@dataclass(frozen=True)
class Some(Flat):
    """Codecs that send some of the numbers."""

    abstract: ClassVar[bool] = True
    exclusive: ClassVar[tuple[str, ...]] = ("fraction", "count")

    fraction: Share | None = setting(None, "share of the numbers that is sent; 1 % if `count` is not set either", gt=0, le=1)
    count: int | None = setting(None, "how many numbers of each part instead (k)", ge=1)

    def __post_init__(self) -> None:
        if self.fraction is not None and self.count is not None:
            raise ValueError("`fraction` and `count` exclude each other; `fraction: none` is without")

    def kept(self, size: int) -> int:
        """How many of `size` numbers are sent, at least 1. Raises Unfit."""
        return share_of(size, self.count, self.fraction or 0.01)

    def numbers(self, size: int) -> int:
        return self.kept(size)

    def whole(self, size: int) -> bool:
        return self.kept(size) == size


@dataclass(frozen=True)
class TopK(Some):
    """Sends the greatest numbers of each part by absolute value, with their places; the others arrive as 0. Of equal ones the first go.

    Places take as many bits as a place needs, or one bit for each number of the part where that is less.
    """

    name: ClassVar[str] = "topk"
    fields: ClassVar[tuple[str, ...]] = ("at",)

    def alpha(self, size: int) -> float | None:
        return self.kept(size) / size

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        size, count = x.shape[1], self.kept(x.shape[1])
        mask = greatest(x, count)
        at = _marked(mask, count)
        return x.gather(1, at), pack_codes(_bits(at, size) if _listed(count, size) else mask.view(torch.uint8), 1)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        numbers, packed = coded
        count = numbers.shape[1]
        if _listed(count, size):
            at = _places(unpack_codes(packed, 1, count * _width(size)), count, size)
        else:
            at = _marked(unpack_codes(packed, 1, size), count)
        return numbers.new_zeros(len(numbers), size).scatter_(1, at, numbers)


@dataclass(frozen=True)
class Threshold(TopK):
    """As `topk`, but what is smaller than `least` arrives as 0 too. The message has room for all that could be sent, and costs that."""

    least: float = setting(1e-3, "smallest absolute value that is sent", gt=0)

    def alpha(self, size: int) -> float | None:
        return None  # all may be smaller

    def whole(self, size: int) -> bool:
        return False

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return super().squeeze(torch.where(x.abs() < self.least, 0, x), key)


@dataclass(frozen=True)
class RandK(Some):
    """Sends numbers drawn by lot, none twice. Both ends draw alike, so places take no bytes."""

    name: ClassVar[str] = "randk"
    linear: ClassVar[bool] = True

    scaled: bool = setting(True, "times d / k, so that they are right in the mean; not so, it is a contraction")

    def alpha(self, size: int) -> float | None:
        return None if self.scaled else self.kept(size) / size

    def omega(self, size: int) -> float | None:
        return size / self.kept(size) - 1 if self.scaled else None

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return (x.gather(1, drawn(key, self.kept(x.shape[1]), x.shape[1])),)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        [numbers] = coded
        if self.scaled:
            numbers = numbers * (size / numbers.shape[1])
        return numbers.new_zeros(len(numbers), size).scatter_(1, drawn(key, numbers.shape[1], size), numbers)


def drawn(key: Tensor, count: int, size: int) -> Tensor:
    """int64 [m, count]: different places among `size`, rising; key [m]."""
    return bits(key, size).topk(count, dim=1).indices.sort(1).values


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


def _marked(mask: Tensor, count: int) -> Tensor:
    """int64 [m, count]: the marked places of each row, which has so many, rising. A GPU is not asked how many there are."""
    size = len(mask) * count
    found = mask.nonzero() if mask.device.type == "cpu" else mask.nonzero_static(size=size)
    return found[:, 1].view(-1, count)


def _bits(at: Tensor, size: int) -> Tensor:
    """uint8 [m, k x bits] of places [m, k], the lowest bit of each first."""
    return torch.stack([(at >> bit & 1).to(torch.uint8) for bit in range(_width(size))], -1).flatten(1)


def _places(taken: Tensor, count: int, size: int) -> Tensor:
    """int64 [m, k]: what `_bits` took apart."""
    each = taken.view(len(taken), count, _width(size))
    out = torch.zeros(len(taken), count, dtype=torch.int64, device=taken.device)
    for bit in range(_width(size)):
        out |= each[..., bit].long() << bit
    return out
