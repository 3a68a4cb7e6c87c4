"""Codecs around codecs that remember what has not arrived yet, so that in the end all of it does."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.codecs.base import Codec
from fedsim.codecs.sketches import Sketch
from fedsim.codecs.sparse import TopK
from fedsim.part import setting
from fedsim.rows import Layout, Rows


@dataclass(frozen=True)
class Feedback(Codec):
    """Around a codec C that contracts. One that is right in the mean is made to: what arrives of it counts 1 / (1 + omega)."""

    abstract: ClassVar[bool] = True

    inner: Codec = setting(TopK(fraction=0.05), "the codec (C) within")

    def __post_init__(self) -> None:
        if isinstance(self.inner, Sketch) and not self.inner.fresh:
            raise ValueError(f"`{self.inner.name}` with `fresh: false` leaves out the same things each time; feedback can't make up for it")

    def fitted(self, layout: Layout) -> Codec:
        return replace(self, inner=self.inner.fitted(layout))

    def _inner(self, memory: Rows) -> Rows:
        """What the inner codec remembers."""
        return {name.removeprefix("inner "): rows for name, rows in memory.items() if name.startswith("inner ")}

    def _short(self, parts: Rows) -> Rows:
        """Parts as the inner codec delivers them, shortened where it does not contract."""
        sizes = {name: rows[0].numel() for name, rows in parts.items() if rows.is_floating_point() and rows[0].numel() > 1}
        factors = {name: self.inner.shortening(size) for name, size in sizes.items()}
        return parts | {name: parts[name] * factor for name, factor in factors.items() if factor != 1}


@dataclass(frozen=True)
class Ef21(Feedback):
    """Both ends keep an estimate, only the change since then travels, through the inner codec, and the new estimate is what arrives.

    Richtárik, Sokolov, Fatkhullin 2021, "EF21", https://arxiv.org/abs/2106.05203, Algorithm 2: g += C(x - g), from g = 0.
    """

    source: ClassVar[str] = "Richtárik et al. 2021"

    def init(self, parts: Rows) -> Rows:
        return {f"known {name}": torch.zeros_like(rows) for name, rows in parts.items()} | _named("inner", self.inner.init(parts))

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return self.inner.encode(self._change(parts, memory), self._inner(memory), key)

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return self._known(*self.inner.decode(wire, self._inner(memory), key), memory)

    def carry(self, parts: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return self._known(*self.inner.carry(self._change(parts, memory), self._inner(memory), key), memory)

    def _change(self, parts: Rows, memory: Rows) -> Rows:
        return {name: rows - memory[f"known {name}"] for name, rows in parts.items()}

    def _known(self, change: Rows, inner: Rows, memory: Rows) -> tuple[Rows, Rows]:
        parts = {name: memory[f"known {name}"] + rows for name, rows in self._short(change).items()}
        return parts, _named("known", parts) | _named("inner", inner)


@dataclass(frozen=True)
class Ef14(Feedback):
    """What did not arrive is added to the next message: c = C(x + e), e += x - c. Only the sender remembers."""

    source: ClassVar[str] = "Seide et al. 2014; Karimireddy et al. 2019"

    def init(self, parts: Rows) -> Rows:
        return {f"error {name}": torch.zeros_like(rows) for name, rows in parts.items()} | _named("inner", self.inner.init(parts))

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return self.inner.encode(self._due(parts, memory), self._inner(memory), key)

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        """The receiver does not know the error, and hands it back as it was."""
        parts, inner = self.inner.decode(wire, self._inner(memory), key)
        error = {name: rows for name, rows in memory.items() if name.startswith("error ")}
        return self._short(parts), error | _named("inner", inner)

    def carry(self, parts: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        due = self._due(parts, memory)
        came, inner = self.inner.carry(due, self._inner(memory), key)
        came = self._short(came)
        return came, {f"error {name}": rows - came[name] for name, rows in due.items()} | _named("inner", inner)

    def _due(self, parts: Rows, memory: Rows) -> Rows:
        return {name: rows + memory[f"error {name}"] for name, rows in parts.items()}


def _named(word: str, rows: Rows) -> Rows:
    return {f"{word} {name}": tensor for name, tensor in rows.items()}
