"""What few seeds can tell: the t interval and test of paired differences, the exact sign-flip test, and Holm's correction for several."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite, log2, nan, sqrt
from statistics import fmean, stdev

import numpy as np

LEVEL = 0.05
FLIPPED = 20  # differences of which all 2 ** n signs are tried
ROUNDING = 1e-9  # share of the greatest value


@dataclass(frozen=True)
class Paired:
    """What the differences of `number` pairs tell: their mean, half the width of its 95 % t interval, and two-sided p values.

    `p` is that of the paired t test, `flip` the exact one over all signs. NaN where they are too few, or all alike.
    """

    number: int
    mean: float = nan
    half: float = nan
    p: float = nan
    flip: float = nan

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - self.half, self.mean + self.half


def paired(differences: Sequence[float]) -> Paired:
    """Of differences between runs of the same seeds."""
    number = len(differences)
    if number < 2:
        return Paired(number, *differences)
    from scipy.special import stdtr, stdtrit  # Student's distribution and its inverse

    mean, error = fmean(differences), stdev(differences) / sqrt(number)
    if error <= ROUNDING * max(map(abs, differences)):
        return Paired(number, mean, flip=sign_flip(differences))
    half = float(stdtrit(number - 1, 1 - LEVEL / 2)) * error
    return Paired(number, mean, half, 2 * float(stdtr(number - 1, -abs(mean) / error)), sign_flip(differences))


def sign_flip(differences: Sequence[float]) -> float:
    """The share of all 2 ** n signs under which the sum is as far from 0 as it is, or farther; NaN for more than FLIPPED differences.

    Exact where, without an effect, a difference is as likely as its opposite. Never below 2 / 2 ** n.
    """
    if not 0 < len(differences) <= FLIPPED:
        return nan
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    far = abs(sum(differences)) - ROUNDING * sum(map(abs, differences))
    return float((np.abs(sums) >= far).mean())


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for being several (Holm 1979): at most one of all true nulls is rejected by chance in 5 % of cases at 0.05.

    The k-th smallest of m is multiplied by m - k, k counted from 0, and none is smaller than one before it. NaN stays and is not counted.
    """
    order = sorted((value, place) for place, value in enumerate(values) if isfinite(value))
    found, least = [nan] * len(values), 0.0
    for rank, (value, place) in enumerate(order):
        least = found[place] = max(least, min(1.0, (len(order) - rank) * value))
    return found


def floor(pairs: int, comparisons: int = 1) -> float:
    """The least that the sign-flip p of so many pairs can be, as the smallest of so many comparisons after Holm."""
    return min(1.0, comparisons * 2.0 ** (1 - pairs)) if pairs else 1.0


def enough(comparisons: int = 1) -> int:
    """The least number of pairs with which it can be below 0.05."""
    return ceil(1 + log2(comparisons / LEVEL))
