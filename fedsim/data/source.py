"""The base of all sources of samples, and archives of arrays."""

import lzma
import zlib
from pathlib import Path
from typing import ClassVar
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np

from fedsim.base.errors import SettingError
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.unpacking import check_archive
from fedsim.settings.part import Part


class Source(Part):
    """`load` reads the samples; `base` is the folder of the scenario."""

    slot: ClassVar[str] = "data"
    modules: ClassVar[tuple[str, ...]] = (
        "fedsim.data.sources",
        "fedsim.data.text_sources",
        "fedsim.data.windows",
        "fedsim.data.tabular",
        "fedsim.data.pictures",
        "fedsim.data.environments",
    )

    def load(self, base: Path) -> Arrays:
        """Raises SettingError where there are no usable data."""
        raise NotImplementedError

    def anchored(self, base: Path) -> "Source":
        """The same data wherever the scenario lies: files beside it by their absolute paths."""
        return self


BROKEN = (OSError, ValueError, BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError)


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays by name. Raises SettingError where it is no such file, or where its arrays are objects or would take too much memory."""
    try:
        with path.open("rb") as stream:
            if not is_zipfile(path):
                raise ValueError(f"it is no archive of arrays{_other(path)}")
            with ZipFile(stream) as archive:
                names = check_archive(path, archive)
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            return {name: file[name] for name in names}
    except SettingError:
        raise
    except BROKEN as error:
        raise complaint(f"{path} can't be read as an .npz file: {error}") from error


def _other(path: Path) -> str:
    """What to do with a file of another kind."""
    if path.suffix == ".npz":
        return ""
    return "; .npz, .tsv, .csv, .parquet and .txt files are read as they are, others by a function of your own: `data: my_module:load`"
