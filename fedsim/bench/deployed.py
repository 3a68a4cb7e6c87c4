"""Deployed runs beside the local engine: what the network costs a round, and how fast a worker of many nodes trains."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from fedsim.bench import images
from fedsim.bench.figures import Figure, limit, say, seconds
from fedsim.bench.runs import opened
from fedsim.deploy.serve import Service
from fedsim.run.runner import Run
from fedsim.run.tune import advance
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

NODES = 100
SCENARIO = f"""
task: {{data: {{name: npz, file: images}}, partition: {{name: iid, nodes: {NODES}}}, model: {{name: mlp, hidden: [200]}}}}
strategy: fedavg
schedule: {{name: rounds, cohort: all}}
train: {{epochs: 1, batch: 32, lr: 0.05}}
engine: {{threads: 1}}
track: none
"""


@contextmanager
def served(folder: Path, nodes: Sequence[str]) -> Iterator[Run]:
    """A run with a worker, a process of its own, for each of these."""
    file = folder / "deployed.yaml"
    file.write_text(SCENARIO + "evaluate: {every: 1000000 rounds}\nstop: {rounds: 1000000}\n")
    [loaded] = load(file)
    workers = list[subprocess.Popen[bytes]]()
    service = Service(loaded, folder / "deployed", ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    [address], run = service.start(), service.build()
    run.open(folder / "deployed")
    try:
        for these in nodes:
            command = [sys.executable, "-P", "-m", "fedsim", "join", address, "--insecure", "--nodes", these, "--quiet"]
            workers.append(subprocess.Popen([*command, "--folder", str(folder / f"worker-{these}")], cwd=folder, env=os.environ))
        say("waiting for workers")
        advance(run, 1)
        yield run
    finally:
        service.stop("finished", "measured")
        for worker in workers:
            worker.wait()
        run.close("stopped")


def deployed(trials: int) -> list[Figure]:
    """A synchronous round of 4 workers x 25 nodes, and client-steps a second of one worker of 100 nodes, beside the local engine."""
    figures = []
    for nodes in ([f"{first}..{first + 24}" for first in range(0, NODES, 25)], [f"0..{NODES - 1}"]):
        with TemporaryDirectory() as place:
            folder = Path(place)
            found = images()
            np.savez(
                folder / "images.npz", x=found["x"][:20_000], y=found["y"][:20_000], x_test=found["x"][-500:], y_test=found["y"][-500:]
            )
            local = opened(folder, SCENARIO)
            with served(folder, nodes) as run:
                pairs = []
                for trial in range(trials + 1):
                    say(f"{len(nodes)} workers: trial {trial} of {trials}")
                    pairs.append(tuple(seconds(partial(advance, one, 3)) / 3 for one in (run, local)))
            if len(nodes) > 1:
                more = median(ours - other for ours, other in pairs[1:])
                figures.append(limit(f"a round of {len(nodes)} workers x 25 nodes beside the local engine's, ms more", 1000 * more, 30.0))
            else:
                ours, other = (median(side) for side in zip(*pairs[1:], strict=True))
                ratio = median(b / a for a, b in pairs[1:])
                figures.append(Figure("a worker of 100 nodes beside the local engine, rounds a second", 1 / ours, 1 / other, ratio, 0.85))
    return figures
