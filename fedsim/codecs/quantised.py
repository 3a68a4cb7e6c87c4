"""All numbers, each in few bits.

A bucket (or part) with a number that is not finite arrives as not finite, all of it: nothing is made up, and a run ends with the names of
those who sent it.
"""

# m: rows, d: numbers of a part, b: of a bucket, n: buckets of a part

from dataclasses import dataclass
from math import lcm, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.codecs.base import Flat
from fedsim.codecs.bits import pack_codes, pieces, uniform, unpack_codes, words
from fedsim.settings.part import setting

LARGEST = 3e38  # a factor that does not make nan of 0


@dataclass(frozen=True)
class Sign(Flat):
    """The sign of each number, in a bit, and their mean absolute value; 0 counts as positive."""

    source: ClassVar[str] = "Bernstein et al. 2018, with the norm of Karimireddy et al. 2019"
    fields: ClassVar[tuple[str, ...]] = ("mean",)

    def alpha(self, size: int) -> float | None:
        return 1 / size  # |v|_1^2 / (d |v|_2^2) at the worst v

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return pack_codes((x < 0).view(torch.uint8), 1), x.abs().mean(1, keepdim=True).float()

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        packed, mean = coded
        return unpack_codes(packed, 1, size).float().mul_(-2).add_(1).mul_(mean)


@dataclass(frozen=True)
class Natural(Flat):
    """Natural compression: each number rounded to a power of two, in nine bits: its sign and its exponent."""

    source: ClassVar[str] = "Horváth et al. 2022"
    fields: ClassVar[tuple[str, ...]] = ("signs",)

    rounding: Literal["stochastic", "nearest"] = setting("stochastic", "unbiased, or to the nearest power and from halfway up")

    def omega(self, size: int) -> float | None:
        return 1 / 8 if self.rounding == "stochastic" else None

    def alpha(self, size: int) -> float | None:
        return 8 / 9 if self.rounding == "nearest" else None

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        exponents = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
        for at in pieces(len(x), x.shape[1], 2):
            pattern = x[:, at].float().view(torch.int32) & 0x7FFFFFFF
            pattern.clamp_(max=0x7F800000)  # nan is infinite
            pattern += words(key, at) & 0x7FFFFF if self.rounding == "stochastic" else 1 << 22
            exponents[:, at] = pattern >> 23
        return exponents, pack_codes((x < 0).view(torch.uint8), 1)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        exponents, signs = coded
        return (exponents.to(torch.int32) << 23).bitwise_or_(unpack_codes(signs, 1, size).to(torch.int32) << 31).view(torch.float32)


@dataclass(frozen=True)
class Buckets(Flat):
    """Codecs that round the numbers of a bucket to a few equal steps, up or down by chance so that their mean is right."""

    abstract: ClassVar[bool] = True
    fields: ClassVar[tuple[str, ...]] = ("scale",)

    bucket: int = setting(512, "neighbouring numbers that share a scale (b)", ge=1)

    @property
    def width(self) -> int:
        """Bits of a number."""
        raise NotImplementedError

    def scales(self, x: Tensor) -> Tensor:
        """[m, n, k]: k numbers that say which values the codes of each bucket of x [m, n, b] mean."""
        raise NotImplementedError

    def place(self, x: Tensor, scale: Tensor) -> Tensor:
        """[m, n, b]: where numbers stand in steps, about 0 to 2^width - 1; 0 numbers at whole ones where 0 is a value."""
        raise NotImplementedError

    def value(self, code: Tensor, scale: Tensor) -> Tensor:
        """[m, n, b] of codes [m, n, b], float32, which may be written to."""
        raise NotImplementedError

    def top(self) -> int:
        """The greatest code."""
        raise NotImplementedError

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        codes, scales = [], []
        for at in pieces(len(x), x.shape[1], lcm(self.bucket, 8)):
            piece, lots = x[:, at].float(), uniform(key, at)
            more = -piece.shape[1] % self.bucket
            split = (pad(piece, (0, more)) if more else piece).reshape(len(x), -1, self.bucket)
            scale = self.scales(split)
            place = self.place(split, scale).flatten(1)[:, : piece.shape[1]]
            codes.append(pack_codes((place + lots).floor_().clamp_(0, self.top()).to(torch.uint8), self.width))
            scales.append(scale)
        return torch.cat(codes, 1), torch.cat(scales, 1)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        packed, scales = coded
        out = torch.empty(len(packed), size, device=packed.device)
        for at in pieces(len(packed), size, lcm(self.bucket, 8)):
            count = at.stop - at.start
            code = unpack_codes(packed[:, at.start * self.width // 8 : -(-at.stop * self.width // 8)], self.width, count).float()
            more = -count % self.bucket
            split = (pad(code, (0, more)) if more else code).reshape(len(packed), -1, self.bucket)
            scale = scales[:, at.start // self.bucket : -(-at.stop // self.bucket)]
            out[:, at] = self.value(split, scale).flatten(1)[:, :count]
        return out


def _inverse(scale: Tensor, steps: int) -> Tensor:
    """steps / scale, 0 where the scale is 0 or nan."""
    return torch.where(scale > 0, (steps / scale).clamp_(max=LARGEST), 0)


@dataclass(frozen=True)
class Qsgd(Buckets):
    """Rounds the numbers of a bucket to multiples of its length over `levels`, by chance so that their mean is right.

    1 + ceil(log2(levels + 1)) bits a number and 32 a bucket.
    """

    name: ClassVar[str] = "qsgd"
    source: ClassVar[str] = "Alistarh et al. 2017"

    levels: int = setting(16, "steps between 0 and the length of a bucket (s)", ge=1, le=127)

    @property
    def width(self) -> int:
        return 1 + self.levels.bit_length()

    def omega(self, size: int) -> float | None:
        bucket = min(size, self.bucket)
        return min(bucket / self.levels**2, sqrt(bucket) / self.levels)

    def scales(self, x: Tensor) -> Tensor:
        found: Tensor = torch.linalg.vector_norm(x, dim=2, keepdim=True)
        return found

    def place(self, x: Tensor, scale: Tensor) -> Tensor:
        return (x * _inverse(scale, self.levels)).add_(self.levels)

    def value(self, code: Tensor, scale: Tensor) -> Tensor:
        return code.sub_(self.levels).mul_(scale / self.levels)

    def top(self) -> int:
        return 2 * self.levels


@dataclass(frozen=True)
class Ternary(Buckets):
    """TernGrad: a number becomes 0, or plus or minus the greatest absolute value of its bucket, by chance so that their mean is right."""

    source: ClassVar[str] = "Wen et al. 2017"

    width: ClassVar[int] = 2

    def omega(self, size: int) -> float | None:
        return (sqrt(min(size, self.bucket)) - 1) / 2  # the worst v has one number sqrt(b) + 1 times as great as all others

    def scales(self, x: Tensor) -> Tensor:
        return x.abs().amax(2, keepdim=True)

    def place(self, x: Tensor, scale: Tensor) -> Tensor:
        return (x * _inverse(scale, 1)).add_(1)

    def value(self, code: Tensor, scale: Tensor) -> Tensor:
        return code.sub_(1).mul_(scale)

    def top(self) -> int:
        return 2


@dataclass(frozen=True)
class Uniform(Buckets):
    """Rounds the numbers of a bucket to equal steps from its least to its greatest, by chance so that their mean is right."""

    fields: ClassVar[tuple[str, ...]] = ("range",)

    bits: Literal[8, 4, 2] = setting(8, "of a number")

    @property
    def width(self) -> int:
        return self.bits

    def omega(self, size: int) -> float | None:
        return min(size, self.bucket) / (2 * self.top() ** 2)  # (step / 2)^2 a number, and (max - min)^2 <= 2 |v|^2

    def scales(self, x: Tensor) -> Tensor:
        least, greatest = x.amin(2), x.amax(2)
        return torch.stack([least, (greatest - least) / self.top()], 2)

    def place(self, x: Tensor, scale: Tensor) -> Tensor:
        return (x - scale[..., :1]).mul_(_inverse(scale[..., 1:], 1))

    def value(self, code: Tensor, scale: Tensor) -> Tensor:
        return code.mul_(scale[..., 1:]).add_(scale[..., :1])

    def top(self) -> int:
        return (1 << self.bits) - 1
