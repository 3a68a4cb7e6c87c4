"""Whole numbers of few bits as bytes, random words, and pieces that fit into a cache."""

# m: rows, n: numbers of a row

import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.base.keys import bits

assert sys.byteorder == "little", "messages are written in the order of the machine's bytes"
PIECE = 1 << 16  # numbers at work at once


def _lanes(width: int, count: int, lane: int) -> int:
    """int64 whose lanes of `lane` bits have their lowest `width x count` bits set."""
    word = sum(((1 << width * count) - 1) << start for start in range(0, 64, lane))
    return word - (1 << 64) if word >> 63 else word


def pack_codes(codes: Tensor, width: int) -> Tensor:
    """uint8 [m, ceil(n x width / 8)] of uint8 [m, n], of which the lowest `width` bits (1 to 8) count; the first number lies lowest."""
    rows, count = codes.shape
    words = (pad(codes, (0, -count % 8)) if count % 8 else codes.contiguous()).view(torch.int64)  # eight codes, a byte each
    words = words & _lanes(width, 1, 8)
    for lane, held in ((16, 1), (32, 2), (64, 4)) if width < 8 else ():  # the upper half of each lane closes up to the lower
        shift, low = lane // 2 - width * held, _lanes(width, held, lane)
        words = (words & low) | ((words >> shift) & ~low & _lanes(width, 2 * held, lane))
    packed = words.view(torch.uint8).view(rows, -1, 8)[..., :width].reshape(rows, -1)
    return packed[:, : -(-count * width // 8)].contiguous() if count % 8 else packed


def unpack_codes(packed: Tensor, width: int, count: int) -> Tensor:
    """uint8 [m, count]: what `pack_codes` packed."""
    rows, groups = len(packed), -(-count // 8)
    packed = pad(packed, (0, groups * width - packed.shape[1])).view(rows, groups, width)
    words = pad(packed, (0, 8 - width)).view(torch.int64)[..., 0]
    for lane, held in ((64, 4), (32, 2), (16, 1)) if width < 8 else ():
        shift, low = lane // 2 - width * held, _lanes(width, held, lane)
        words = (words & low) | ((words << shift) & (_lanes(width, held, lane) << lane // 2))
    return words.contiguous().view(torch.uint8)[:, :count]


def pieces(rows: int, size: int, step: int) -> Iterator[slice]:
    """Columns of [rows, size] in neighbouring ranges that fit into a cache, all but the last a multiple of `step`."""
    width = max(step, PIECE // rows // step * step)
    yield from (slice(start, min(start + width, size)) for start in range(0, size, width))


def words(key: Tensor, columns: slice) -> Tensor:
    """int32 [m, n]: random 32-bit words of these columns (from an even one on), whatever the others are; key [m]."""
    first, last = columns.start // 2, -(-columns.stop // 2)
    return bits(key, last - first, first).view(torch.int32)[:, : columns.stop - columns.start]


def uniform(key: Tensor, columns: slice) -> Tensor:
    """float32 [m, n]: multiples of 2^-24 in [0, 1), as `words`."""
    return (words(key, columns) >> 8).to(torch.float32).mul_(2.0**-24).add_(0.5)
