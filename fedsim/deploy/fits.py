"""Robust fits of what was measured: links from transfers, work from stacks."""

# t: transfers, b: stacks, f: what a stack's time follows

import numpy as np

from fedsim.settings.values import Floats

MOST = 400  # transfers or stacks that are looked at; more tell nothing new
SPREAD = 2.0  # sizes of which the upper ones are so many times the lower ones tell rate and rest apart
WORTH = 0.1  # of the error that a feature takes away
EQUAL = 1e-3  # of the sum of errors
NOTHING = 1e-6  # of the seconds: an error that is none
LEAST = 4  # transfers that tell both


def thinned(values: Floats) -> Floats:
    """At most MOST of the rows, evenly."""
    return values if len(values) <= MOST else values[np.linspace(0, len(values) - 1, MOST).astype(np.int64)]


def line(size: Floats, seconds: Floats, rest: float) -> tuple[float, float]:
    """Seconds a byte and the rest of transfers of so many bytes [t], in so many seconds [t]; neither is negative.

    Where sizes differ, by Theil and Sen: the median of the slopes of all pairs, then the median of what is left, so that up to a quarter
    of the transfers may be anything (Sen 1968, "Estimates of the regression coefficient based on Kendall's tau"). Where they don't,
    or where that gives a negative part, the rest is taken as known (`rest`, at most what the quickest took) and the median of
    (seconds - rest) / size is the slope.
    """
    size, seconds = thinned(np.stack([size, seconds], 1)).T
    low, high = np.quantile(size, [0.1, 0.9])
    if len(size) >= LEAST and high >= SPREAD * low:
        first, second = np.triu_indices(len(size), 1)
        apart = np.abs(size[first] - size[second]) >= (high - low) / 2
        first, second = first[apart], second[apart]
        slope = float(np.median((seconds[first] - seconds[second]) / (size[first] - size[second])))
        left = float(np.median(seconds - slope * size))
        if slope >= 0 and left >= 0:
            return slope, left
        rest = 0.0 if left < 0 else rest
    rest = min(rest, float(seconds.min()))
    return float(np.median((seconds - rest) / np.maximum(size, 1.0))), rest


def work(features: Floats, seconds: Floats) -> Floats:
    """Coefficients [f], none negative, with which features [b, f] give the seconds [b] of stacks: those of the least sum of absolute
    errors, so that single slow stacks move nothing (Koenker & Bassett 1978, "Regression Quantiles").

    Features that go with each other can't be told apart by times that scatter. So they are taken in one after the other, each time the
    one that leaves the least sum, for as long as it takes away WORTH of the median error; of equal ones the first.
    """
    rows = thinned(np.c_[features, seconds])
    features, seconds = rows[:, :-1], rows[:, -1]
    taken, found, left = list[int](), np.zeros(features.shape[1]), float(np.median(seconds))
    while len(taken) < len(found):
        tries = [(at, *_least(features[:, [*taken, at]], seconds)) for at in range(len(found)) if at not in taken]
        at, coefficients, _, error = min(tries, key=lambda one: one[2] * (1 + EQUAL * one[0]))
        if error > (1 - WORTH) * left or left < NOTHING * float(np.median(seconds)):
            break
        taken, left = [*taken, at], error
        found = np.zeros(features.shape[1])
        found[taken] = coefficients
    return found


def _least(features: Floats, seconds: Floats) -> tuple[Floats, float, float]:
    """Coefficients, and the sum and the median of the errors that they leave: a linear programme."""
    from scipy.optimize import linprog

    count, scale, most = len(seconds), np.maximum(features.mean(0), 1e-300), max(float(seconds.max()), 1e-300)
    cost = np.r_[np.zeros(len(scale)), np.ones(2 * count)]
    equal = np.c_[features / scale, np.eye(count), -np.eye(count)]
    found = linprog(cost, A_eq=equal, b_eq=seconds / most, bounds=(0, None), method="highs")
    coefficients: Floats = found.x[: len(scale)] * most / scale
    errors = np.abs(features @ coefficients - seconds)
    return coefficients, float(errors.sum()), float(np.median(errors))
