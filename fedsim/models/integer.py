"""Networks of small whole numbers: eight bits with four behind the point, and no multiplication whose result depends on its order."""

# B: samples, L: places, w: width, a x b: a matrix, outputs x inputs

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.models import Model, Shape, Tokens, numbers
from fedsim.models.sequence import last_token, token_shape
from fedsim.settings.part import setting

ONE = 16  # the whole number that stands for 1
MOST = 127


def saturated(x: Tensor) -> Tensor:
    """What has room in eight bits."""
    return x.clamp(-MOST, MOST)


class IntegerLinear(nn.Module):
    """x W' of whole numbers [..., b], divided by 16 sqrt(b) and rounded down, as shifts do; float32 of whole numbers from -127 to 127.

    Products are summed in float64, where whole numbers below 2^53 are exact: the same in any order and on any device.
    """

    differentiable: ClassVar[bool] = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(saturated((ONE * torch.randn(outputs, inputs)).round()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(nn.functional.linear(x.double(), self.weight.double()))

    def scaled(self, sums: Tensor) -> Tensor:
        """Of sums of products [..., a]."""
        return saturated((sums / (ONE * isqrt(self.weight.shape[1]))).floor()).to(self.weight.dtype)

    def perturbed(self, rank: int) -> nn.Module:
        """The same layer for members of a population."""
        return IntegerPerturbed(self, rank)


class IntegerPerturbed(nn.Module):
    """x (W + A B' / 16)': W is shared by all members, A and B are a member's whole numbers, A perhaps times a power of two."""

    def __init__(self, linear: IntegerLinear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.a, self.b = (nn.Parameter(linear.weight.new_zeros(side, rank)) for side in linear.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x.double()
        shared = nn.functional.linear(x, self.linear.weight.double())
        return self.linear.scaled(shared + ((x @ self.b.double()) @ self.a.double().T / ONE).floor())


class Whole(nn.Module):
    """Numbers from 0 to 1 (or -1 to 1) as whole ones to 64."""

    def forward(self, x: Tensor) -> Tensor:
        return saturated((64 * x).round())


@dataclass(frozen=True)
class IntegerMlp(Model):
    """Integer layers with ReLU between them on the flat sample: 8-bit numbers, 4 bits behind the point; no gradient says how to train it.

    Numbers of a sample from -1 to 1 become -64 to 64.
    """

    source: ClassVar[str] = "after nano-egg (Sarkar et al. 2025, code)"

    hidden: tuple[int, ...] = setting((64,), "widths of the hidden layers", ge=1)

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        widths = (numbers(input_shape), *self.hidden)
        layers = [layer for a, b in pairwise(widths) for layer in (IntegerLinear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), Whole(), *layers, IntegerLinear(widths[-1], outputs))


class IntegerUnit(nn.Module):
    """A gated recurrent layer of whole numbers, from places [B, L, w] to the same; the state h begins at 0.

    f = F [x, h] + 127; c = C [x, f h / 256]; h <- h + f (c - h) / 256, rounded down: in the places of sigmoid and tanh, what has room.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.candidate = IntegerLinear(2 * width, width), IntegerLinear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h, found = torch.zeros_like(x[:, 0]), list[Tensor]()
        for now in x.unbind(1):
            f = self.gate(torch.cat([now, h], -1)) + MOST
            c = self.candidate(torch.cat([now, (f * h / 256).floor()], -1))
            h = h + (f * (c - h) / 256).floor()
            found.append(h)
        return torch.stack(found, 1)


class IntegerRecurrent(nn.Module):
    """Tokens looked up as rows of a matrix, recurrent layers each added to what it was given, and a head that sees a constant too."""

    def __init__(self, shape: Tokens, outputs: int, settings: "IntegerRnn") -> None:
        super().__init__()
        self.each, self.vocabulary = shape.each, shape.vocabulary
        self.embedding = IntegerLinear(shape.vocabulary, settings.width)
        self.units = nn.ModuleList([IntegerUnit(settings.width) for _ in range(settings.layers)])
        self.head = IntegerLinear(settings.width + 1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        one = ONE * isqrt(self.vocabulary)  # by which the layer divides
        hidden = self.embedding((x[..., None] == torch.arange(self.vocabulary, device=x.device)) * one)
        for unit in self.units:
            hidden = saturated(hidden + unit(hidden))
        out: Tensor = self.head(nn.functional.pad(hidden if self.each else last_token(x, hidden), (0, 1), value=MOST))
        return out


@dataclass(frozen=True)
class IntegerRnn(Model):
    """Gated recurrent layers of 8-bit whole numbers that tell the next token, or the class of a text, for `eggroll_int8`.

    Outputs are sixteenths, as the loss `integer_cross_entropy` takes them. Layers are after Zhou et al. 2016 (minimal gated unit).
    """

    source: ClassVar[str] = "after nano-egg (Sarkar et al. 2025, code)"

    width: int = setting(32, "units a layer", ge=1)
    layers: int = setting(1, "recurrent layers", ge=1, le=1000)

    def takes_tokens(self) -> bool:
        return True

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        return IntegerRecurrent(token_shape(input_shape), outputs, self)
