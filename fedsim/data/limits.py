"""How much a data file may unpack to: checked against what it declares, before anything is unpacked."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np

from fedsim.data.arrays import Array, complaint

MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
WITHOUT_WORD = 8 << 30  # bytes, where the system doesn't say how much memory is free
TEXT = 8  # bytes of memory that a byte of a text file takes at most, as lines and columns


def free_memory() -> int:
    """Bytes that this process may still take: what the system says, and the container's limit if it has one."""
    free = WITHOUT_WORD
    if MEMORY.is_file():
        lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) << 10 if "MemAvailable" in lines else free
    most, used = GROUP / "memory.max", GROUP / "memory.current"
    if most.is_file() and used.is_file() and (text := most.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def check_bytes(need: int, what: str) -> None:
    """Raises SettingError where arrays of so many bytes are more than half of the free memory: the other half is for working on them."""
    if need > (most := free_memory() // 2):
        raise complaint(f"{what} {need / 2**30:,.1f} GiB of memory, and at most {most / 2**30:,.1f} GiB are taken, half of what is free")


def check_text(path: Path) -> None:
    """Raises SettingError where a text file is too large to be read whole."""
    check_bytes(TEXT * path.stat().st_size, f"{path} takes up to")


def check_names(names: Sequence[str], origin: str) -> None:
    """Raises SettingError where two columns of a table have one name."""
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise complaint(f"{origin}: two columns are called `{twice[0]}`")


def texts(column: Sequence[str], origin: str, name: str) -> Array:
    """A column of texts as an array [rows], whose entries all take the room of the longest. Raises SettingError where that is too much."""
    check_bytes(4 * len(column) * max(map(len, column), default=0), f"{origin}: column `{name}`, its longest text in each row, takes")
    return np.array(column, dtype=np.str_)


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
