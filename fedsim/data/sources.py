"""Where samples come from. Sources read and name arrays; making a task of them is `fedsim.task.build`."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from fedsim.base.keys import fold, normal
from fedsim.data.arrays import Array, Arrays, arrays_from
from fedsim.data.files import anchored, find_file
from fedsim.data.hub import load_hub
from fedsim.data.source import Source, read_npz
from fedsim.data.sparse import check_size, densified
from fedsim.settings.part import setting


@dataclass(frozen=True)
class Digits(Source):
    """1,797 images of 8x8 pixels, ten classes, from scikit-learn: no file needed. Every fifth sample is for testing."""

    source: ClassVar[str] = "Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI"

    def load(self, base: Path) -> Arrays:
        file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")  # importing its reader takes two seconds
        table = np.loadtxt(str(file), delimiter=",")
        images, y = (table[:, :-1] / 16).astype(np.float32).reshape(-1, 8, 8, 1), table[:, -1].astype(np.int64)
        test = _every_fifth(y)
        return Arrays(images[~test], y[~test], images[test], y[test])


@dataclass(frozen=True)
class Gaussians(Source):
    """Two classes, Gaussian clouds whose means lie `gap` apart on the first axis; as many samples again are for testing."""

    gap: float = setting(1.0, "distance of the two means", ge=0)
    sigma: float = setting(0.2, "deviation of each number of a sample", gt=0)
    samples: int = setting(1000, "for training, half of each class", ge=2)
    features: int = setting(10, "numbers of a sample", ge=1)

    def load(self, base: Path) -> Arrays:
        check_size(2 * self.samples, self.features, self.name)
        number = torch.arange(2 * self.samples)
        x = self.sigma * normal(fold(0, "gaussians", number), self.features)
        x[:, 0] += self.gap * (number % 2 - 0.5)
        rows, y = x.numpy(), (number % 2).numpy()
        return Arrays(rows[: self.samples], y[: self.samples], rows[self.samples :], y[self.samples :])


def _every_fifth(y: Array) -> Array:
    """bool [N]: every fifth sample of each class, in the order of the data."""
    test = np.zeros(len(y), dtype=np.bool_)
    test[np.argsort(y, kind="stable")[4::5]] = True
    return test


@dataclass(frozen=True)
class Npz(Source):
    """Arrays of a NumPy file; see `fedsim.data.arrays.arrays_from` for their names. Sparse tables (CSR) become dense.

    The file is looked for beside the scenario, then under FEDSIM_DATA; `mnist` is a file mnist.npz or a folder mnist with one .npz.
    A name that means labelled text (.tsv) or a corpus (tokens and offsets) is read by `tsv` or `tokens` with their defaults, a folder of
    pictures or of a saved data set by `image_folder` or `saved`.
    """

    kinds: ClassVar[tuple[str, ...]] = (".npz", ".tsv")

    file: str = setting(help="path, file's stem or folder")
    test: str | None = setting(None, "a second file, whose x and y are the test set")

    def load(self, base: Path) -> Arrays:
        from fedsim.data.pictures import source_in
        from fedsim.data.text_sources import Tokens, Tsv

        if self.test is None and (folder := source_in(self.file, base)):
            return folder.load(base)
        path = find_file(self.file, base, self.kinds)
        if path.suffix == ".tsv":
            return Tsv(self.file, self.test).load(base)
        found = read_npz(path)
        if {"tokens", "offsets"} <= found.keys():
            return Tokens(self.file).load(base)
        if self.test is not None:
            other = read_npz(find_file(self.test, base))
            found |= {f"{name.removesuffix('_train').removesuffix('_test')}_test": array for name, array in other.items()}
        return arrays_from(densified(found, self.file), self.file)

    def anchored(self, base: Path) -> "Npz":
        from fedsim.data.pictures import source_in

        if source_in(self.file, base):
            folder = base / self.file
            return replace(self, file=os.path.abspath(folder)) if folder.is_dir() else self
        return replace(self, file=anchored(self.file, base, self.kinds), test=self.test and anchored(self.test, base))


@dataclass(frozen=True)
class Hub(Source):
    """A data set of the Hugging Face hub, through flwr-datasets: its splits `train` and, if it has one, `test`."""

    name: ClassVar[str] = "hub"

    dataset: str = setting(help="owner/name")
    subset: str | None = setting(None, "configuration of the data set")
    feature: str | None = setting(None, "column of the samples; by default its image or numbers")
    label: str | None = setting(None, "column of the targets; by default its one column of classes")

    def load(self, base: Path) -> Arrays:
        return load_hub(self.dataset, self.subset, self.feature, self.label)


def source_for(name: str) -> Source | None:
    """The source meant by a `data` name that is no part: `hub:owner/name`, a path, a stem or a folder.

    A reader of scenarios asks this for every name that is not near the name of a part: whether the file exists is found at `load`,
    whose error says where it was looked for. None for `module:function`, which the reader imports itself.
    """
    from fedsim.data.tabular import Table
    from fedsim.data.text_sources import Tokens, Tsv

    if name.startswith("hub:"):
        return Hub(name.removeprefix("hub:"))
    if ":" in name:
        return None
    kinds: dict[str, Callable[[str], Source]] = {".tsv": Tsv, ".txt": Tokens, ".csv": Table, ".parquet": Table}
    return kinds.get(Path(name).suffix, Npz)(name)
