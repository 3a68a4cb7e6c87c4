"""Runs that a measurement drives by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from fedsim.bench.figures import say, seconds
from fedsim.building import Tasks
from fedsim.runner import Run
from fedsim.scenario import load


def opened(folder: Path, scenario: str) -> Run:
    """A run of a scenario that says neither when to evaluate nor when to stop; its folder and events are written as always."""
    file = folder / "bench.yaml"
    file.write_text(scenario + "evaluate: {every: 1000000 rounds}\nstop: {rounds: 1000000}\n")
    [loaded] = load(file)
    run = Run(loaded, Tasks().get(loaded))
    run.open(folder / "run")
    return run


def advance(run: Run, rounds: int) -> None:
    """So many rounds more."""
    run.stop, run.reason = replace(run.stop, rounds=run.fed.round + rounds), ""
    run.fed.run()


def rate(run: Run, rounds: int) -> float:
    """Client-steps a second over so many rounds more."""
    before = run.fed.worker.steps_done
    spent = seconds(lambda: advance(run, rounds))
    return (run.fed.worker.steps_done - before) / spent


def side_by_side(name: str, trials: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float, float]:
    """Medians of two rates over trials that take turns, and the median of their ratios; a trial before warms both up."""
    pairs = []
    for trial in range(trials + 1):
        say(f"{name}: trial {trial} of {trials}")
        pairs.append((first(), second()))
    return (*(median(side) for side in zip(*pairs[1:], strict=True)), median(a / b for a, b in pairs[1:]))
