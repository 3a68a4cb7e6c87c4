"""Models with outputs at each pixel of an image, for masks."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fedsim.models import Model, Shape, image
from fedsim.settings.part import setting


class EachPixel(nn.Module):
    """A module from images to [B, C, H, W], with its outputs as [B, H W, C]: a row a pixel, as losses and metrics take places."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.inner(x)
        if outputs.dim() != 4 or outputs.shape[2:] != x.shape[-2:]:
            due = f"[B, classes, {x.shape[-2]}, {x.shape[-1]}]"
            raise ValueError(f"targets are masks, so outputs {due} are due, not {list(outputs.shape)}")
        return outputs.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Fcn(Model):
    """Fully convolutional: 3x3 convolutions with ReLU, each twice as far apart as the one before, and a class at each pixel.

    `layers: 3` sees 15 x 15 pixels around each; images of any size.
    """

    source: ClassVar[str] = "Long et al. 2015, arXiv 1411.4038; Yu & Koltun 2016, arXiv 1511.07122 (dilated)"
    pixels: ClassVar[bool] = True

    width: int = setting(16, "channels of each layer", ge=1)
    layers: int = setting(3, "3x3 convolutions", ge=1, le=6)

    def build(self, input_shape: Shape, outputs: int) -> nn.Module:
        first, channels, _, _ = image(input_shape, 1)
        body: list[nn.Module] = []
        for layer in range(self.layers):
            apart = 1 << layer
            body += [nn.Conv2d(self.width if layer else channels, self.width, 3, padding=apart, dilation=apart), nn.ReLU()]
        return nn.Sequential(*first, *body, nn.Conv2d(self.width, outputs, 1))
