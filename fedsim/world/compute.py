"""Seconds of work: settings."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.keys import interior, normal
from fedsim.settings.part import Part, setting
from fedsim.settings.spread import HUGE
from fedsim.settings.values import Floats, PerNode, Share, Time
from fedsim.world.job_times import JobTimes

NOTHING: PerNode[Fraction] = PerNode(Fraction(0))


class Jitter(Part):
    """What multiplies the work of each job, drawn anew for each."""

    slot: ClassVar[str] = "jitter"

    def factors(self, keys: Tensor) -> Floats:
        """float64, one for each key [m]."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogNormalJitter(Jitter):
    """exp of a normal with deviation sigma: the median is 1, the mean exp(sigma^2 / 2)."""

    name: ClassVar[str] = "log_normal"

    sigma: float = setting(help="deviation of the logarithm", ge=0, le=50)

    def factors(self, keys: Tensor) -> Floats:
        return np.exp(self.sigma * normal(keys, 1)[:, 0].double().numpy())


@dataclass(frozen=True)
class UniformJitter(Jitter):
    """Between two factors."""

    name: ClassVar[str] = "uniform"

    from_: float = setting(help="least factor", ge=0)
    to: float = setting(help="greatest factor", ge=0)

    def factors(self, keys: Tensor) -> Floats:
        share: Floats = interior(keys, 1)[:, 0].numpy()
        return self.from_ + (self.to - self.from_) * share


@dataclass(frozen=True)
class ExponentialJitter(Jitter):
    """1 plus an exponential: work never takes less than it should, and on average 1 + mean times as long."""

    name: ClassVar[str] = "exponential"
    source: ClassVar[str] = "Lee et al. 2018"

    mean: float = setting(help="mean of what is added", ge=0)

    def factors(self, keys: Tensor) -> Floats:
        added: Floats = -self.mean * np.log(interior(keys, 1)[:, 0].numpy())
        return 1 + added


@dataclass(frozen=True)
class ParetoJitter(Jitter):
    """From 1 on, with a heavy tail: a share x^-shape of the jobs takes more than x times as long; the mean is shape / (shape - 1)."""

    name: ClassVar[str] = "pareto"

    shape: float = setting(help="how fast the tail falls (alpha)", gt=0)

    def factors(self, keys: Tensor) -> Floats:
        tail: Floats = -np.log(interior(keys, 1)[:, 0].numpy()) / max(self.shape, 1e-9)
        return np.exp(np.minimum(tail, np.log(HUGE)))


class Bursts(Part):
    """Times in which a node is slow."""

    slot: ClassVar[str] = "bursts"


@dataclass(frozen=True)
class GilbertElliottBursts(Bursts):
    """Two states over a node's own jobs: each may enter or leave a burst, in which work takes longer; a share enter / (enter + leave)."""

    name: ClassVar[str] = "gilbert_elliott"
    source: ClassVar[str] = "Gilbert 1960"

    enter: PerNode[Share] = setting(help="chance a job that a burst begins", ge=0, le=1)
    leave: PerNode[Share] = setting(help="chance a job that it ends", ge=0, le=1)
    slower: PerNode[float] = setting(help="how many times as long work takes in a burst", gt=0)


@dataclass(frozen=True)
class Compute(Part):
    """Seconds of work = (job + trace + (step x steps + sample x samples) x gradients) x jitter x bursts.

    `trace` are measured times, of each node's jobs in their order. `gradients` are those that the method takes in a step, for most
    methods one.
    """

    slot: ClassVar[str] = "compute"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    job: PerNode[Time] = setting(NOTHING, "for each job", ge=0)
    step: PerNode[Time] = setting(NOTHING, "for each local step", ge=0)
    sample: PerNode[Time] = setting(NOTHING, "for each sample looked at", ge=0)
    trace: JobTimes | None = setting(None, "measured times of each node's jobs: a file")
    jitter: Jitter | None = setting(None, "how jobs of one node differ")
    bursts: Bursts | None = setting(None, "times in which a node is slow")
