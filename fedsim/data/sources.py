"""Where samples come from. Sources read and name arrays; making a task of them is `fedsim.data.build`."""

import difflib
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile, is_zipfile

import numpy as np

from fedsim.data.arrays import Array, Arrays, arrays_from, complaint
from fedsim.data.hub import load_hub
from fedsim.errors import SettingError
from fedsim.part import Part, setting


class Source(Part):
    """`load` reads the samples; `base` is the folder of the scenario."""

    slot: ClassVar[str] = "data"

    def load(self, base: Path) -> Arrays:
        """Raises SettingError where there are no usable data."""
        raise NotImplementedError

    def anchored(self, base: Path) -> "Source":
        """The same data wherever the scenario lies: files beside it by their absolute paths."""
        return self


@dataclass(frozen=True)
class Digits(Source):
    """1,797 images of 8x8 pixels, ten classes, from scikit-learn: no file needed. Every fifth sample is for testing."""

    source: ClassVar[str] = "Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI"

    def load(self, base: Path) -> Arrays:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        images, test = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1), _every_fifth(y)
        return Arrays(images[~test], y[~test], images[test], y[test])


def _every_fifth(y: Array) -> Array:
    """bool [N]: every fifth sample of each class, in the order of the data."""
    test = np.zeros(len(y), dtype=np.bool_)
    test[np.argsort(y, kind="stable")[4::5]] = True
    return test


@dataclass(frozen=True)
class Npz(Source):
    """Arrays of a NumPy file; see `fedsim.data.arrays.arrays_from` for their names.

    The file is looked for beside the scenario, then under FEDSIM_DATA; `mnist` is a file mnist.npz or a folder mnist with one .npz.
    """

    file: str = setting(help="path, file's stem or folder")
    test: str | None = setting(None, "a second file, whose x and y are the test set")

    def load(self, base: Path) -> Arrays:
        found = _read(find_file(self.file, base))
        if self.test is not None:
            other = _read(find_file(self.test, base))
            found |= {f"{name.removesuffix('_train').removesuffix('_test')}_test": array for name, array in other.items()}
        return arrays_from(found, self.file)

    def anchored(self, base: Path) -> "Npz":
        return replace(self, file=_anchored(self.file, base), test=self.test and _anchored(self.test, base))


def _anchored(name: str, base: Path) -> str:
    """The absolute path of a file beside the scenario; a name that means another file, or none, as it is."""
    with suppress(SettingError):  # of two files; `load` says so
        if found := _within(base, Path(name).expanduser()):
            folder = base / name
            return os.path.abspath(folder if folder.is_dir() else found)
    return name


def _read(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as stream:
            if not is_zipfile(path):
                raise ValueError("it is no archive of arrays")
            file = np.load(stream, allow_pickle=False)
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, EOFError, zlib.error) as error:
        raise complaint(f"{path} can't be read as an .npz file: {error}") from error


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
    if name.startswith("hub:"):
        return Hub(name.removeprefix("hub:"))
    return None if ":" in name else Npz(name)


def find_file(name: str, base: Path) -> Path:
    """The .npz meant by a path, stem or folder name. Raises SettingError with all places looked at and near names."""
    shelf = os.environ.get("FEDSIM_DATA", "")
    for root in (base, *([Path(shelf).expanduser()] if shelf else [])):
        if found := _within(root, Path(name).expanduser()):
            return found
    where = f"and under FEDSIM_DATA ({shelf})" if shelf else "; FEDSIM_DATA is not set"
    known = sorted({file.stem for file in _files(shelf)} | {file.parent.name for file in _files(shelf)}) if shelf else []
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"; is `{near[0]}` meant?" if near else f"; it has: {', '.join(known)}" if known else ""
    raise complaint(f"no data `{name}`: looked for an .npz beside the scenario ({base}) {where}{hint}".replace(") ;", ");"))


def _files(root: str | Path) -> list[Path]:
    folder = Path(root).expanduser()
    return sorted([*folder.glob("*.npz"), *folder.glob("*/*.npz")])


def _within(root: Path, name: Path) -> Path | None:
    """The file of this name under a root: as it is, with .npz, the one .npz of a folder, or a stem at most one folder down."""
    plain = root / name
    if plain.is_file():
        return plain
    if plain.with_name(plain.name + ".npz").is_file():
        return plain.with_name(plain.name + ".npz")
    folder = sorted(plain.glob("*.npz"))
    files = folder or [file for file in _files(root) if file.stem == name.name] if len(name.parts) == 1 else folder
    if len(files) > 1:
        raise complaint(f"`{name}` can be {' or '.join(str(file.relative_to(root)) for file in files)}: name the file")
    return files[0] if files else None
