"""What runs cost their host besides training: checkpoints, and the time until the first round is done."""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from fedsim.base.errors import RunError
from fedsim.bench.figures import Figure, limit, say, seconds
from fedsim.bench.runs import flight_of, opened
from fedsim.run.checkpoint import add, collect
from fedsim.run.tune import advance
from fedsim.scenario import load

SCENARIO = (
    "task: {data: 'fedsim.bench:images', partition: {name: iid, nodes: 1000}, model: logistic}\n"
    "strategy: fedavg\nschedule: {name: rounds, cohort: 100}\ntrain: {epochs: 1, batch: 10, lr: 0.05}\n"
)
SHARED = (
    "name: quickstart\ntask: {data: digits, partition: {name: dirichlet, alpha: 0.3, nodes: 100}, model: {name: mlp, hidden: [64]}}\n"
    "train: {epochs: 5, batch: 32, lr: 0.05}\n"
    "world: {compute: {job: {name: linear, from: 10 s, to: 2 s}}, network: {up: 1 MB/s, down: 5 MB/s, latency: 50 ms}}\n"
    "stop: {seconds: 20 min}\n"
)
QUICKSTART = SHARED + "strategy: fedavg\nschedule: {name: rounds, cohort: 10}\nevaluate: {every: 1 rounds}\n"
VARIANTS = """evaluate: {every: 20 s, target: 85 %}
sweep:
  variants:
    synchronous: {strategy: fedavg, schedule: {name: rounds, cohort: 10}}
    fixed: {strategy: fedfix, schedule: {name: ticks, every: 4 s}}
    buffered: {strategy: fedbuff, schedule: {name: buffered, size: 10, concurrency: 30}}
"""


def checkpoints(trials: int) -> list[Figure]:
    """A run whose 1,000 clients each remember 100,000 numbers: seconds a checkpoint, and what one a minute takes from training.

    The second is how much longer rounds take in which a checkpoint is written, per minute.
    """
    with tempfile.TemporaryDirectory() as place:
        run = opened(Path(place), SCENARIO)
        flight_of(run).memory.put(np.arange(1000), {"memory": torch.randn(1000, 100_000)})
        found = []
        for trial in range(trials + 1):
            say(f"checkpoints: trial {trial} of {trials}")
            plain = seconds(lambda: advance(run, 20))
            alone = seconds(lambda: add(Path(place), run.fed.version, {}, collect(run), keep=2))
            found.append((alone, alone + seconds(lambda: advance(run, 20)) - plain))
        run.close("finished")
    pause, lost = (median(side) for side in zip(*found[1:], strict=True))
    name = "a checkpoint of 1,000 memories of 100,000 numbers"
    return [limit(f"{name}, seconds", pause, 2.0), limit("training lost to one a minute, per cent", max(1e-9, lost) / 60 * 100, 5.0)]


def first_round(trials: int) -> list[Figure]:
    """`fedsim run` on the quickstart, from the start of the process to its first finished round."""
    found = []
    for trial in range(trials):
        say(f"the first round: trial {trial + 1} of {trials}")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "quickstart.yaml").write_text(QUICKSTART)
            began = time.monotonic()
            command = [sys.executable, "-P", "-m", "fedsim.commands.cli", "run", "quickstart.yaml", "--quiet"]
            with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while not _finished_one(folder):
                    if process.poll() is not None or time.monotonic() - began > 120:
                        process.kill()
                        raise RunError("bench: the quickstart ended before its first round")
                    time.sleep(0.01)
                found.append(time.monotonic() - began)
                process.kill()
    return [limit("fedsim run, seconds to the first finished round", median(found), 4.0)]


def sweeps(trials: int) -> list[Figure]:
    """Loading a sweep of 300 runs, with all their checks: milliseconds of CPU a run."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "sweep.yaml"
        file.write_text(QUICKSTART + "sweep: {grid: {train.momentum: [0, 0.9]}, seeds: 0..149}\n")
        found = []
        for trial in range(trials + 1):
            say(f"sweeps: trial {trial} of {trials}")
            found.append(_spent(file))
    return [limit("a run of a sweep to load, ms of CPU", 1000 * median(found[1:]), 5.0)]


def _spent(file: Path) -> float:
    """Seconds of CPU a run."""
    began = time.process_time()
    runs = load(file)
    return (time.process_time() - began) / len(runs)


def six_seeds(trials: int) -> list[Figure]:
    """Runs a second of six seeds of the quickstart's three variants, two side by side, beside one after the other; whole processes.

    One pair, whatever `trials`: it takes three minutes.
    """
    title = "six seeds of the quickstart, runs a second, two beside one"
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "seeds.yaml"
        file.write_text(f"{SHARED}track: none\n{VARIANTS}  seeds: 0..5\n")
        words = [sys.executable, "-P", "-m", "fedsim", "run", str(file), "--anew", "--quiet", "--runs", f"{place}/runs", "--jobs"]
        say("six seeds, two side by side and one after the other")
        two, one = (18 / seconds(partial(subprocess.run, [*words, jobs], check=True, capture_output=True)) for jobs in "21")
    return [Figure(title, two, one, two / one, 1.7)]


def starts(trials: int) -> list[Figure]:
    """Commands that compute nothing, from the start of their process to its end."""
    found = []
    for words, most in ((["--help"], 0.3), (["list", "strategy"], 0.5)):
        start = partial(subprocess.run, [sys.executable, "-P", "-m", "fedsim", *words], capture_output=True, check=True)
        alone = [seconds(start) for _ in range(trials + 1)]
        found.append(limit(f"fedsim {' '.join(words)}, seconds", median(alone[1:]), most))
    start = partial(subprocess.run, [sys.executable, "-P", "-c", "import fedsim"], capture_output=True, check=True)
    return [*found, limit("import fedsim, seconds with Python's own start", median([seconds(start) for _ in range(trials)]), 0.1)]


def _finished_one(folder: Path) -> bool:
    for file in folder.glob("runs/quickstart/*/metrics.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        return any(json.loads(line)["round"] > 0 for line in lines if line.endswith("\n"))
    return False
