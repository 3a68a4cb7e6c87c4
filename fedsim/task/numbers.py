"""Arrays of numbers as models take them: samples, targets, and what keeps them from being these."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.arrays import Array, complaint


def samples(x: Array, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, ...] float32, or uint8 as it is (see `decoded`); images channels first. Raises SettingError for no numbers, NaN, infinity.

    Where `dtype` is float64 all are, and bytes are decoded at once.

    Channels are the last of four axes if it has 1, 3 or 4 entries; where the second could be them too, of bytes only. Bytes of three
    axes are images of one channel.
    """
    if x.dtype.kind not in "iufb":
        first = f" (first: {x.reshape(-1)[0]})" if x.size else ""
        raise complaint(f"{name} holds no numbers but {x.dtype}{first}")
    if x.dtype == np.uint8:
        values: Array = x[:, None] if x.ndim == 3 else x
    else:
        values = narrowed(x, name, dtype)
    if values.ndim == 4 and values.shape[3] in (1, 3, 4) and (x.dtype == np.uint8 or values.shape[1] not in (1, 3, 4)):
        values = values.transpose(0, 3, 1, 2)
    found = torch.from_numpy(np.ascontiguousarray(values if values.ndim > 1 else values[:, None]))
    return found.to(dtype) / 255 if x.dtype == np.uint8 and dtype == torch.float64 else found


def _numpy(dtype: torch.dtype) -> Any:
    return np.float64 if dtype == torch.float64 else np.float32


def narrowed(x: Array, name: str, dtype: torch.dtype) -> Array:
    """Of `dtype`. Raises SettingError for NaN, infinity, and numbers that are too large."""
    with np.errstate(over="ignore"):
        values = x.astype(_numpy(dtype))
    large = np.argwhere(np.isfinite(x) & ~np.isfinite(values))
    check_finite(values, name, f"; {x.item(*large[0]):.3g} is too large for {str(dtype).removeprefix('torch.')}" if len(large) else "")
    return values


def check_finite(values: Array, name: str, note: str = "") -> None:
    """Raises SettingError, naming the row, where a number is NaN or infinite."""
    finite = np.isfinite(values.reshape(len(values), -1))
    bad = np.flatnonzero(~finite.all(1))
    if len(bad):
        more = f" and in {len(bad) - 1} more" if len(bad) > 1 else ""
        columns = np.flatnonzero(~finite.all(0))
        where = f"; all in column {columns[0]}" if values.ndim == 2 and len(columns) == 1 < finite.shape[1] else ""
        raise complaint(f"{name} has NaN or infinity in row {bad[0]} (the first row is 0){more}{where}{note}")
