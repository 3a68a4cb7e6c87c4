"""What users bring, beside what it is made of: clients' own models judged, and training samples changed at random."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.bench import images
from fedsim.bench.figures import Figure, seconds
from fedsim.bench.plain import CLIENTS, Workload
from fedsim.bench.runs import opened, rate, side_by_side
from fedsim.metrics.personal import TOGETHER, judged
from fedsim.metrics.view import View

CNN = Workload("cnn", 10, 2)
BY_WRITER = "{name: natural, by: writer}"


def few() -> dict[str, Any]:
    """MNIST images: 10 for each of 1,000 clients, and 200 to test."""
    found = images()
    return {name: array[: 200 if name.endswith("_test") else 10 * CLIENTS] for name, array in found.items()}


def owned() -> dict[str, Any]:
    """MNIST images of 1,000 writers: 10 of each for training, 10 for testing; all of the training set, of which there are enough."""
    whole, half = images(), 10 * CLIENTS
    found = {name + end: whole[name][first : first + half] for name in ("x", "y") for end, first in (("", 0), ("_test", half))}
    return found | {name.replace("y", "writer"): np.arange(len(found[name])) % CLIENTS for name in ("y", "y_test")}


def personal(trials: int) -> list[Figure]:
    """Images judged a second by 1,000 clients' own MLPs, beside as many by one: all 200 by each client, then 10 of its own."""
    return _personal("200 images", "few", "{name: iid, nodes: 1000}", trials) + _personal("10 own ones", "owned", BY_WRITER, trials)


def _personal(what: str, data: str, partition: str, trials: int) -> list[Figure]:
    name = f"1,000 clients' MLPs on {what} each, one MLP on all"
    text = f"task: {{data: 'fedsim.bench.users:{data}', partition: {partition}, model: mlp}}\nstrategy: fedavg\n"
    with tempfile.TemporaryDirectory() as folder:
        run = opened(Path(folder), text)
        task = run.fed.task
        rows = task.init + 1e-3 * torch.randn(CLIENTS, len(task.init), generator=torch.Generator().manual_seed(0))
        view = View(task, task.init[None])
        again = 1 if task.test_owner is not None else CLIENTS
        tests = again * len(task.test_targets)

        def models(nodes: Tensor) -> tuple[Tensor, Tensor]:
            """As memory gives those of nodes in a row: not copied."""
            return rows[int(nodes[0]) : int(nodes[-1]) + 1], task.first_buffers.expand(len(nodes), -1)

        def each() -> None:
            for some in torch.split(torch.arange(CLIENTS), TOGETHER):
                judged(view, models, some)

        def one() -> None:
            """In slabs as large as those of any evaluation."""
            at = torch.arange(tests) % len(task.test_targets)
            for some in torch.split(at, view.slab):
                outputs = view.outputs(task.init, task.first_buffers, task.test_inputs.index_select(0, some))
                task.loss(outputs, task.test_targets[some]).double()
                task.loss.correct(outputs, task.test_targets[some])

        with torch.no_grad():
            found = side_by_side(name, trials, lambda: tests / seconds(each), lambda: tests / seconds(one))
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
