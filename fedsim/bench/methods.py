"""What methods cost beside FedAvg: client-steps a second of both on the same workload, taking turns in one process."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fedsim.bench.figures import Figure
from fedsim.bench.plain import Workload
from fedsim.bench.runs import opened, rate, side_by_side
from fedsim.runner import Run

ROUNDS = 5  # of a trial
TARGETS = {"fedspeed": 0.45, "scaffold": 0.8, "feddyn": 0.8, "fedstale": 0.85}  # FedSpeed has two gradients a step


def beside_fedavg(strategy: str, target: float, trials: int) -> list[Figure]:
    """An MLP on MNIST, 50 of 1,000 clients a round, who all have a memory from the beginning: tables don't grow meanwhile."""
    name = f"MLP 784-200-10, cohort 50, {strategy} beside fedavg"
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        ours, plain = (
            opened(Path(place), Workload("{name: mlp, hidden: [200]}", 50, ROUNDS, strategy=method).text())
            for place, method in ((first, strategy), (second, "fedavg"))
        )
        _remember(ours)
        figures = side_by_side(name, trials, lambda: rate(ours, ROUNDS), lambda: rate(plain, ROUNDS))
        for run in (ours, plain):
            run.close("finished")
    return [Figure(name, *figures, target)]


def _remember(run: Run) -> None:
    """Gives each client the memory that it begins with."""
    fed = run.fed
    memory = fed.strategy.start_local(fed.task.init[None])
    fed.flight.memory.put(np.arange(fed.nodes), {part: rows.expand(fed.nodes, -1) for part, rows in memory.items()})


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    return {strategy: partial(beside_fedavg, strategy, target) for strategy, target in TARGETS.items()}
