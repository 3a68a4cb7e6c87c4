"""A user's own nn.Module as a model."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import nn

from fedsim.models import Model, Shape
from fedsim.settings.part import called


@dataclass(frozen=True)
class OwnModel(Model):
    """`make(**settings)` is the module; `make` is a class or a function.

    A parameter of `make` called `input_shape`, `outputs` or `vocabulary` is no setting: it is given the shape of one sample (without the
    batch axis; images are channels first), the number of outputs wanted (classes, or numbers to predict), or how many token numbers
    there are (samples are token numbers then). Where targets are masks, outputs are [B, classes, height, width].
    """

    pixels: ClassVar[bool] = True

    make: Callable[..., nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def title(self) -> str:
        return f"{self.make.__module__}:{self.make.__qualname__}"

    def takes_tokens(self) -> bool:
        return "vocabulary" in inspect.signature(self.make).parameters

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        given = {"input_shape": input_shape, "outputs": outputs, "vocabulary": getattr(input_shape, "vocabulary", None)}
        module = called(self.make, self.settings, **given)
        if not isinstance(module, nn.Module):
            raise TypeError(f"an nn.Module is needed, not {type(module).__name__}")
        return module
