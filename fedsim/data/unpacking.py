"""How much a data file may unpack to: checked against what it declares, before anything is unpacked."""

import math
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np

from fedsim.base.memory import free_memory
from fedsim.data.arrays import complaint

TEXT = 8  # bytes of memory that a byte of a text file takes at most, as lines and columns


def check_bytes(need: int, what: str) -> None:
    """Raises SettingError where arrays of so many bytes are more than half of the free memory: the other half is for working on them."""
    if need > (most := free_memory() // 2):
        raise complaint(f"{what} {need / 2**30:,.1f} GiB of memory, and at most {most / 2**30:,.1f} GiB are taken, half of what is free")


def check_text(path: Path) -> None:
    """Raises SettingError where a text file is too large to be read whole."""
    check_bytes(TEXT * path.stat().st_size, f"{path} takes up to")


def check_archive(path: Path, archive: ZipFile) -> list[str]:
    """Names of an .npz file's arrays, none of which is unpacked.

    Raises ValueError where an array is broken or holds Python objects, SettingError where all together are too large.
    """
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    sizes = {name: _declared(archive, name, info) for name, info in members.items()}
    if sizes:
        largest = max(sizes, key=lambda name: sizes[name])
        check_bytes(sum(sizes.values()), f"{path} (largest array: `{largest}`) unpacks to")
    return list(sizes)


def _declared(archive: ZipFile, name: str, info: ZipInfo) -> int:
    """Bytes of an array, by its own head and by the archive's list, which must agree."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"array `{name}` has another format ({version[0]}.{version[1]})")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        head = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"Object arrays are never read: `{name}` holds Python objects (pickled), not numbers or texts")
    need = math.prod(shape) * dtype.itemsize
    if need != info.file_size - head:
        raise ValueError(f"array `{name}` is to hold {need:,} bytes, shape {list(shape)} of {dtype}, and has {info.file_size - head:,}")
    return need
