"""Residual networks."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.models import Model, Shape, image
from fedsim.settings.part import setting


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where channels or size change."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: "ResNet18") -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            norm.layer(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            norm.layer(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm.layer(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


@dataclass(frozen=True)
class ResNet18(Model):
    """Eight residual blocks in four widths behind one 3x3 convolution that keeps the size (for small images).

    11,173,962 parameters for ten classes on 3x32x32. GroupNorm takes BatchNorm's place by default, as Hsieh et al. 2020 advise for
    clients with unlike data (arXiv 1910.00189).
    """

    name: ClassVar[str] = "resnet18"
    source: ClassVar[str] = "He et al. 2016, Deep residual learning, arXiv 1512.03385"

    norm: Literal["group", "batch"] = setting("group", "after each convolution")
    groups: int = setting(32, "of GroupNorm; divides the width", ge=1)
    width: int = setting(64, "channels of the first blocks; doubled three times", ge=1)

    def layer(self, channels: int) -> nn.Module:
        """The norm of so many channels."""
        return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(self.groups, channels)

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        if self.norm == "group" and self.width % self.groups:
            raise SettingError("task.model.groups", f"{self.groups} groups don't divide a width of {self.width}")
        first, channels, _, _ = image(input_shape, 8)
        widths = [self.width << stage for stage in (0, 0, 0, 1, 1, 2, 2, 3, 3)]
        blocks = [Residual(a, b, 1 if a == b else 2, self) for a, b in pairwise(widths)]
        stem = [nn.Conv2d(channels, self.width, 3, 1, 1, bias=False), self.layer(self.width), nn.ReLU()]
        return nn.Sequential(*first, *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], outputs))
