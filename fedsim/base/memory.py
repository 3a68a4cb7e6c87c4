"""What memory this machine has, asked before anything large is made: a refusal names the setting, an allocator names nothing."""

import os

from fedsim.base.errors import SettingError
from fedsim.base.text import size


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def afford(need: int, key: str, what: str) -> None:
    """Raises SettingError for the setting where something would take more bytes than there are."""
    if need > (there := memory()):
        raise SettingError(key, f"{what} would take about {size(need)} of memory, and this machine has {size(there)}")
