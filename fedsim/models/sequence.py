"""Models of token sequences. Zeros at the end of a sample are padding: they change no output before them."""

# B: samples, L: places, V: vocabulary, w: width

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.models import Model, Shape, Tokens
from fedsim.settings.part import setting


def token_shape(shape: Shape) -> Tokens:
    """The shape as one of token numbers. Raises SettingError where samples hold other numbers."""
    if not isinstance(shape, Tokens):
        raise SettingError("task.model", f"samples of token numbers are needed, not of numbers in shape {list(shape)}")
    return shape


def last_token(x: Tensor, hidden: Tensor) -> Tensor:
    """[B, w]: hidden [B, L, w] at the last token of x [B, L] that is not 0, at the first place where all are."""
    places = torch.arange(x.shape[1], device=x.device)
    last = (places * (x != 0)).amax(1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)


class Recurrent(nn.Module):
    """Embedding, LSTM layers and a linear head, at each place or at the last token."""

    def __init__(self, shape: Tokens, outputs: int, settings: "CharLstm") -> None:
        super().__init__()
        self.each = shape.each
        self.embedding = nn.Embedding(shape.vocabulary, settings.embedding)
        self.lstm = nn.LSTM(settings.embedding, settings.hidden, settings.layers, batch_first=True, dropout=settings.dropout)
        self.head = nn.Linear(settings.hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(x))
        out: Tensor = self.head(hidden if self.each else last_token(x, hidden))
        return out


@dataclass(frozen=True)
class CharLstm(Model):
    """Embedding, LSTM layers and a linear layer that tells the next token, or the class of a text: 819,920 parameters for 80 characters."""

    source: ClassVar[str] = "Caldas et al. 2018, LEAF, arXiv 1812.01097 (Shakespeare)"

    embedding: int = setting(8, "numbers a token", ge=1)
    hidden: int = setting(256, "units a layer", ge=1)
    layers: int = setting(2, "LSTM layers", ge=1, le=1000)
    dropout: float = setting(0.0, "share of units left out between the layers in training", ge=0, lt=1)

    def takes_tokens(self) -> bool:
        return True

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        if self.dropout and self.layers == 1:
            raise SettingError("task.model.dropout", "stands between layers, and there is one")
        return Recurrent(token_shape(input_shape), outputs, self)


class Attention(nn.Module):
    """Causal self-attention, in plain operations."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.mix(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        ahead = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        score = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).masked_fill(ahead, float("-inf"))
        out: Tensor = self.out((score.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))
        return out


class Block(nn.Module):
    """Attention and a feed-forward layer, each on the norm of the stream and added to it."""

    def __init__(self, settings: "Transformer") -> None:
        super().__init__()
        width = settings.width
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, settings.heads), nn.Dropout(settings.dropout))
        self.forward_part = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(settings.dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        out: Tensor = x + self.forward_part(x)
        return out


class Decoder(nn.Module):
    """Tokens and their places embedded, blocks, norm and head."""

    def __init__(self, shape: Tokens, outputs: int, settings: "Transformer") -> None:
        super().__init__()
        self.each, width = shape.each, settings.width
        self.tokens = nn.Embedding(shape.vocabulary, width)
        self.places = nn.Embedding(settings.context or shape[0], width)
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs, bias=False)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        if settings.tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.blocks(self.tokens(x) + self.places.weight[: x.shape[1]]))
        out: Tensor = self.head(hidden if self.each else last_token(x, hidden))
        return out


@dataclass(frozen=True)
class Transformer(Model):
    """A small pre-norm decoder with learned places that tells the next token, or the class of a text."""

    source: ClassVar[str] = "Vaswani et al. 2017, arXiv 1706.03762; Radford et al. 2019, GPT-2 (norms before, places learned)"

    width: int = setting(64, "numbers a token", ge=1)
    layers: int = setting(2, "blocks", ge=1, le=1000)
    heads: int = setting(4, "of attention; divide the width", ge=1)
    context: int | None = setting(None, "longest sample, in tokens; by default as long as the data's", ge=1)
    tied: bool = setting(False, "one matrix embeds tokens and gives outputs; next tokens only")
    dropout: float = setting(0.0, "share of each block's output left out in training", ge=0, lt=1)

    def takes_tokens(self) -> bool:
        return True

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        shape = token_shape(input_shape)
        if self.width % self.heads:
            raise SettingError("task.model.heads", f"{self.heads} heads don't divide a width of {self.width}")
        if self.context is not None and self.context < shape[0]:
            raise SettingError("task.model.context", f"samples have {shape[0]} tokens, more than {self.context}")
        if self.tied and not (shape.each and outputs == shape.vocabulary):
            raise SettingError("task.model.tied", "needs targets that are the next tokens")
        return Decoder(shape, outputs, self)
