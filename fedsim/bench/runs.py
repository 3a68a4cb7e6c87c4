"""Runs that a measurement drives by hand."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

from fedsim.base.crashes import ending
from fedsim.base.errors import RunError
from fedsim.bench.figures import say, seconds
from fedsim.federation.flight import Flight
from fedsim.run.building import Tasks, build
from fedsim.run.runner import Run
from fedsim.run.tune import advance
from fedsim.scenario import load
from fedsim.scenario.trust import trusting


def opened(folder: Path, scenario: str) -> Run:
    """A run of a scenario that says neither when to evaluate nor when to stop; its folder and events are written as always.

    Without checkpoints, which have a measurement of their own: each trial is an end, at which a run's whole state would be written.
    """
    file = folder / "bench.yaml"
    file.write_text(scenario + "evaluate: {every: 1000000 rounds}\nstop: {rounds: 1000000}\ncheckpoint: none\n")
    with trusting("fedsim.bench"):
        [loaded] = load(file)
    run = build(loaded, Tasks())
    run.open(folder / "run")
    return run


def flight_of(run: Run) -> Flight:
    """Its jobs, which a simulated field has."""
    assert isinstance(run.fed.flight, Flight)
    return run.fed.flight


def rate(run: Run, rounds: int) -> float:
    """Client-steps a second over so many rounds more."""
    before = run.fed.worker.steps_done
    spent = seconds(lambda: advance(run, rounds))
    return (run.fed.worker.steps_done - before) / spent


def alone(what: str, module: str, *words: str) -> str:
    """What `python -m MODULE WORDS`, a process of its own, says. Raises RunError where it fails."""
    say(f"{what}: a process of its own")
    done = subprocess.run([sys.executable, "-P", "-m", module, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RunError(f"bench: {what}: {said[-1] if said and done.returncode > 0 else f'its process {ending(done.returncode)}'}")
    return done.stdout


def side_by_side(name: str, trials: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of two rates over trials that take turns, and the median of their ratios; a trial before warms both up."""
    pairs = []
    for trial in range(trials + 1):
        say(f"{name}: trial {trial} of {trials}")
        pairs.append((first(), second()))
    return (*(median(side) for side in zip(*pairs[1:], strict=True)), median(a / b for a, b in pairs[1:]))
