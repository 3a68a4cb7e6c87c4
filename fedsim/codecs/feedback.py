"""Codecs around codecs that remember what has not arrived yet, so that in the end all of it does."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.base.rows import Layout, Rows
from fedsim.codecs.base import Codec
from fedsim.codecs.sketches import Sketch
from fedsim.codecs.sparse import TopK
from fedsim.settings.part import setting


@dataclass(frozen=True)
class Feedback(Codec):
    """Around a codec C that contracts. One that is right in the mean is made to: what arrives of it counts 1 / (1 + omega)."""

    abstract: ClassVar[bool] = True

    inner: Codec = setting(TopK(), "the codec (C) within")

    def __post_init__(self) -> None:
        if isinstance(self.inner, Sketch) and not self.inner.fresh:
            raise ValueError(f"`{self.inner.name}` with `fresh: false` leaves out the same things each time; feedback can't make up for it")

    def fitted(self, layout: Layout) -> Codec:
        return replace(self, inner=self.inner.fitted(layout))

    def contraction(self, size: int) -> float | None:
        """alpha of what arrives of a message of so many numbers, where it is known."""
        omega = self.inner.omega(size)
        return self.inner.alpha(size) if omega is None else 1 / (1 + omega)

    def heard(self, memory: Rows) -> Rows:
        others = {name: rows for name, rows in memory.items() if not name.startswith(("inner ", "error "))}
        return others | _named("inner", self.inner.heard(self._inner(memory)))

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
class Changes(Ef21):
    """As `ef21`, but only the change arrives, for a method that itself keeps the sum of all estimates; no scenario names it.

    The sender's estimate is of float64, as such a sum should be, or the two would drift apart by what they round differently. The
    first message may be `full`: as it is, without the inner codec.
    """

    abstract: ClassVar[bool] = True

    first: Literal["compressed", "full"] = "compressed"

    def init(self, parts: Rows) -> Rows:
        fresh = super().init(parts)
        fresh |= {name: rows.double() for name, rows in fresh.items() if name.startswith("known ")}
        some = next(iter(parts.values()))
        return fresh | ({"new": some.new_ones(len(some), dtype=torch.int8)} if self.first == "full" else {})

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        """Rows either all are first messages, or none."""
        if not self._new(memory).any():
            return super().encode(parts, memory, key)
        assert self._new(memory).all(), "one kind of message at a time"
        return _named("whole", self._change(parts, memory))

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        if not self._new(memory).any():
            return super().decode(wire, memory, key)
        return self._after({name.removeprefix("whole "): rows for name, rows in wire.items()}, self._inner(memory), memory)

    def carry(self, parts: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        change, before = self._change(parts, memory), self._inner(memory)
        came, inner = self.inner.carry(change, before, key)
        came = self._short(came)
        if (new := self._new(memory)).any():
            came, inner = _chosen(new, change, came), _chosen(new, before, inner)
        return self._after(came, inner, memory)

    def _new(self, memory: Rows) -> Tensor:
        """bool [m]: whose first message is due, and full."""
        return memory["new"] > 0 if self.first == "full" else torch.zeros(1, dtype=torch.bool)

    def _change(self, parts: Rows, memory: Rows) -> Rows:
        return {name: (rows - memory[f"known {name}"]).to(rows.dtype) for name, rows in parts.items()}

    def _known(self, change: Rows, inner: Rows, memory: Rows) -> tuple[Rows, Rows]:
        return self._after(self._short(change), inner, memory)

    def _after(self, came: Rows, inner: Rows, memory: Rows) -> tuple[Rows, Rows]:
        known = {name: memory[f"known {name}"] + rows for name, rows in came.items()}
        told = {"new": torch.zeros_like(memory["new"])} if self.first == "full" else {}
        return came, _named("known", known) | _named("inner", inner) | told


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


def _chosen(which: Tensor, one: Rows, other: Rows) -> Rows:
    """Rows of `one` where `which` [m], else those of `other`."""
    return {name: torch.where(which.view(-1, *[1] * (rows.dim() - 1)), one[name], rows) for name, rows in other.items()}
