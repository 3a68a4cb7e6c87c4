"""A small Llama: RMSNorm, rotary places, grouped-query attention, SwiGLU, and one matrix that embeds tokens and gives outputs."""

# B: samples, L: places, w: width, h: heads, g: key-value heads, c: numbers a head

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.models import Model, Shape
from fedsim.models.sequence import last_token, token_shape
from fedsim.settings.part import setting

MATRICES = {"wq": "attention.q", "wk": "attention.k", "wv": "attention.v", "wo": "attention.out", "w1": "gate", "w2": "down", "w3": "up"}
NORMS = {"attention_norm": "attention_norm", "ffn_norm": "feed_norm"}


class RmsNorm(nn.Module):
    """Zhang & Sennrich 2019."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.weight


def rotated(x: Tensor) -> Tensor:
    """x [B, L, heads, c] with neighbouring pairs turned by place x 10000^(-2i / c) (Su et al. 2021)."""
    length, each = x.shape[1], x.shape[-1]
    rate = 10_000.0 ** (-torch.arange(0, each, 2, device=x.device) / each)
    angle = (torch.arange(length, device=x.device)[:, None] * rate)[:, None]
    even, odd, cos, sin = x[..., ::2], x[..., 1::2], angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


class GroupedAttention(nn.Module):
    """Causal; each key-value head serves h / g heads (Ainslie et al. 2023)."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.each, self.share = width // heads, heads // groups
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.each, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (part(x).view(batch, length, -1, self.each) for part in (self.q, self.k, self.v))
        q, k = rotated(q).transpose(1, 2), rotated(k).transpose(1, 2).repeat_interleave(self.share, 1)
        v = v.transpose(1, 2).repeat_interleave(self.share, 1)
        ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        score = (q @ k.transpose(-1, -2) * self.each**-0.5).masked_fill(ahead, float("-inf"))
        out: Tensor = self.out((score.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))
        return out


class LlamaBlock(nn.Module):
    """Attention, and a gated feed-forward layer (Shazeer 2020), each on the norm of the stream and added to it."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = RmsNorm(width), GroupedAttention(width, heads, groups)
        self.feed_norm = RmsNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.feed_norm(x)
        out: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return out


class LlamaDecoder(nn.Module):
    """Outputs are products with the embeddings of all tokens at each place, or of some (`words`) at the last token."""

    def __init__(self, vocabulary: int, settings: "Llama", words: tuple[int, ...] | None) -> None:
        super().__init__()
        self.words, width = words, settings.width
        self.tokens = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.Sequential(*(LlamaBlock(width, settings.heads, settings.groups, settings.hidden) for _ in range(settings.layers)))
        self.norm = RmsNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.blocks(self.tokens(x)))
        if self.words is None:
            return nn.functional.linear(hidden, self.tokens.weight)
        each = torch.stack([self.tokens.weight[word] for word in self.words])  # a list of places would be waited for on a GPU
        return nn.functional.linear(last_token(x, hidden), each)


@dataclass(frozen=True)
class Llama(Model):
    """A small Llama that tells the next token, or the class of a text by which of some words would come next.

    With `weights: stories260k` it has that file's sizes and begins with its 260,032 pretrained numbers; its data need its pieces too
    (`tokens: pieces`).
    """

    source: ClassVar[str] = "Touvron et al. 2023, arXiv 2302.13971; Karpathy, llama2.c"

    width: int = setting(64, "numbers a token", ge=2)
    layers: int = setting(5, "blocks", ge=1, le=1000)
    heads: int = setting(8, "of attention; divide the width into even parts", ge=1)
    groups: int = setting(4, "key-value heads; divide the heads", ge=1)
    hidden: int = setting(172, "units of a feed-forward layer", ge=1)
    weights: str | None = setting(None, "an .npz with pretrained numbers and pieces; by default random")
    words: tuple[str, ...] = setting((), "one for each class, in their order: the first piece of each is compared; needs weights")

    def takes_tokens(self) -> bool:
        return True

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        shape = token_shape(input_shape)
        if self.width % (2 * self.heads) or self.heads % self.groups:
            raise SettingError(
                "task.model.heads", f"{self.heads} heads of {self.groups} groups don't divide a width of {self.width} evenly"
            )
        words = None if shape.each else self._words(outputs)
        if self.weights is None:
            return LlamaDecoder(shape.vocabulary, self, words)
        found = _read(self.weights)
        vocabulary = len(found["tok_embeddings"])
        if shape.vocabulary != vocabulary:
            message = f"has {vocabulary} tokens, the data {shape.vocabulary}; set `task.data.tokens: pieces`"
            raise SettingError("task.model.weights", f"`{self.weights}` {message}")
        width, hidden, layers, heads, groups = found["config"][:5].tolist()
        sized = Llama(width=width, layers=layers, heads=heads, groups=groups, hidden=hidden)
        module = LlamaDecoder(vocabulary, sized, words)
        module.load_state_dict(_named(found))
        return module

    def _words(self, outputs: int) -> tuple[int, ...]:
        from fedsim.data.wordpieces import read_wordpieces

        if self.weights is None or len(self.words) != outputs:
            raise SettingError("task.model.words", f"{outputs} words are needed, one a class, and `weights` with their pieces")
        pieces = read_wordpieces(self.weights)
        first = tuple(int(pieces.encode(word)[0]) for word in self.words)
        if len(set(first)) < outputs:
            raise SettingError("task.model.words", "two begin with the same piece")
        return first


def _read(name: str) -> dict[str, Any]:
    from fedsim.data.files import find_file
    from fedsim.data.source import read_npz

    path = find_file(name, Path())
    found = dict(read_npz(path))
    if missing := [key for key in ("config", "tok_embeddings", "norm", *MATRICES, *NORMS) if key not in found]:
        raise SettingError("task.model.weights", f"{path.name} has no array {missing[0]}")
    return found


def _named(found: dict[str, Any]) -> dict[str, Tensor]:
    """The file's arrays by the names of a LlamaDecoder's parameters."""
    state = {"tokens.weight": found["tok_embeddings"], "norm.weight": found["norm"]}
    for key, name in (MATRICES | NORMS).items():
        state |= {f"blocks.{layer}.{name}.weight": rows for layer, rows in enumerate(found[key])}
    return {name: torch.from_numpy(array) for name, array in state.items()}
