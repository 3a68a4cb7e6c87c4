"""Low-rank adapters around a frozen model: only they are trained and sent."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.models import Model, Shape
from fedsim.models.saved import fill, numbers_of
from fedsim.settings.part import setting


class Adapter(nn.Module):
    """linear(x) + scale x up(down(x)), where `up` begins as zero, so that the first model is the frozen one."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.down, self.up = nn.Linear(linear.in_features, rank, bias=False), nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.scale * self.up(self.down(x))
        return out


@dataclass(frozen=True)
class Lora(Model):
    """A model that stays as it is, with trained low-rank adapters on its linear layers; rows hold the adapters only."""

    source: ClassVar[str] = "Hu et al. 2021, LoRA, arXiv 2106.09685"

    inner: Model = setting(help="the frozen model")
    rank: int = setting(4, "of each adapter", ge=1)
    alpha: float = setting(8.0, "an adapter's output counts alpha / rank times", gt=0)
    weights: str | None = setting(None, "the frozen model's numbers, such as a run's model.safetensors; by default random")

    def takes_tokens(self) -> bool:
        return self.inner.takes_tokens()

    def anchored(self, base: Path) -> Model:
        file = None if self.weights is None else base / Path(self.weights).expanduser()
        found = file is not None and file.is_file()
        return replace(self, inner=self.inner.anchored(base), weights=os.path.abspath(file) if file and found else self.weights)

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        try:
            module = self.inner.build(input_shape, outputs)
        except SettingError as error:
            raise SettingError(error.key.replace("task.model", "task.model.inner"), error.message) from error
        if self.weights is not None:
            load_weights(module, self.weights)
        module.requires_grad_(False)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()  # its statistics are frozen as well
        adapted = adapt(module, self.rank, self.alpha / self.rank)
        if not any(isinstance(part, Adapter) for part in adapted.modules()):
            raise SettingError("task.model.inner", f"{self.inner.title()} has no linear layer to adapt")
        return adapted


def adapt(module: nn.Module, rank: int, scale: float) -> nn.Module:
    """The module with every linear layer inside an adapter."""
    if type(module) is nn.Linear:
        return Adapter(module, rank, scale)
    for name, part in list(module.named_children()):
        setattr(module, name, adapt(part, rank, scale))
    return module


def load_weights(module: nn.Module, name: str) -> None:
    """Reads a safetensors file, beside the scenario or under FEDSIM_DATA, into the module's parameters and, if it has them, buffers.

    Raises SettingError where there is no such file or it belongs to another model.
    """
    shelf = os.environ.get("FEDSIM_DATA")
    file = Path(shelf or "").expanduser() / name  # an absolute name stays as it is
    if not file.is_file():
        raise SettingError("task.model.weights", f"`{name}` can't be read: no such file")
    key, buffers = "task.model.weights", dict(module.named_buffers())
    fill(dict(module.named_parameters()), buffers, numbers_of(file, name, key), file, key, "the inner model")
