"""Folders of data: pictures with a folder a class, and data sets that Hugging Face's `datasets` saved."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from fedsim.base.reading import Reading
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.hub import load_saved
from fedsim.data.source import Source
from fedsim.data.unpacking import check_bytes
from fedsim.settings.anchored import roots
from fedsim.settings.part import setting

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SAVED = ("dataset_dict.json", "state.json")
TRAIN, TEST = ("train", "training"), ("test", "testing")


@dataclass(frozen=True)
class ImageFolder(Source):
    """A folder of pictures with a folder for each class, whose name is the class's; or two such, `train` and `test`, in one.

    Pictures are bytes [N, height, width], or [N, height, width, 3] where any has colours. All are of one size, or made so.
    """

    source: ClassVar[str] = "the layout of torchvision's ImageFolder"

    folder: str = setting(help="path of the folder")
    size: tuple[int, int] | None = setting(None, "height and width that all are given; by default an error names one that differs", ge=1)
    colours: Literal["auto", "grey", "rgb"] = setting("auto", "one channel, or three; by default three where a picture has colours")

    def load(self, base: Path) -> Arrays:
        top = folder_of(self.folder, base)
        if top is None:
            raise complaint(f"no folder `{self.folder}` beside the scenario ({base}) or under FEDSIM_DATA")
        parts = {one.name.lower(): one for one in _folders(top)}
        train = next((parts[name] for name in TRAIN if name in parts), top)
        test = next((parts[name] for name in TEST if name in parts), None) if train != top else None
        files = [_files(one) for one in ((train,) if test is None else (train, test))]
        every = [file for some in files for file, _ in some]
        if not every:
            raise complaint(f"{top} has no folders with pictures ({', '.join(SUFFIXES[:3])}, ...), one for each class")
        with Reading(top.name) as reading:
            pictures = self._read(every, top, reading)
            reading.what, reading.taken = f"{len(every):,} pictures", pictures.nbytes
        y = np.array([label for some in files for _, label in some])
        count = len(files[0])
        if test is None:
            return Arrays(pictures, y)
        return Arrays(pictures[:count], y[:count], pictures[count:], y[count:])

    def _read(self, files: Sequence[Path], top: Path, reading: Reading) -> Array:
        """uint8 [N, height, width(, 3)], of all files in turn."""
        from PIL import Image

        grey = self.colours == "grey"
        found, first = None, ""
        for place, file in enumerate(files):
            name = str(file.relative_to(top.parent))
            reading(place / len(files))
            try:
                with Image.open(file) as picture:
                    if picture.mode[0] in "IF":
                        raise ValueError(f"its numbers are no bytes (mode {picture.mode})")
                    one = picture.convert("L" if grey or (self.colours == "auto" and picture.mode in ("1", "L")) else "RGB")
                    if self.size is not None:
                        one = one.resize(self.size[::-1], Image.Resampling.BILINEAR)
                    values = np.asarray(one)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise complaint(f"{name} can't be read as a picture: {error}") from error
            if found is None:
                first = name
                check_bytes(2 * len(files) * values.size, f"{len(files):,} pictures as {first} take")
                found = np.empty((len(files), *values.shape), dtype=np.uint8)
            if values.shape[:2] != found.shape[1:3]:
                (height, width), (high, wide) = values.shape[:2], found.shape[1:3]
                cure = f"`size: [{high}, {wide}]` resizes all"
                raise complaint(f"pictures are of unequal sizes: {first} has {high} x {wide} pixels, {name} {height} x {width}; {cure}")
            if values.ndim == found.ndim:  # the first in colours after grey ones
                found = np.repeat(found[..., None], 3, -1)
            found[place] = values if values.ndim == found.ndim - 1 else values[..., None]
        assert found is not None
        return found

    def anchored(self, base: Path) -> "ImageFolder":
        return replace(self, folder=_absolute(self.folder, base))


@dataclass(frozen=True)
class Saved(Source):
    """A data set that Hugging Face's `datasets` saved in a folder (`save_to_disk`): its splits `train` and, if it has one, `test`."""

    folder: str = setting(help="path of the folder")
    feature: str | None = setting(None, "column of the samples; by default its image or numbers")
    label: str | None = setting(None, "column of the targets; by default its one column of classes")

    def load(self, base: Path) -> Arrays:
        folder = folder_of(self.folder, base)
        if folder is None or not any((folder / name).is_file() for name in SAVED):
            where = "" if folder is None else f": {folder} has no {' or '.join(SAVED)}"
            raise complaint(f"no saved data set `{self.folder}` beside the scenario ({base}) or under FEDSIM_DATA{where}")
        return load_saved(folder, self.feature, self.label)

    def anchored(self, base: Path) -> "Saved":
        return replace(self, folder=_absolute(self.folder, base))


def folder_of(name: str, base: Path) -> Path | None:
    """The folder of that name beside the scenario, or under FEDSIM_DATA."""
    places, _ = roots(base)
    return next((place / name for place in places if (place / Path(name).expanduser()).is_dir()), None)


def source_in(name: str, base: Path) -> Source | None:
    """What reads the folder of that name: of pictures, or a saved data set; None for others."""
    folder = folder_of(name, base)
    if folder is None or any(folder.glob("*.npz")) or any(folder.glob("*.tsv")):
        return None
    if any((folder / one).is_file() for one in SAVED):
        return Saved(name)
    inside = [deep for one in _folders(folder) for deep in (one, *_folders(one))]
    return ImageFolder(name) if any(_pictures(one) for one in inside) else None


def _absolute(name: str, base: Path) -> str:
    return os.path.abspath(base / name) if (base / name).is_dir() else name


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))


def _files(folder: Path) -> list[tuple[Path, str]]:
    """The pictures of each class, with its name."""
    return [(file, one.name) for one in _folders(folder) for file in _pictures(one)]
