"""A network of small whole numbers: eight bits with four behind the point, and no multiplication whose result depends on its order."""

# B: samples, a x b: a matrix, outputs x inputs

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedsim.models import Model, Shape, numbers
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
