"""Total times of schemes from a table of workers' times, and the parameters that would have been fastest on a probe."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from fedsim.coding.codes import Bools
from fedsim.coding.scheme import Gc, MSgc, Scheme, SrSgc, Uncoded
from fedsim.settings.values import Floats


class Total(NamedTuple):
    """What `jobs` gradients took: seconds, and how many of the rounds waited for all workers though some were slow."""

    seconds: float
    waits: int


def load(scheme: Scheme, workers: int) -> float:
    """Share of a job's samples that one worker computes in a round in which all its slots are at work."""
    if isinstance(scheme, MSgc):
        return scheme.slots * float(scheme.sizes(workers)[0])
    if isinstance(scheme, SrSgc):
        return (scheme.repaired + 1) / workers
    return (scheme.stragglers + 1) / workers if isinstance(scheme, Gc) else 1 / workers


def replay(scheme: Scheme, times: Floats, per_load: float | Floats, patience: float) -> Total:
    """Rounds in which worker i would take times[r, i] seconds without load, and `per_load` ([r, i] or all alike) more for a whole batch.

    A round ends at (1 + patience) times the fastest worker's time, or with the last worker; where the slow ones don't conform, all
    are waited for. As many rounds as times has: its jobs and the T more in which the last of them come.
    """
    work = times + per_load * load(scheme, times.shape[1])
    limits = (1 + patience) * work.min(1)
    slow: Bools = work > limits[:, None]
    waits = 0
    for r in range(len(slow)):
        if not scheme.conforms(slow[max(r + 1 - scheme.horizon, 0) : r + 1]):
            slow[r], limits[r], waits = False, np.inf, waits + 1
    return Total(float(np.minimum(limits, work.max(1)).sum()), waits)


def grid(kind: type[Scheme], workers: int, delay: int = 4) -> Iterator[Scheme]:
    """Schemes of a kind with all parameters with which no gradient comes later than `delay` rounds; of SR-SGC with x up to 3."""
    if kind is Uncoded:
        yield Uncoded()
    for stragglers in range(1, workers + 1):
        if issubclass(kind, Gc) and stragglers < workers and (kind is Gc or workers % (stragglers + 1) == 0):
            yield kind(stragglers)
        for burst in range(1, delay + 1):
            if kind is SrSgc:
                yield from (SrSgc(burst, x * burst + 1, stragglers) for x in (1, 2, 3))
            if kind is MSgc:
                yield from (MSgc(burst, window, stragglers) for window in range(burst + 1, delay + 3 - burst))


def fastest(schemes: Iterable[Scheme], times: Floats, jobs: int, per_load: float | Floats, patience: float) -> Scheme:
    """Which of the schemes would have been fastest at `jobs` jobs, each in its jobs + T rounds; times [at least jobs + T, n]."""
    known = list(schemes)
    if (need := jobs + max(one.delay for one in known)) > len(times):
        raise ValueError(f"{jobs} jobs take up to {need} rounds; the probe has {len(times)}")

    def seconds(one: Scheme) -> float:
        rounds = jobs + one.delay
        return replay(one, times[:rounds], per_load if isinstance(per_load, float) else per_load[:rounds], patience).seconds

    return min(known, key=seconds)
