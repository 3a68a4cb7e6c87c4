"""Matrices as products of two narrow ones."""

# m: rows, d: numbers of a part, a x b: of a matrix, r: rank

from dataclasses import dataclass, field
from math import ceil, isqrt
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.base.devices import sent
from fedsim.base.errors import Unfit
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout, Rows
from fedsim.codecs.base import Flat
from fedsim.settings.part import setting

Place = tuple[slice, int, int]  # where a matrix lies in a part, and its a and b


@dataclass(frozen=True)
class PowerSgd(Flat):
    """Low rank: M becomes P Q', a step of power iteration from the Q of the link's last message: P = M Q made orthonormal, Q = M' P.

    A part as long as the model is taken apart into its parameters: those with two axes or more are matrices (first axis by all others),
    what low rank would not shorten travels as it is. Any other part is laid out as one nearly square matrix. Use it within `ef14`, `ef21`.
    """

    name: ClassVar[str] = "powersgd"
    source: ClassVar[str] = "Vogels et al. 2019"
    fields: ClassVar[tuple[str, ...]] = ("q", "rest")

    rank: int = setting(2, "columns of P and Q (r)", ge=1)

    def fitted(self, layout: Layout) -> "PowerSgd":
        return Shaped(self.rank, layout)

    def matrices(self, size: int) -> list[Place]:
        """All that a part of so many numbers has."""
        b = isqrt(size)
        return [(slice(0, size), ceil(size / b), b)]

    def places(self, size: int) -> list[Place]:
        """Those that low rank makes shorter. Raises Unfit where `rank` is above the shorter side of them all."""
        found = self.matrices(size)
        if found and all(self.rank > min(a, b) for _, a, b in found):
            most = max(min(a, b) for _, a, b in found)
            raise Unfit(f"`rank: {self.rank}` of matrices whose shorter side is {most} at most, in a part of {size:,} numbers")
        return [(at, a, b) for at, a, b in found if self.rank * (a + b) < at.stop - at.start]

    def whole(self, size: int) -> bool:
        return not self.places(size)

    def init(self, parts: Rows) -> Rows:
        """Q of each matrix, one after the other; 0 where nothing is known."""
        lengths = {
            name: 0 if rows[0].numel() < 2 or not rows.is_floating_point() else self._length(rows[0].numel())
            for name, rows in parts.items()
        }
        return {name: torch.zeros(len(parts[name]), length, device=parts[name].device) for name, length in lengths.items() if length}

    def _length(self, size: int) -> int:
        return self.rank * sum(b for _, _, b in self.places(size))

    def coded(self, name: str, x: Tensor, memory: Rows, key: Tensor) -> tuple[Tensor, ...]:
        known, places, lows, highs = memory[name], self.places(x.shape[1]), [], []
        start = 0
        for number, (at, a, b) in enumerate(places):
            matrix = pad(x[:, at].float(), (0, a * b - (at.stop - at.start))).view(-1, a, b)
            before = known[:, start : start + self.rank * b].view(-1, self.rank, b)
            drawn = normal(fold(key, name, number), self.rank * b).view_as(before)
            low, high = approximate(matrix, torch.where((before == 0).all(2, keepdim=True), drawn, before))
            lows.append(low.flatten(1))
            highs.append(high.flatten(1))
            start += self.rank * b
        return torch.cat(lows, 1), torch.cat(highs, 1), x.index_select(1, self._others(x.shape[1], x.device))

    def _others(self, size: int, device: torch.device) -> Tensor:
        """int64: which of a row's numbers are in no such matrix."""
        rest = torch.ones(size, dtype=torch.bool)
        for at, _, _ in self.places(size):
            rest[at] = False
        return sent(rest.nonzero()[:, 0], device)

    def restore(self, coded: tuple[Tensor, ...], size: int, key: Tensor) -> Tensor:
        lows, highs, others = coded
        out, start, stop = lows.new_empty(len(lows), size), 0, 0
        for at, a, b in self.places(size):
            low = lows[:, start : start + self.rank * a].view(-1, self.rank, a)
            high = highs[:, stop : stop + self.rank * b].view(-1, self.rank, b)
            product = sum(p[:, :, None] * q[:, None] for p, q in zip(low.unbind(1), high.unbind(1), strict=True))
            assert isinstance(product, Tensor)
            out[:, at] = product.flatten(1)[:, : at.stop - at.start]
            start, stop = start + self.rank * a, stop + self.rank * b
        return out.index_copy_(1, self._others(size, out.device), others.to(out.dtype))

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return super().decode(wire, memory, key)[0], {name: wire[f"{name} q"] for name in memory}


@dataclass(frozen=True)
class Shaped(PowerSgd):
    """The same, for models of a layout."""

    abstract: ClassVar[bool] = True
    name: ClassVar[str] = PowerSgd.name

    layout: Layout = field(default_factory=lambda: Layout({}))

    def matrices(self, size: int) -> list[Place]:
        if size != self.layout.size:
            return super().matrices(size)
        shapes = {name: shape for name, shape in self.layout.shapes.items() if len(shape) > 1}
        return [(self.layout.slices[name], shape[0], shape[1:].numel()) for name, shape in shapes.items()]


def approximate(matrix: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """P' [m, r, a], with orthonormal rows or rows of 0, and Q' [m, r, b] of matrices [m, a, b], from Q' of before."""
    low = list[Tensor]()
    for column in before.unbind(1):
        line = (matrix * column[:, None]).sum(2)
        length = torch.linalg.vector_norm(line, dim=1, keepdim=True)
        for _ in range(2):  # once is not orthogonal enough in float32
            for other in low:
                line = line - (line * other).sum(1, keepdim=True) * other
        left = torch.linalg.vector_norm(line, dim=1, keepdim=True)
        low.append(torch.where(left <= 1e-5 * length, 0, line / left))
    return torch.stack(low, 1), torch.stack([(matrix * line[:, :, None]).sum(1) for line in low], 1)
