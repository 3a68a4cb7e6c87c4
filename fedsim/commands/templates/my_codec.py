"""MyCodec: authors, year, title, link, if there are any.

A codec turns named rows into what travels, and back; its size is that of what travels. `fedsim list codec` shows those that are there.
"""

# m: rows, d: numbers of a part

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import setting
from fedsim.codecs import Flat


@dataclass(frozen=True)
class MyCodec(Flat):
    """Rounds each number to one of 2 x levels + 1 that are evenly spaced up to the greatest of its row, and sends a byte for it."""

    fields: ClassVar[tuple[str, ...]] = ("greatest",)  # names of what `squeeze` returns after its first tensor

    levels: int = setting(7, "steps between 0 and the greatest number", ge=1, le=127)

    def squeeze(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """What travels of x [m, d]: int8 [m, d] and the greatest of each row [m, 1]. Chance, if any, is a function of key [m]."""
        greatest = x.abs().amax(1, keepdim=True)
        share = torch.where(greatest > 0, x / greatest, 0.0)
        return (share * self.levels).round().to(torch.int8), greatest

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        """[m, size] from what travelled."""
        steps, greatest = coded
        return steps * (greatest / self.levels)
