"""Augmentation: training samples changed at random, anew each time they are used. Pure functions of keys, one for each use of a sample."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.base.errors import SettingError
from fedsim.base.keys import below, fold, normal, uniform
from fedsim.settings.part import Part, setting

# B: samples, c: channels, h, w: pixels


class Augment(Part):
    """`change` gives samples [B, ...] as training sees them; keys int64 [B], another one each time that a sample is used."""

    slot: ClassVar[str] = "augment"
    moves: ClassVar[bool] = False  # do pixels change their places, so that a mask would no longer fit?

    def change(self, inputs: Tensor, keys: Tensor) -> Tensor:
        """Never in place, and each sample by its own key alone."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...], numbers: bool) -> None:
        """Raises SettingError where samples of this shape can't be changed so; by default they are to be images [c, h, w]."""
        if len(shape) != 3 or not numbers:
            raise SettingError("name", f"{self.name} changes images, and samples have shape {list(shape)}")


@dataclass(frozen=True)
class Flip(Augment):
    """Images are mirrored, left to right."""

    moves: ClassVar[bool] = True

    chance: float = setting(0.5, "of each image", ge=0, le=1)

    def change(self, inputs: Tensor, keys: Tensor) -> Tensor:
        turned = uniform(keys, 1)[:, 0] < self.chance
        return torch.where(turned[:, None, None, None], inputs.flip(-1), inputs)


@dataclass(frozen=True)
class Crop(Augment):
    """Images get a border of zeros, and a part of the old size is cut out at random."""

    moves: ClassVar[bool] = True

    border: int = setting(4, "pixels on each side", ge=1)

    def check(self, shape: tuple[int, ...], numbers: bool) -> None:
        super().check(shape, numbers)
        if self.border >= min(shape[1:]):
            raise SettingError("border", f"{self.border} pixels on each side of images of {shape[1]} x {shape[2]}")

    def change(self, inputs: Tensor, keys: Tensor) -> Tensor:
        count, channels, height, width = inputs.shape
        border = self.border
        first = below(keys, 2, 2 * border + 1)  # row and column of the wider image
        wide = pad(inputs, (border, border, border, border))
        row, column = (first[:, place, None] + torch.arange(side, device=keys.device) for place, side in ((0, height), (1, width)))
        # One gather of rows, then one of columns: half of what one of pixels takes
        rows = wide.gather(2, row[:, None, :, None].expand(count, channels, height, width + 2 * border))
        return rows.gather(3, column[:, None, None, :].expand(count, channels, height, width))


@dataclass(frozen=True)
class Cutout(Augment):
    """A square of each image is set to zero; its middle is anywhere, so that a part of it may lie outside."""

    source: ClassVar[str] = "DeVries & Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv 1708.04552"

    size: int = setting(8, "pixels a side", ge=1)

    def change(self, inputs: Tensor, keys: Tensor) -> Tensor:
        inside = []
        for place, side in enumerate(inputs.shape[2:]):
            middle = below(keys, 2, side)[:, place, None]
            at = torch.arange(side, device=keys.device)
            inside.append((at >= middle - self.size // 2) & (at < middle - self.size // 2 + self.size))
        return inputs.masked_fill((inside[0][:, None, :, None] & inside[1][:, None, None, :]), 0)


@dataclass(frozen=True)
class Noise(Augment):
    """Each number gets normal noise."""

    sigma: float = setting(0.1, "its deviation, in the unit of the samples", gt=0)

    def check(self, shape: tuple[int, ...], numbers: bool) -> None:
        if not numbers:
            raise SettingError("name", "noise changes numbers, and the samples are tokens")

    def change(self, inputs: Tensor, keys: Tensor) -> Tensor:
        drawn = normal(keys, inputs[0].numel()).view_as(inputs)
        return inputs + self.sigma * drawn.to(inputs.dtype)


def check_all(parts: tuple[Augment, ...], shape: tuple[int, ...], numbers: bool, masks: bool = False) -> None:
    """Raises SettingError, with the key to blame, where one does not suit the samples."""
    for place, one in enumerate(parts):
        if masks and one.moves:
            raise SettingError(f"task.augment.{place}.name", f"{one.name} moves pixels, and their masks would stay where they are")
        try:
            one.check(shape, numbers)
        except SettingError as error:
            raise SettingError(f"task.augment.{place}.{error.key}", error.message) from error


def augmented(parts: tuple[Augment, ...], inputs: Tensor, keys: Tensor) -> Tensor:
    """Samples [m, B, ...] with keys [m, B], changed by all parts in their order."""
    flat, key = inputs.flatten(0, 1), keys.flatten()
    for place, one in enumerate(parts):
        flat = one.change(flat, fold(key, "augment", place))
    return flat.view_as(inputs)
