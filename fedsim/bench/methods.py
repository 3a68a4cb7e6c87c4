"""What methods cost beside FedAvg, and what it costs a server to remember all of its clients."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from fedsim.bench.figures import Figure, limit
from fedsim.bench.plain import Workload
from fedsim.bench.runs import alone, flight_of, opened, rate, side_by_side
from fedsim.bench.scale import TRAINING, peak
from fedsim.run.runner import Run
from fedsim.run.tune import advance

MLP = Workload("{name: mlp, hidden: [200]}", 50, 2)


def beside_fedavg(name: str, strategy: str, target: float, before: int, trials: int) -> list[Figure]:
    """Client-steps a second on the MLP workload beside FedAvg's, after so many rounds that fill memories."""
    title = f"{name} beside FedAvg, MLP, cohort 50"
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        method, fedavg = opened(Path(first), replace(MLP, strategy=strategy).text()), opened(Path(second), MLP.text())
        _remember(method)
        advance(method, before)
        found = side_by_side(title, trials, *(partial(rate, run, 3 * MLP.rounds) for run in (method, fedavg)))
        for run in (method, fedavg):
            run.close("finished")
    return [Figure(title, *found, target)]


def adam(trials: int) -> list[Figure]:
    """Client-steps a second of local Adam beside SGD's, on the MLP workload."""
    title = "local Adam beside SGD, MLP, cohort 50"
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        runs = [opened(Path(first), MLP.text().replace("train: {", "train: {optimizer: adam, ")), opened(Path(second), MLP.text())]
        found = side_by_side(title, trials, *(partial(rate, run, 3 * MLP.rounds) for run in runs))
        for run in runs:
            run.close("finished")
    return [Figure(title, *found, 0.8)]


def _remember(run: Run) -> None:
    """Gives each client the memory that it begins with, so that tables don't grow meanwhile."""
    flight = flight_of(run)
    every = np.arange(run.fed.nodes)
    flight.memory.put(every, flight.fresh(every))


def remembering(nodes: int, model: str) -> str:
    """FedStale with a cohort of 100 of so many clients, which draw 1 to 10 images each."""
    task = f"task: {{data: 'fedsim.bench:images', partition: {{name: draw, nodes: {nodes}, least: 1, most: 10}}, model: {model}}}\n"
    return f"{task}strategy: fedstale\nschedule: {{name: rounds, cohort: 100}}\n{TRAINING}"


def filled(folder: Path, nodes: int, model: str) -> Run:
    """A run whose server remembers an update of every client."""
    run = opened(folder, remembering(nodes, model))
    last = run.fed.state["last"]
    for some in torch.split(torch.arange(nodes), 500):
        last[some] = torch.full((len(some), run.fed.task.layout.size), 1e-9)
    return run


def remembered(trials: int) -> list[Figure]:
    """Client-steps a second where the server remembers 10,000 clients beside 1,000; peak memory with 100,180 numbers of each of 10,000."""
    name = "FedStale with 10,000 clients, beside 1,000"
    with tempfile.TemporaryDirectory() as many, tempfile.TemporaryDirectory() as few:
        runs = [filled(Path(folder), nodes, "logistic") for folder, nodes in ((many, 10_000), (few, 1000))]
        found = side_by_side(name, trials, *(partial(rate, run, 20) for run in runs))
        for run in runs:
            run.close("finished")
    most = json.loads(alone("10,000 remembered clients", "fedsim.bench.methods"))["peak"]
    memory = limit("FedStale, 10,000 x 100,180 numbers, peak memory, MiB", most, 8192.0)
    return [Figure(name, *found, 0.8), memory]


def _alone(nodes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = filled(Path(folder), nodes, "{name: mlp, hidden: [126]}")
        advance(run, 5)
        run.close("finished")
    return {"peak": peak()}


def evolving(rank: str) -> str:
    """One machine of 256 members on the MLP, judged on 64 images."""
    task = "task: {data: 'fedsim.bench:images', partition: {name: iid, nodes: 1}, model: {name: mlp, hidden: [200]}}\n"
    return f"{task}strategy: {{name: eggroll, population: 256, rank: {rank}}}\n"


def ranks(trials: int) -> list[Figure]:
    """Members judged a second with noise of rank 1 beside noise of full rank."""
    name = "EGGROLL of rank 1 beside full rank, 256 members"
    with tempfile.TemporaryDirectory() as low, tempfile.TemporaryDirectory() as full:
        runs = [opened(Path(folder), evolving(rank)) for folder, rank in ((low, "1"), (full, "full"))]
        found = side_by_side(name, trials, partial(rate, runs[0], 16), partial(rate, runs[1], 2))
        for run in runs:
            run.close("finished")
    return [Figure(name, *found, 5.0)]


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    beside = {
        "fedspeed": partial(beside_fedavg, "FedSpeed", "fedspeed", 0.45, 1),  # two gradients a step
        "scaffold": partial(beside_fedavg, "SCAFFOLD", "scaffold", 0.8, 1),
        "feddyn": partial(beside_fedavg, "FedDyn", "feddyn", 0.8, 1),
        "fedstale": partial(beside_fedavg, "FedStale", "fedstale", 0.85, 80),
    }
    return beside | {"adam": adam, "remembered": remembered, "eggroll": ranks}


if __name__ == "__main__":
    print(json.dumps(_alone(10_000)))
