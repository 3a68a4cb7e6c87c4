"""What peers cost beside a server, and what a mixing step of very large models takes."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fedsim.bench.figures import Figure, limit, seconds
from fedsim.bench.runs import alone, opened, rate, side_by_side
from fedsim.bench.scale import TRAINING, peak
from fedsim.topology import Ring

NODES, NUMBERS = 1000, 1_000_000  # of the large mixing step
ROUNDS = 3  # of a trial


def meeting(how: str) -> str:
    """64 nodes with 60 images each who all work in each round."""
    task = "task: {data: 'fedsim.bench:images', partition: {name: iid, nodes: 64}, model: {name: mlp, hidden: [200]}}\n"
    return f"{task}{how}{TRAINING}engine: {{processes: 1}}\n"


def gossip(trials: int) -> list[Figure]:
    """Client-steps a second of a ring of 64 peers beside a server with the same 64 clients."""
    name = "gossip on a ring of 64, MLP, beside a server"
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        ring = opened(Path(first), meeting("strategy: dsgd\nschedule: {name: gossip, topology: ring}\n"))
        server = opened(Path(second), meeting("strategy: fedavg\nschedule: {name: rounds, cohort: all}\n"))
        found = side_by_side(name, trials, *(partial(rate, run, ROUNDS) for run in (ring, server)))
        for run in (ring, server):
            run.close("finished")
    return [Figure(name, *found, 0.8)]


def mixing(trials: int) -> list[Figure]:
    """One step of a ring of 1,000 models with a million numbers each: seconds, and peak memory of its process in matrices."""
    what = "mixing on a ring, 1,000 x 1,000,000 numbers"
    found = json.loads(alone(what, "fedsim.bench.peers"))
    return [limit(f"{what}, seconds a step", found["seconds"], 10.0), limit(f"{what}, peak memory in matrices", found["matrices"], 3.0)]


def _alone(nodes: int, numbers: int) -> dict[str, float]:
    rows, ring = torch.zeros(nodes, numbers), Ring().mixing(nodes, 0, torch.tensor(0))
    for row in rows:
        row.uniform_()
    spent = seconds(lambda: ring @ rows)
    return {"seconds": spent, "matrices": peak() * 2**20 / rows.nbytes}


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    return {"gossip": gossip, "mixing": mixing}


if __name__ == "__main__":
    print(json.dumps(_alone(NODES, NUMBERS)))
