"""Models: each builds an nn.Module for one shape of sample. They stack over rows: no in-place change, no branch on data."""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn
from torch.nn.init import uniform_

from fedsim.base.errors import SettingError
from fedsim.data.environments import Environment
from fedsim.settings.part import Part, setting

Shape = tuple[int, ...]


class Tokens(tuple[int, ...]):
    """The shape (length,) of samples that are token numbers, 0 to `vocabulary` - 1; `each`: an output is due at every place of a sample."""

    vocabulary: int
    each: bool

    def __new__(cls, length: int, vocabulary: int, each: bool = False) -> "Tokens":
        shape = super().__new__(cls, (length,))
        shape.vocabulary, shape.each = vocabulary, each
        return shape


class Pixels(tuple[int, ...]):
    """The shape of samples that are images with a class at each pixel."""


class Episodes(tuple[int, ...]):
    """The shape of what a policy sees of a state; samples are the states that episodes in the environment begin in."""

    environment: Environment

    def __new__(cls, environment: Environment) -> "Episodes":
        shape = super().__new__(cls, environment.sees)
        shape.environment = environment
        return shape


class Model(Part):
    """`build` makes a freshly initialised module from [B, *input_shape] to [B, outputs], or to [B, length, outputs] of `Tokens.each`.

    Of `Pixels`, which a model whose `pixels` is true takes, to [B, outputs, height, width]. Of `Episodes` an output is an action's.
    """

    slot: ClassVar[str] = "model"
    default: ClassVar[str] = "mlp"
    modules: ClassVar[tuple[str, ...]] = (
        "fedsim.models.residual",
        "fedsim.models.sequence",
        "fedsim.models.lora",
        "fedsim.models.llama",
        "fedsim.models.integer",
        "fedsim.models.pixels",
    )
    pixels: ClassVar[bool] = False

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        """Raises SettingError where the shape does not suit the model."""
        raise NotImplementedError

    def takes_tokens(self) -> bool:
        """Are samples token numbers, also where the data don't say so?"""
        return False

    def anchored(self, base: Path) -> "Model":
        """The same model wherever the scenario lies: files beside it by their absolute paths."""
        return self

    def title(self) -> str:
        """How errors call it."""
        return self.name


def numbers(shape: Shape) -> int:
    """How many numbers a sample has. Raises SettingError where it holds token numbers."""
    if isinstance(shape, Tokens):
        raise SettingError("task.model", "samples of numbers are needed, not of token numbers; `char_lstm` and `transformer` take these")
    return prod(shape)


def image(shape: Shape, least: int) -> tuple[list[nn.Module], int, int, int]:
    """Layers that make samples [channels, height, width], and these three. Samples [height, width] are given a channel.

    Raises SettingError where samples are no images or a side is under `least` pixels.
    """
    if len(shape) not in (2, 3):
        raise SettingError("task.model", f"images are needed, not samples of shape {list(shape)}")
    channels, height, width = shape if len(shape) == 3 else (1, *shape)
    if min(height, width) < least:
        raise SettingError("task.model", f"images of {least} x {least} pixels or more are needed, not {height} x {width}")
    return [] if len(shape) == 3 else [nn.Unflatten(1, (1, height))], channels, height, width


def _block(inputs: int, outputs: int, kernel: int, *norm: nn.Module) -> list[nn.Module]:
    """Convolution that keeps the size, norm, halving, and ReLU, which is the same in this order and looks at a quarter of the numbers."""
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), *norm, nn.MaxPool2d(2), nn.ReLU()]


def _head(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]


@dataclass(frozen=True)
class Logistic(Model):
    """One linear layer on the flat sample."""

    bias: bool = setting(True, "a number added to each output")

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(numbers(input_shape), outputs, bias=self.bias))


@dataclass(frozen=True)
class Mlp(Model):
    """Linear layers with ReLU between them, on the flat sample."""

    hidden: tuple[int, ...] = setting((64,), "widths of the hidden layers", ge=1)

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        widths = (numbers(input_shape), *self.hidden)
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(widths[-1], outputs))


@dataclass(frozen=True)
class LeafCnn(Model):
    """Two 5x5 convolutions (32, 64), each halved, and a dense layer of 2048."""

    source: ClassVar[str] = "Caldas et al. 2018, LEAF, arXiv 1812.01097 (FEMNIST)"

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        first, channels, height, width = image(input_shape, 4)
        inputs = 64 * (height // 4) * (width // 4)
        return nn.Sequential(*first, *_block(channels, 32, 5), *_block(32, 64, 5), *_head(inputs, 2048, outputs))


@dataclass(frozen=True)
class Cnn(Model):
    """Two 3x3 convolutions (32, 64), each halved, and a dense layer of 128: 421,642 parameters on MNIST."""

    source: ClassVar[str] = "Rodio & Neglia 2024, FedStale, arXiv 2405.04171 (MNIST)"

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        first, channels, height, width = image(input_shape, 4)
        inputs = 64 * (height // 4) * (width // 4)
        return nn.Sequential(*first, *_block(channels, 32, 3), *_block(32, 64, 3), *_head(inputs, 128, outputs))


@dataclass(frozen=True)
class CnnGn(Model):
    """Three 3x3 convolutions (32, 64, 128) with GroupNorm of 8 groups, each halved, and a dense layer of 176.

    456,090 parameters for ten classes on 3x32x32.
    """

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        first, channels, height, width = image(input_shape, 8)
        widths = (channels, 32, 64, 128)
        blocks = [_block(a, b, 3, nn.GroupNorm(8, b)) for a, b in pairwise(widths)]
        inputs = 128 * (height // 8) * (width // 8)
        return nn.Sequential(*first, *(layer for block in blocks for layer in block), *_head(inputs, 176, outputs))


@dataclass(frozen=True)
class Lenet(Model):
    """LeNet-5 with mean pooling; images under 32 pixels are padded by 2, as MNIST was: 61,706 parameters there."""

    source: ClassVar[str] = "LeCun et al. 1998, Gradient-based learning applied to document recognition"

    norm: Literal["none", "group", "layer"] = setting("none", "after each convolution: groups of two halves, or all channels as one")
    activation: Literal["relu", "sigmoid", "tanh"] = setting("relu", "after each layer but the last")

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        first, channels, height, width = image(input_shape, 12)
        padding = 2 if min(height, width) < 32 else 0
        rows, columns = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        return nn.Sequential(
            *first,
            *self._convolution(channels, 6, padding),
            *self._convolution(6, 16, 0),
            nn.Flatten(),
            *(nn.Linear(16 * rows * columns, 120), self._bend()),
            *(nn.Linear(120, 84), self._bend()),
            nn.Linear(84, outputs),
        )

    def _bend(self) -> nn.Module:
        kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
        return kinds[self.activation]()

    def _convolution(self, inputs: int, outputs: int, padding: int) -> list[nn.Module]:
        groups = {"none": 0, "group": 2, "layer": 1}[self.norm]
        norm = [nn.GroupNorm(groups, outputs)] if groups else []
        return [nn.Conv2d(inputs, outputs, 5, padding=padding), *norm, self._bend(), nn.AvgPool2d(2)]


@dataclass(frozen=True)
class LeakyLenet(Model):
    """Three 5x5 convolutions of 12 with sigmoids, the first two with stride 2, and a dense layer; weights begin evenly within +-spread.

    What gradient leakage is shown on: no pooling, slopes everywhere. 85,036 parameters for a hundred classes on 3x32x32.
    """

    source: ClassVar[str] = "Zhu, Liu & Han 2019, Deep Leakage from Gradients, arXiv 1906.08935"

    spread: float = setting(0.5, "bound of the first weights", gt=0)

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        first, channels, height, width = image(input_shape, 4)
        widths, strides = (channels, 12, 12, 12), (2, 2, 1)
        convolutions = [nn.Conv2d(a, b, 5, stride, 2) for (a, b), stride in zip(pairwise(widths), strides, strict=True)]
        layers = [layer for convolution in convolutions for layer in (convolution, nn.Sigmoid())]
        model = nn.Sequential(*first, *layers, nn.Flatten(), nn.Linear(12 * -(-height // 4) * -(-width // 4), outputs))
        for parameter in model.parameters():
            uniform_(parameter, -self.spread, self.spread)
        return model
