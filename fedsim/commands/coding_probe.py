"""`python -m fedsim.commands.coding_probe SCENARIO [key=value ...]`: which parameters of each scheme would be fastest in its world."""

import sys
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from fedsim.base.errors import FedsimError, SettingError
from fedsim.coding.replay import fastest, grid, load, replay
from fedsim.coding.scheme import Fractional, Gc, MSgc, Scheme, SrSgc, Uncoded
from fedsim.scenario.settings import Scenario
from fedsim.settings.anchored import anchored
from fedsim.settings.values import Floats, Population, blocks
from fedsim.world import Nature

JOBS = 80  # of the probe, as in Krishnan et al. 2023
TICKS = 10**9


def tables(scenario: Scenario, workers: int, batch: int, rounds: int) -> tuple[Floats, Floats]:
    """Seconds of each worker's first jobs without load, and how many more a whole batch takes; float64 [rounds, n] each."""
    nature = Nature(scenario.world, Population(workers, blocks(scenario.groups, workers)), scenario.seed, TICKS)
    node, one = np.arange(workers), np.ones(workers, dtype=np.int64)
    bare, whole = (
        np.stack([nature.work(node, one, one * samples, one * turn) / TICKS for turn in range(1, rounds + 1)]) for samples in (0, batch)
    )
    return bare, whole - bare


def lines(scenario: Scenario, jobs: int = JOBS) -> list[str]:
    """The fastest scheme of each kind, a line each: what it is, load, seconds and wait-outs of the probe. Raises SettingError."""
    strategy, workers = scenario.strategy, scenario.task.partition.nodes
    batch, models, patience = (getattr(strategy, name, None) for name in ("batch", "models", "patience"))
    if not (isinstance(workers, int) and isinstance(batch, int) and isinstance(models, int) and isinstance(patience, float)):
        raise SettingError("strategy", "a probe is of `gradient_coding` with a `batch` in samples, on a known number of nodes")
    delay, out = models - 1, list[str]()
    times, per_load = tables(scenario, workers, batch, jobs + delay)
    for kind in (Uncoded, Gc, Fractional, SrSgc, MSgc):
        known = list(grid(kind, workers, delay))
        if known:
            best = fastest(known, times, jobs, per_load, patience)
            rounds = jobs + best.delay
            total = replay(best, times[:rounds], per_load[:rounds], patience)
            out.append(f"{written(best):60} load {load(best, workers):.6f}  {total.seconds:8.2f} s  {total.waits} wait-outs")
    return out


def written(scheme: Scheme) -> str:
    """As a scenario has it, without defaults."""
    values = {one.name: getattr(scheme, one.name) for one in fields(scheme) if getattr(scheme, one.name) != one.default}  # type: ignore[arg-type]
    return "{" + ", ".join([f"name: {scheme.name}", *(f"{name}: {value}" for name, value in values.items())]) + "}"


def main(arguments: Sequence[str]) -> int:
    """Prints the lines of the first run of a scenario; 2 where it can't be read."""
    from fedsim.scenario import load as read

    if not arguments:
        print(__doc__)
        return 2
    try:
        first = read(arguments[0], arguments[1:])[0]
        scenario = replace(first.scenario, world=anchored(first.scenario.world, first.base))
        print("\n".join(lines(scenario)))
    except FedsimError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
