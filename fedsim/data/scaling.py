"""Gaps filled and columns scaled by what the training rows have, once it is known which these are."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# N: training rows, M: test rows, D: columns


@dataclass(frozen=True)
class Scaling:
    """What becomes of the columns of numbers: `numbers` is bool [D], and others stay as they are. A gap is NaN."""

    numbers: NDArray[np.bool_]
    fill: Literal["none", "mean", "median", "zero", "drop"]
    scale: Literal["standard", "minmax", "none"]

    def __call__(self, *tables: NDArray[Any]) -> list[NDArray[np.float32]]:
        """float32 [N, D] of the first table, whose rows train, and of others [M, D] by the same numbers."""
        made = [table.astype(np.float32) for table in tables]
        for column in np.flatnonzero(self.numbers):
            values = [table[:, column].astype(np.float64) for table in tables]
            for to, one in zip(made, self._column(values), strict=True):
                to[:, column] = one
        return made

    def _column(self, values: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        first, low, width = values[0], 0.0, 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a column that only test rows have a number in: a gap is 0
            instead = np.nan_to_num(np.nanmean(first) if self.fill == "mean" else np.nanmedian(first) if self.fill == "median" else 0.0)
        values = [np.where(np.isnan(one), instead, one) for one in values]
        first = values[0]
        if self.scale == "standard":
            low, width = first.mean(), first.std()
        elif self.scale == "minmax":
            low, width = first.min(), np.ptp(first)
        return [(one - low) / (width or 1.0) for one in values]

    def without(self, columns: NDArray[np.bool_]) -> "Scaling":
        """Of the columns that are left where those of `columns`, bool [D], are no features."""
        return Scaling(self.numbers[~columns], self.fill, self.scale)

    def __str__(self) -> str:
        """What is said of it; "" where the rows that train make no difference."""
        words = [f"scaled ({self.scale})"] if self.scale != "none" else []
        words += [f"gaps filled ({self.fill})"] if self.fill in ("mean", "median") else []
        return f"{' and '.join(words)} by the training rows alone" if words and self.numbers.any() else ""
