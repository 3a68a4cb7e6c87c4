"""Columns of tables that are texts: their names, and texts as arrays."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedsim.data.arrays import Array, complaint
from fedsim.data.unpacking import check_bytes


def check_names(names: Sequence[str], origin: str) -> None:
    """Raises SettingError where two columns of a table have one name."""
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise complaint(f"{origin}: two columns are called `{twice[0]}`")


def texts(column: Sequence[str], origin: str, name: str) -> Array:
    """A column of texts as an array [rows], whose entries all take the room of the longest. Raises SettingError where that is too much."""
    check_bytes(4 * len(column) * max(map(len, column), default=0), f"{origin}: column `{name}`, its longest text in each row, takes")
    return np.array(column, dtype=np.str_)
