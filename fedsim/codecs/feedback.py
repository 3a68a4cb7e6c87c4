"""Codecs around codecs that remember what has not arrived yet, so that in the end all of it does."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.codecs.base import Codec
from fedsim.codecs.sparse import TopK
from fedsim.part import setting
from fedsim.rows import Rows


@dataclass(frozen=True)
class Ef21(Codec):
    """Both ends keep an estimate, only the change since then travels, through the inner codec, and the new estimate is what arrives.

    Richtárik, Sokolov, Fatkhullin 2021, "EF21", https://arxiv.org/abs/2106.05203, Algorithm 2: g += C(x - g), from g = 0.
    """

    source: ClassVar[str] = "Richtárik et al. 2021"

    inner: Codec = setting(TopK(fraction=0.05), "what the change goes through")

    def init(self, parts: Rows) -> Rows:
        inner = {f"inner {name}": rows for name, rows in self.inner.init(parts).items()}
        return {f"known {name}": torch.zeros_like(rows) for name, rows in parts.items()} | inner

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return self.inner.encode({name: rows - memory[f"known {name}"] for name, rows in parts.items()}, _inner(memory), key)

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        change, inner = self.inner.decode(wire, _inner(memory), key)
        parts = {name: memory[f"known {name}"] + rows for name, rows in change.items()}
        return parts, {f"known {name}": rows for name, rows in parts.items()} | {f"inner {name}": rows for name, rows in inner.items()}


def _inner(memory: Rows) -> Rows:
    return {name.removeprefix("inner "): rows for name, rows in memory.items() if name.startswith("inner ")}
