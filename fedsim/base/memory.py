"""This machine's memory, asked before anything large is made: a refusal names the setting, an allocator names nothing."""

import ctypes
import os
from pathlib import Path

from fedsim.base.errors import SettingError
from fedsim.base.text import size

FREE, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
WITHOUT_WORD = 8 << 30  # bytes, where the system doesn't say how much memory is free
TRIM, MMAP, ARENAS = -1, -3, -8  # of glibc's `mallopt`: bytes that may be free at the end, that have a mapping of their own; arenas
LARGE, SPARE = 4 << 20, 32 << 20  # bytes of a block that is given back when it is free, and of small ones that are kept all the same
_giving = False


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes that this process may still take: what the system says, and the container's limit if it has one."""
    free = WITHOUT_WORD
    if FREE.is_file():
        lines = dict(line.split(":", 1) for line in FREE.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) << 10 if "MemAvailable" in lines else free
    most, used = GROUP / "memory.max", GROUP / "memory.current"
    if most.is_file() and used.is_file() and (text := most.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def afford(need: int, key: str, what: str) -> None:
    """Raises SettingError for the setting where something would take more bytes than there are."""
    if need > (there := memory()):
        raise SettingError(key, f"{what} would take about {size(need)} of memory, and this machine has {size(there)}")


def keep_large_blocks() -> None:
    """Tells glibc to reuse large blocks: without it each step pays for fresh pages (0.8 against 0.6 of a bare loop's speed)."""
    if not _giving:
        _glibc(("mallopt", TRIM, 2**31 - 1), ("mallopt", MMAP, 2**30))


def give_large_blocks_back() -> None:
    """The opposite and for good, for a process that waits more than it computes: what is large and free is the system's again, now and
    from now on. Blocks the size of a transfer's pieces are kept, for all threads in one place: fresh pages for each double its CPU time."""
    global _giving
    _giving = True
    _glibc(("mallopt", ARENAS, 1), ("mallopt", TRIM, SPARE), ("mallopt", MMAP, LARGE), ("malloc_trim", 0))


def _glibc(*calls: tuple[str, *tuple[int, ...]]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for name, *numbers in calls:
            getattr(libc, name)(*numbers)
