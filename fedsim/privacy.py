"""What a message may tell of its client: clipping and noise, and what a run's releases cost of a privacy budget.

Guarantee with `unit: client` (that of `unit: sample` stands in `dpsgd`): (epsilon, delta)-differential privacy of the sequence of models
that the server makes, at the level of clients. Neighbours are two federations of which one is the other with all messages of ONE client
replaced by zeros, whatever data it has (zero-out: Kairouz et al. 2021, arXiv 2103.00039, section 2; under Poisson sampling the same as
adding or removing a client). Who is asked when, how long work takes and how many samples a client has count as known, but for the coins of
Poisson sampling, which nobody sees. What a simulation measures and writes down is not released, and its noise follows from the scenario's
seed: who knows that, can take it away.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.errors import SettingError
from fedsim.local import Local
from fedsim.part import Part, setting
from fedsim.rows import Rows, norm

if TYPE_CHECKING:
    from fedsim.federation import Federation
    from fedsim.release import Account
    from fedsim.strategy import Strategy
    from fedsim.task import Task

ORDERS = (*(1 + k / 10 for k in range(1, 100)), *range(11, 64), *(64, 80, 96, 128, 160, 192, 256, 384, 512, 1000))  # of Rényi divergences
LEAST, MOST = 1e-3, 2.0**20  # noise, in clips: less hides nobody, more is never looked for


class Privacy(Part):
    """What is done to messages before a model is made of them."""

    slot: ClassVar[str] = "privacy"
    default: ClassVar[str] = "gaussian"

    @property
    def at_server(self) -> bool:
        """Does it need one?"""
        return True

    def check(self, strategy: "Strategy", task: "Task") -> None:
        """Raises SettingError where it has no meaning for the method or the task."""

    def local(self, gradients: int, *args: Any, **named: Any) -> Local:
        """Jobs as a method sees them that takes so many gradients a step; the rest is for `Local`."""
        return Local(*args, **named)

    def clipped(self, parts: Rows) -> Rows:
        """Messages [m] as their clients send them."""
        raise NotImplementedError

    def release(self, fed: "Federation", planned: int | None) -> "Account":
        """What becomes of them in a run; `planned` rounds, if that is known. Raises SettingError where it has no meaning."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussian(Privacy):
    """Clipping and Gaussian noise: of clients' messages at the server (DP-FedAvg), or of samples' gradients at each node (DP-SGD).

    `unit: client`: the server adds noise to the sum of clipped messages and divides by the messages expected, not those come. All parts of
    a message are clipped as one vector, by its client before it travels and again by the server. Only such noisy means reach the
    strategy: what needs more than a mean of equally weighted messages is refused.

    `unit: sample`: nodes draw batches by coins of chance batch / samples, clip each sample's gradient, add noise to their sum and divide by
    the samples expected. It needs no server; what a method makes of gradients is free, what needs more of samples is refused.
    """

    source: ClassVar[str] = "McMahan et al. 2018; Abadi et al. 2016"

    exclusive: ClassVar[tuple[str, ...]] = ("noise", "epsilon")

    clip: float = setting(help="greatest length of a client's message (S), or of a sample's gradient (C)", gt=0, le=math.inf)
    noise: float | None = setting(None, "standard deviation of the noise, in clips (z)", ge=0)
    epsilon: float | None = setting(None, "instead of `noise`: what all of `stop.rounds` may cost", gt=0)
    delta: float = setting(1e-5, "chance that the guarantee fails; below 1 / clients, or 1 / samples of a client", gt=0, lt=1)
    unit: Literal["client", "sample"] = setting("client", "what is hidden: all of a client's data, or each of its samples")

    def __post_init__(self) -> None:
        if (self.noise is None) == (self.epsilon is None):
            raise ValueError("one of `noise` and `epsilon` is due" if self.noise is None else "`noise` and `epsilon` exclude each other")
        for name in ("clip", "noise", "epsilon"):
            if not (math.isfinite(getattr(self, name) or 0.0) or (name == "clip" and self.plain)):
                raise ValueError(f"`{name}` must be finite")
        if 0 < (self.noise or 0.0) < LEAST:
            raise ValueError(f"noise of {self.noise:g} clips hides nobody: from {LEAST:g} on, or 0 for none")

    @property
    def plain(self) -> bool:
        """Are gradients as without it, bit by bit?"""
        return self.unit == "sample" and self.noise == 0 and self.clip == math.inf

    @property
    def at_server(self) -> bool:
        return self.unit == "client"

    def check(self, strategy: "Strategy", task: "Task") -> None:
        if self.unit == "sample":
            from fedsim.dpsgd import check

            check(self, strategy, task)

    def local(self, gradients: int, *args: Any, **named: Any) -> Local:
        if self.unit == "client" or self.plain:
            return super().local(gradients, *args, **named)
        from fedsim.dpsgd import PrivateLocal

        return PrivateLocal(self, gradients, *args, **named)

    def clipped(self, parts: Rows) -> Rows:
        """None longer than `clip`."""
        if self.unit == "sample":
            return parts
        factor = shrink(parts, self.clip)
        return {name: rows * factor.view(-1, *[1] * (rows.dim() - 1)) for name, rows in parts.items()}

    def release(self, fed: "Federation", planned: int | None) -> "Account":
        from fedsim.dpsgd import Spending
        from fedsim.release import Release

        return (Release if self.unit == "client" else Spending)(self, fed, planned)


def shrink(parts: Rows, clip: float) -> Tensor:
    """[m]: min(1, clip / length) of each message, all its parts taken as one vector. Raises SettingError for whole numbers."""
    for name, rows in parts.items():
        if not rows.is_floating_point():
            raise SettingError("privacy", f"messages have a part `{name}` of whole numbers, which can't be clipped")
    squares = [norm(rows.flatten(1))[:, 0].square() for rows in parts.values()]
    factor: Tensor = (clip / sum(squares[1:], start=squares[0]).sqrt()).clamp(max=1)
    return factor


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
    from opacus.accountants.analysis.rdp import compute_rdp

    return np.asarray(compute_rdp(q=chance, noise_multiplier=noise, steps=1, orders=list(ORDERS)))


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
    if epsilon(MOST, delta, releases, chance) > goal:
        raise ValueError(f"no noise is enough for epsilon {goal:g} over {releases} rounds")
    if epsilon(LEAST, delta, releases, chance) <= goal:
        return LEAST
    return _least(lambda noise: epsilon(noise, delta, releases, chance) <= goal, LEAST, 1.0, 1e-3)


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
