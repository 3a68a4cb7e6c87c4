"""Linear sketches: s numbers y = R x of d, which come back as R' y. E R'R = I, so they are right in the mean.

Both ends draw R from the key of the message (`fresh`), or once for all, so it takes no bytes. With one R for all, sketches of several
senders add up to the sketch of their sum, but what lies outside its s dimensions never arrives.
"""

# m: rows, d: numbers of a part, s: of its sketch, p: d, or the next power of two

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.base.errors import Unfit
from fedsim.base.keys import bits, fold, normal
from fedsim.codecs.base import Flat, share_of
from fedsim.codecs.bits import PIECE, pieces, unpack_codes, words
from fedsim.settings.part import setting
from fedsim.settings.values import Share

SOURCE = "Song et al. 2023"


@dataclass(frozen=True)
class Sketch(Flat):
    """Codecs whose `squeeze` is R x and whose `restore` is R' y; a key may be one for all rows."""

    abstract: ClassVar[bool] = True
    exclusive: ClassVar[tuple[str, ...]] = ("fraction", "count")
    source: ClassVar[str] = SOURCE
    linear: ClassVar[bool] = True

    fraction: Share | None = setting(None, "numbers of a sketch, as a share of the part's; 10 % if `count` is not set either", gt=0, le=1)
    count: int | None = setting(None, "how many numbers instead (s)", ge=1)
    fresh: bool = setting(True, "another sketch for each message, not one for all")

    def __post_init__(self) -> None:
        if self.fraction is not None and self.count is not None:
            raise ValueError("`fraction` and `count` exclude each other; `fraction: none` is without")

    def kept(self, size: int) -> int:
        """s for a part of `size` numbers. Raises Unfit for more than those."""
        return share_of(size, self.count, self.fraction or 0.1)

    def numbers(self, size: int) -> int:
        return self.kept(size)

    def omega(self, size: int) -> float | None:
        """The mean is over sketches: one for all is never right."""
        return self.variance(size) if self.fresh else None

    def variance(self, size: int) -> float:
        return (size - 1) / self.kept(size)

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        key, size = self._drawn(key), x.shape[1]
        y: Tensor = _Linear.apply(x.float(), lambda x: self.sketch(x, key), lambda y: self.desketch(y, size, key))  # type: ignore[no-untyped-call]
        return (y,)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        key = self._drawn(key)
        x: Tensor = _Linear.apply(coded[0], lambda y: self.desketch(y, size, key), lambda x: self.sketch(x, key))  # type: ignore[no-untyped-call]
        return x

    def _drawn(self, key: Tensor) -> Tensor:
        """What R is drawn from: [m], or [1] for all."""
        return key if self.fresh else fold(0, "sketch", key[:1] * 0)

    def sketch(self, x: Tensor, key: Tensor) -> Tensor:
        """[m, s] of x [m, d], float32; key [m] or [1]."""
        raise NotImplementedError

    def desketch(self, y: Tensor, size: int, key: Tensor) -> Tensor:
        """[m, size] of y [m, s]."""
        raise NotImplementedError


class _Linear(torch.autograd.Function):
    """A linear map and its transpose, along which slopes go back: what is written in place inside need not be differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back = back
        return forth(x)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(slopes[0].contiguous()), None, None


def signs(key: Tensor, count: int) -> Tensor:
    """float32 [..., count]: 1 or -1 by coin; key [...]."""
    drawn = bits(key.flatten(), ceil(count / 64)).view(torch.uint8)
    return unpack_codes(drawn, 1, count).float().mul_(2).sub_(1).view(*key.shape, count)


@dataclass(frozen=True)
class Dense(Sketch):
    """Sketches that draw each number of R: work of d x s a row, so for small parts."""

    abstract: ClassVar[bool] = True

    def drawn(self, key: Tensor, count: int) -> Tensor:
        """[..., count]: rows of R, times sqrt(s); key [...]."""
        raise NotImplementedError

    def _lines(self, key: Tensor, rows: int, size: int, count: int) -> Iterator[tuple[slice, Tensor]]:
        """R, some of its rows at a time: which they are, and [m or 1, some, d]."""
        some = max(1, PIECE // (rows * size))
        for start in range(0, count, some):
            at = slice(start, min(start + some, count))
            yield at, self.drawn(fold(key[:, None], torch.arange(at.start, at.stop, device=key.device)), size)

    def sketch(self, x: Tensor, key: Tensor) -> Tensor:
        y = x.new_empty(len(x), self.kept(x.shape[1]))
        for at, lines in self._lines(key, len(x), x.shape[1], y.shape[1]):
            y[:, at] = (lines * x[:, None]).sum(2)
        return y.mul_(y.shape[1] ** -0.5)

    def desketch(self, y: Tensor, size: int, key: Tensor) -> Tensor:
        x = y.new_zeros(len(y), size)
        for at, lines in self._lines(key, len(y), size, y.shape[1]):
            for line, number in zip(lines.unbind(1), y[:, at].unbind(1), strict=True):  # in this order, whoever else is there
                x += line * number[:, None]
        return x.mul_(y.shape[1] ** -0.5)


@dataclass(frozen=True)
class GaussianSketch(Dense):
    """R has independent normal numbers of variance 1/s; each is drawn, so it is for small parts."""

    name: ClassVar[str] = "gaussian"

    def variance(self, size: int) -> float:
        return (size + 1) / self.kept(size)

    def drawn(self, key: Tensor, count: int) -> Tensor:
        return normal(key, count)


@dataclass(frozen=True)
class Ams(Dense):
    """R has random signs over sqrt(s); each is drawn, so it is for small parts."""

    source: ClassVar[str] = "Alon et al. 1999"

    def drawn(self, key: Tensor, count: int) -> Tensor:
        return signs(key, count)


@dataclass(frozen=True)
class Srht(Sketch):
    """Random signs, a Hadamard transform, and s of its p numbers, none twice; p is d filled up to a power of two."""

    source: ClassVar[str] = "Ailon & Chazelle 2006; Song et al. 2023"

    def variance(self, size: int) -> float:
        filled = power_of_two(size)  # each of the d - 1 other numbers adds (p / s - 1) / (p - 1) of its square to a number
        return (size - 1) * (filled / self.kept(size) - 1) / (filled - 1)

    def sketch(self, x: Tensor, key: Tensor) -> Tensor:
        filled, count = power_of_two(x.shape[1]), self.kept(x.shape[1])
        turned = hadamard(pad(x * signs(key, x.shape[1]), (0, filled - x.shape[1])))
        return turned.gather(1, distinct(key, count, filled).expand(len(x), -1)).mul_(count**-0.5)

    def desketch(self, y: Tensor, size: int, key: Tensor) -> Tensor:
        filled, count = power_of_two(size), y.shape[1]
        turned = y.new_zeros(len(y), filled).scatter_(1, distinct(key, count, filled).expand(len(y), -1), y)
        return (hadamard(turned)[:, :size] * signs(key, size)).mul_(count**-0.5)


@dataclass(frozen=True)
class Hashed(Sketch):
    """Sketches with a few numbers, each a random sign, in each column of R, drawn by a hash."""

    abstract: ClassVar[bool] = True

    @property
    def each(self) -> int:
        """Numbers in a column; each lies in its own of as many equal blocks of the sketch."""
        return 1

    def sketch(self, x: Tensor, key: Tensor) -> Tensor:
        y = x.new_zeros(self.each, len(x), self.kept(x.shape[1]) // self.each)
        for block, part in enumerate(y):
            own = fold(key, block)
            for at in pieces(len(x), x.shape[1], 2):
                word = words(own, at)
                part.scatter_add_(1, _place(word, part.shape[1]).expand(len(x), -1), _flipped(x[:, at], word))
        return y.transpose(0, 1).flatten(1).mul_(self.each**-0.5)

    def desketch(self, y: Tensor, size: int, key: Tensor) -> Tensor:
        x = y.new_zeros(len(y), size)
        for block, part in enumerate(y.view(len(y), self.each, -1).unbind(1)):
            own = fold(key, block)
            for at in pieces(len(y), size, 2):
                word = words(own, at)
                x[:, at] += _flipped(part.gather(1, _place(word, part.shape[1]).expand(len(y), -1)), word)
        return x.mul_(self.each**-0.5)


@dataclass(frozen=True)
class CountSketch(Hashed):
    """Each number is added, with a random sign, to one of the s, drawn by a hash."""

    name: ClassVar[str] = "countsketch"
    source: ClassVar[str] = "Charikar et al. 2002"


@dataclass(frozen=True)
class SparseSketch(Hashed):
    """Each number is added, with random signs over sqrt(b), to b of the s, one in each of b blocks; `countsketch` where b is 1."""

    name: ClassVar[str] = "sparse"
    source: ClassVar[str] = "Nelson & Nguyen 2013"

    nonzeros: int = setting(4, "to how many each number is added (b); s is rounded down to a multiple", ge=1)

    @property
    def each(self) -> int:
        return self.nonzeros

    def kept(self, size: int) -> int:
        count = super().kept(size)
        if count < self.nonzeros:
            raise Unfit(f"a sketch of {count} numbers of a part of {size:,} has no {self.nonzeros} blocks (`nonzeros`)")
        return count // self.nonzeros * self.nonzeros


def power_of_two(size: int) -> int:
    """The least one that is not less."""
    return 1 << (size - 1).bit_length()


def distinct(key: Tensor, count: int, size: int) -> Tensor:
    """int64 [m, count]: different places among `size`, a power of two, in an order that mixes well; key [m].

    Each round is one to one: an odd factor and a summand modulo `size`, and an exclusive or with the upper half of the bits.
    """
    at, half = torch.arange(count, device=key.device), size.bit_length() // 2
    for round in bits(key, 6).view(-1, 3, 2).unbind(1):
        at = (at * (round[:, :1] | 1) + round[:, 1:]) & (size - 1)
        at = at ^ (at >> half)
    return at


def hadamard(x: Tensor) -> Tensor:
    """The Walsh-Hadamard transform of x [m, p], p a power of two, by its definition with entries 1 and -1; a fixed order of sums."""
    rows, size = x.shape
    low = 1 << (size.bit_length() - 1) // 2
    x = _butterflies(x.contiguous().view(rows, size // low, low))
    return _butterflies(x.transpose(1, 2).contiguous()).transpose(1, 2).reshape(rows, size)


def _butterflies(x: Tensor) -> Tensor:
    """The transform along the middle axis of x [m, a, b], so that what is added lies side by side."""
    rows, count, width = x.shape
    reach = 1
    while reach < count:
        pairs = x.view(rows, count // (2 * reach), 2, reach * width)
        out = torch.empty_like(pairs)
        torch.add(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 0])
        torch.sub(pairs[:, :, 0], pairs[:, :, 1], out=out[:, :, 1])
        x, reach = out, 2 * reach
    return x.view(rows, count, width)


def _place(word: Tensor, count: int) -> Tensor:
    """int64, below `count`, from the lower 31 bits of random words."""
    return (word & 0x7FFFFFFF).to(torch.int64).mul_(count).bitwise_right_shift_(31)


def _flipped(x: Tensor, word: Tensor) -> Tensor:
    """x [m, n] with the sign turned where a word [m or 1, n] is negative."""
    return (x.contiguous().view(torch.int32) ^ (word & -(1 << 31))).view(torch.float32)
