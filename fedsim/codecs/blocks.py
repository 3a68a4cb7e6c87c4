"""Block-wise dynamic 8-bit quantisation."""

# m: rows, d: numbers of a part, b: of a block

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.codecs.base import Flat
from fedsim.codecs.bits import pieces
from fedsim.settings.part import setting

LEAST = 1e-38  # of a block's greatest


@lru_cache(maxsize=8)
def codebook(device: torch.device, signed: bool = True) -> Tensor:
    """float32 [256], rising: midpoints of 2^e cells of [0.1, 1] times 10^(e - 6) for e = 0 to 6, with both signs; 0; and 1.

    Unsigned, of 2^(e + 1) cells, without signs: twice as fine.
    """
    finer = 1 if signed else 2
    positive = [(0.1 + 0.9 * (cell + 0.5) / (finer * 2**e)) * 10.0 ** (e - 6) for e in range(7) for cell in range(finer * 2**e)]
    return torch.tensor(sorted([*positive, *(-value for value in positive if signed), 0.0, 1.0]), device=device)


@lru_cache(maxsize=8)
def _tables(device: torch.device, signed: bool) -> tuple[Tensor, Tensor]:
    """For the upper 16 bits of a float32: the code of the least such number's absolute value, and the threshold to the next code.

    No two thresholds share their upper 16 bits, so one comparison finds the code.
    """
    book = codebook(torch.device("cpu"), signed)
    between = (book[1:] + book[:-1]) / 2
    if not signed:
        between[0] = 0  # what is not 0 does not become 0
    least = (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)
    negative = torch.arange(1 << 16) >= 1 << 15
    least = torch.where(negative, (least.view(torch.int32) | 0xFFFF).view(torch.float32), least)  # nearest to -1
    code = torch.bucketize(least.nan_to_num(nan=0.0), between)
    above = torch.cat([between, between.new_tensor([torch.inf])])[code]
    return code.to(torch.uint8).to(device), above.to(device)


def quantised(x: Tensor, block: int, signed: bool = True) -> tuple[Tensor, Tensor]:
    """uint8 [m, d]: the nearest value of the codebook for each number of x [m, d] over its block's greatest; float32 [m, blocks]: these.

    Unsigned x is 0 or more, and what is not 0 becomes at least the book's least value above 0.
    """
    codes, scales = torch.empty(x.shape, dtype=torch.uint8, device=x.device), []
    lowest, threshold = _tables(x.device, signed)
    for at in pieces(len(x), x.shape[1], block):
        piece = x[:, at].float()
        more = -piece.shape[1] % block
        split = (pad(piece, (0, more)) if more else piece).reshape(len(x), -1, block)
        greatest = split.abs().amax(2)
        scales.append(torch.where(greatest.isfinite(), greatest, torch.nan))
        ratio = (split / greatest.clamp(min=LEAST)[..., None]).flatten(1)[:, : piece.shape[1]].contiguous()
        upper = ratio.view(torch.int32).flatten() >> 16 & 0xFFFF
        above = ratio.flatten() > threshold.index_select(0, upper)
        codes[:, at] = (lowest.index_select(0, upper) + above).view_as(ratio)
    return codes, torch.cat(scales, 1)


def restored(codes: Tensor, greatest: Tensor, block: int, signed: bool = True) -> Tensor:
    """float32 [m, d]: what `quantised` made codes and greatest values of, up to half a cell of its block's greatest."""
    out, book = torch.empty(codes.shape, device=codes.device), codebook(codes.device, signed)
    for at in pieces(len(codes), codes.shape[1], block):
        scale = greatest[:, at.start // block : -(-at.stop // block)]
        values = book.index_select(0, codes[:, at].flatten().to(torch.int32)).view(len(codes), -1)
        more = -values.shape[1] % block
        split = (pad(values, (0, more)) if more else values).view(len(codes), -1, block)
        out[:, at] = (split * scale[..., None]).flatten(1)[:, : at.stop - at.start]
    return out


@dataclass(frozen=True)
class Blocks8(Flat):
    """Each number as the nearest of 256 values between -1 and 1, finer near 0, times the greatest absolute value of its block.

    A byte a number and four a block. The greatest arrives as it is, its negative 0.7 % too short; what is below 2.75e-7 of it as 0. A block
    with a number that is not finite arrives as nan.
    """

    source: ClassVar[str] = "Dettmers et al. 2022"
    fields: ClassVar[tuple[str, ...]] = ("greatest",)

    block: int = setting(2048, "numbers of a block (b)", ge=64, le=4096)

    def alpha(self, size: int) -> float | None:
        return 1 - min(self.block, size) * 0.00703125**2

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return quantised(x, self.block)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        codes, greatest = coded
        return restored(codes, greatest, self.block)
