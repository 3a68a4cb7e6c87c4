"""Schemes: what each worker computes in each round, from what was delivered so far, and when a job's gradient can be decoded."""

# n: workers, q: coded sums that a worker has of a job, K: chunks of a job, T: rounds that a gradient may come late

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fedsim.base.clock import Ints
from fedsim.coding.codes import Bools, Code, cyclic, fractional
from fedsim.coding.patterns import arbitrary, bursty, few
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Floats


class Scheme(Part):
    """Pure functions. Job r begins in round r; in that and the next T rounds workers deliver sums of gradients over its chunks."""

    slot: ClassVar[str] = "scheme"
    default: ClassVar[str] = "none"

    @property
    def delay(self) -> int:
        """T: a job is decoded at the end of round r + T at the latest."""
        return 0

    @property
    def slots(self) -> int:
        """Sums that a worker computes in a round, at most."""
        return 1

    @property
    def horizon(self) -> int:
        """Rounds that `conforms` looks at, this one among them."""
        return 1

    def sizes(self, workers: int) -> Floats:
        """[K]: the chunks' shares of a job's samples; they sum to 1."""
        return np.full(workers, 1 / workers)

    def sums(self, workers: int) -> Floats:
        """[n, q, K]: coefficients of the chunks in the sums. Raises ValueError where the scheme does not fit so many workers."""
        return self.code(workers).matrix[:, None]

    def code(self, workers: int) -> Code:
        """The code within a job. Raises ValueError where there is none for so many workers."""
        return cyclic(workers, 0)

    def assign(self, delivered: Bools) -> tuple[Ints, Ints]:
        """From what was delivered of job r - a before round r, bool [a = 0..T, n, q]: ages a and sums of the slots, [n, slots], -1: idle.

        All is delivered of jobs before the first.
        """
        none = np.zeros((delivered.shape[1], 1), dtype=np.int64)
        return none, none

    def conforms(self, slow: Bools) -> bool:
        """Can all jobs be decoded in time though workers were slow in these rounds, bool [horizon, n], the last being this one?"""
        return not slow[-1].any()

    def decode(self, delivered: Bools) -> Floats | None:
        """Coefficients [n, q] of the delivered sums that make the whole gradient; None where it can't be decoded (yet)."""
        found = self.code(len(delivered)).decode(delivered[:, 0])
        return None if found is None else found[:, None]

    def loads(self, workers: int) -> Floats:
        """[n, q]: share of a job's samples in each sum."""
        return np.asarray((self.sums(workers) != 0) @ self.sizes(workers))


@dataclass(frozen=True)
class Uncoded(Scheme):
    """Each worker has its own chunk, and all are waited for."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class Gc(Scheme):
    """Gradient coding by a cyclic code: worker i has chunks i to i + s, and any n - s replies will do."""

    source: ClassVar[str] = "Tandon et al. 2017"

    stragglers: int = setting(help="s, that a round does not wait for", ge=0)
    strict: bool = setting(False, "wait for all at s stragglers already, as the sequential paper's code does for this baseline")

    def code(self, workers: int) -> Code:
        return cyclic(workers, self.stragglers)

    def conforms(self, slow: Bools) -> bool:
        return few(slow, self.stragglers - self.strict) or not slow[-1].any()


@dataclass(frozen=True)
class Fractional(Gc):
    """Gradient coding by fractional repetition: groups of s + 1 workers have the same chunks and send the same plain sum."""

    def code(self, workers: int) -> Code:
        return fractional(workers, self.stragglers)


@dataclass(frozen=True)
class SrSgc(Scheme):
    """Selective repetition: a code for fewer stragglers, and what is missing of a job is done again B rounds later."""

    name: ClassVar[str] = "sr_sgc"
    source: ClassVar[str] = "Krishnan et al. 2023"

    burst: int = setting(help="B: rounds within which a worker is slow", ge=1)
    window: int = setting(help="W = xB + 1: rounds in which that holds", ge=2)
    stragglers: int = setting(help="lambda: workers that are slow in a window", ge=1)

    def __post_init__(self) -> None:
        _shorter(self.burst, self.window)
        if (self.window - 1) % self.burst:
            raise ValueError(f"`window` is a multiple of `burst` and 1 more; {self.window} is not with bursts of {self.burst}")

    @property
    def delay(self) -> int:
        return self.burst

    @property
    def horizon(self) -> int:
        return self.window

    @property
    def repaired(self) -> int:
        """s = ceil(B lambda / (W - 1 + B)): stragglers of a job that its code repairs."""
        return -(-self.burst * self.stragglers // (self.window - 1 + self.burst))

    def code(self, workers: int) -> Code:
        _some(workers, self.stragglers)
        return cyclic(workers, self.repaired)

    def assign(self, delivered: Bools) -> tuple[Ints, Ints]:
        missing = ~delivered[self.burst, :, 0]
        again = missing & (np.cumsum(missing) <= missing.sum() - self.repaired)
        return np.where(again, self.burst, 0)[:, None], np.zeros((len(missing), 1), dtype=np.int64)

    def conforms(self, slow: Bools) -> bool:
        return bursty(slow, self.burst, self.stragglers)


@dataclass(frozen=True)
class MSgc(Scheme):
    """Multiplexed: W - 1 chunks of one worker only, which is asked again for what is missing, and B groups of chunks under a code."""

    name: ClassVar[str] = "m_sgc"
    source: ClassVar[str] = "Krishnan et al. 2023"

    burst: int = setting(help="B: rounds within which a worker is slow", ge=1)
    window: int = setting(help="W: rounds in which that holds", ge=2)
    stragglers: int = setting(help="lambda: workers that are slow in a window", ge=1)
    pattern: Literal["bursty", "arbitrary"] = setting(
        "bursty", "the model of slowness: at most B rounds apart in W, or in B of any W + B - 1 rounds"
    )

    def __post_init__(self) -> None:
        _shorter(self.burst, self.window)

    @property
    def own(self) -> int:
        """W - 1: chunks of each worker's own."""
        return self.window - 1

    @property
    def delay(self) -> int:
        return self.window - 2 + self.burst

    @property
    def slots(self) -> int:
        return self.own + self.burst

    @property
    def horizon(self) -> int:
        return self.window if self.pattern == "bursty" else self.window + self.burst - 1

    def _coded(self, workers: int) -> bool:
        """With lambda = n all chunks are workers' own."""
        return self.stragglers < workers

    def code(self, workers: int) -> Code:
        """Of each group."""
        _some(workers, self.stragglers)
        return cyclic(workers, self.stragglers)

    def sizes(self, workers: int) -> Floats:
        _some(workers, self.stragglers)
        if not self._coded(workers):
            return np.full(workers * self.own, 1 / (workers * self.own))
        more = self.stragglers + 1
        one = more / (workers * (self.burst + self.own * more))
        return np.repeat([one, one / more], [workers * self.own, workers * self.burst])

    def sums(self, workers: int) -> Floats:
        chunks, groups = len(self.sizes(workers)), self.burst if self._coded(workers) else 0
        out, worker = np.zeros((workers, self.own + groups, chunks)), np.arange(workers)
        for k in range(self.own):
            out[worker, k, worker * self.own + k] = 1
        for group in range(groups):
            first = workers * (self.own + group)
            out[:, self.own + group, first : first + workers] = self.code(workers).matrix
        return out

    def assign(self, delivered: Bools) -> tuple[Ints, Ints]:
        own, slot = delivered[:, :, : self.own], np.arange(self.slots)[:, None]  # slot m serves job r - m
        groups = slot if delivered.shape[2] > self.own else np.full_like(slot, -1)
        sums = np.where(own.all(2), groups, own.argmin(2)).T
        return np.broadcast_to(slot.T, sums.shape), sums

    def conforms(self, slow: Bools) -> bool:
        return (bursty if self.pattern == "bursty" else arbitrary)(slow, self.burst, self.stragglers)

    def decode(self, delivered: Bools) -> Floats | None:
        if not delivered[:, : self.own].all():
            return None
        out = delivered.astype(np.float64)
        for group in range(self.own, delivered.shape[1]):
            found = self.code(len(delivered)).decode(delivered[:, group])
            if found is None:
                return None
            out[:, group] = found
        return out


def _shorter(burst: int, window: int) -> None:
    """Raises ValueError where a burst is no shorter than its window."""
    if burst >= window:
        raise ValueError(f"`burst` is less than `window`, the rounds that it is counted in; {burst} and {window} were given")


def _some(workers: int, stragglers: int) -> None:
    """Raises ValueError where more are slow than there are."""
    if stragglers > workers:
        raise ValueError(f"{stragglers} stragglers of {workers} workers")
