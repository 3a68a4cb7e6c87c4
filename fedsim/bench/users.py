"""What users bring, beside what it is made of: clients' own models judged, and training samples changed at random."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.bench import images
from fedsim.bench.figures import Figure, seconds
from fedsim.bench.plain import CLIENTS, Workload
from fedsim.bench.runs import opened, rate, side_by_side
from fedsim.metrics.personal import TOGETHER, judged
from fedsim.metrics.view import View

CNN = Workload("cnn", 10, 2)


def owned() -> dict[str, Any]:
    """MNIST images of 1,000 writers: 10 of each for training, 10 for testing."""
    found = images()
    tests = min(10 * CLIENTS, len(found["x_test"]))
    writers = {"writer": np.arange(10 * CLIENTS) % CLIENTS, "writer_test": np.arange(tests) % CLIENTS}
    return {name: array[: 10 * CLIENTS] for name, array in found.items()} | writers


def personal(trials: int) -> list[Figure]:
    """Test images judged a second by the models of their own clients, 1,000 MLPs, beside those judged by one model."""
    name = "1,000 clients' own MLPs judged, beside one model"
    task = "task: {data: 'fedsim.bench.users:owned', partition: {name: natural, by: writer}, model: mlp}\nstrategy: fedavg\n"
    with tempfile.TemporaryDirectory() as folder:
        run = opened(Path(folder), task)
        task_of = run.fed.task
        rows = task_of.init + 1e-3 * torch.randn(CLIENTS, len(task_of.init), generator=torch.Generator().manual_seed(0))
        view, tests = View(task_of, task_of.init[None]), len(task_of.test_targets)

        def each() -> None:
            for some in torch.split(torch.arange(CLIENTS), TOGETHER):
                judged(view, lambda nodes: (rows[nodes], task_of.first_buffers.expand(len(nodes), -1)), some)

        found = side_by_side(
            name, trials, lambda: tests / seconds(each), lambda: tests / seconds(lambda: view.predict(rows[0], task_of.first_buffers))
        )
        run.close("finished")
    return [Figure(name, *found, 0.5)]


def augmented(trials: int) -> list[Figure]:
    """Client-steps a second of the CNN with images flipped and cropped, beside those without."""
    name = "CNN with flip and crop, beside none"
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        text = CNN.text()
        runs = [opened(Path(first), text.replace("model: cnn}", "model: cnn, augment: [flip, crop]}")), opened(Path(second), text)]
        found = side_by_side(name, trials, *(partial(rate, run, CNN.rounds) for run in runs))
        for run in runs:
            run.close("finished")
    return [Figure(name, *found, round(1 / 1.2, 2))]


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    return {"personal": personal, "augmented": augmented}
