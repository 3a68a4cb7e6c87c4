"""What releases of noisy sums cost of a privacy budget."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDERS = (*(1 + k / 10 for k in range(1, 100)), *range(11, 64), *(64, 80, 96, 128, 160, 192, 256, 384, 512, 1000))  # of Rényi divergences
STRIDE, SLACK = 8, 1e-9  # of orders; for rounding
LEAST, MOST = 1e-3, 2.0**20  # noise, in clips: less hides nobody, more is never looked for


@lru_cache(maxsize=4096)
def epsilon(noise: float, delta: float, releases: int, chance: float | None = None) -> float:
    """What so many releases cost a client that stands in all of them, or in each by its own secret coin of this chance.

    Without a coin it is exact: so many Gaussians are one of noise / sqrt(releases). With one it is the smaller of that and the bound
    by Rényi divergences of the sampled Gaussian (Mironov, Talwar & Zhang 2019, arXiv 1908.10530), as opacus computes it.
    """
    if releases == 0 or chance == 0:
        return 0.0
    if noise == 0:
        return math.inf
    whole = _gaussian(math.sqrt(releases) / noise, delta)
    if chance is None or chance >= 1:
        return whole
    return max(0.0, min(whole, _spent(_renyi(chance, noise) * releases, delta)))


@lru_cache(maxsize=1024)
def _renyi(chance: float, noise: float) -> NDArray[np.float64]:
    """Of one release, at each of ORDERS."""
    return _divergences(chance, noise, ORDERS)


def _divergences(chance: float, noise: float, orders: Sequence[float]) -> NDArray[np.float64]:
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.asarray(compute_rdp(q=chance, noise_multiplier=noise, steps=1, orders=list(orders)))


def _at_most(goal: float, noise: float, delta: float, releases: int, chance: float | None) -> bool:
    """Is `epsilon` no more than a goal? With a coin, orders are left out that can't say so: divergences rise with the order."""
    if chance is None or not 0 < chance < 1:
        return epsilon(noise, delta, releases, chance) <= goal
    few = np.arange(0, len(ORDERS), STRIDE)
    found = _divergences(chance, noise, ORDERS[::STRIDE])
    if _gaussian(math.sqrt(releases) / noise, delta) <= goal or (_costs(found * releases, few, delta) <= goal).any():
        return True
    rest = np.setdiff1d(np.arange(len(ORDERS)), few)
    least = (found[rest // STRIDE] * (1 - SLACK) - SLACK) * releases
    rest = rest[~(_costs(least, rest, delta) > goal)]
    return bool((_costs(_divergences(chance, noise, [ORDERS[place] for place in rest]) * releases, rest, delta) <= goal).any())


def _costs(divergences: NDArray[np.float64], places: NDArray[np.int64], delta: float) -> NDArray[np.float64]:
    """Epsilon by each of some orders, as opacus computes it."""
    orders = np.array(ORDERS)[places]
    return np.asarray(divergences - (np.log(delta) + np.log(orders)) / (orders - 1) + np.log((orders - 1) / orders))


def _spent(divergences: NDArray[np.float64], delta: float) -> float:
    from opacus.accountants.analysis.rdp import get_privacy_spent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the first or last: still a bound
        return float(get_privacy_spent(orders=list(ORDERS), rdp=divergences, delta=delta)[0])


def _gaussian(mu: float, delta: float) -> float:
    """Least epsilon of one Gaussian of sensitivity mu and noise 1 (Balle & Wang 2018, arXiv 1805.06530, Theorem 8)."""
    from scipy.special import log_ndtr

    def enough(epsilon: float) -> bool:
        above, below = float(log_ndtr(mu / 2 - epsilon / mu)), epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
        return math.exp(above) - math.exp(min(below, above)) <= delta

    return 0.0 if enough(0.0) else _least(enough, 0.0, 1.0)


def _least(enough: Callable[[float], bool], low: float, high: float, close: float = 1e-12) -> float:
    """The least number above `low` that is enough, from above, as all greater ones are; it may lie beyond `high`."""
    while not enough(high):
        low, high = high, 2 * high
    while high - low > close * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@lru_cache(maxsize=64)  # the runs of a sweep share it
def noise_for(goal: float, delta: float, releases: int, chance: float | None = None) -> float:
    """The least noise, to a thousandth and from above, with which so many releases cost at most `goal`. Raises ValueError beyond MOST."""
    if not _at_most(goal, MOST, delta, releases, chance):
        raise ValueError(f"no noise is enough for epsilon {goal:g} over {releases} rounds")
    if _at_most(goal, LEAST, delta, releases, chance):
        return LEAST
    return _least(lambda noise: _at_most(goal, noise, delta, releases, chance), LEAST, 1.0, 1e-3)


@lru_cache(maxsize=64)
def releases_for(goal: float, noise: float, delta: float, chance: float | None = None) -> int:
    """The most releases that cost at most `goal`."""
    if epsilon(noise, delta, 1, chance) > goal:
        return 0
    low, high = 1, 2
    while epsilon(noise, delta, high, chance) <= goal and high < 1 << 40:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if epsilon(noise, delta, middle, chance) <= goal else (low, middle)
    return low
