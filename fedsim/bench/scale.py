"""A million clients, an event queue with a million jobs in flight, and asynchronous work beside synchronous.

`python -m fedsim.bench.scale BEGAN` prints what setting up a million clients and some rounds took, as JSON, for a process that began at
that time (`time.monotonic`).
"""

import json
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from fedsim.base.clock import EventQueue
from fedsim.bench.figures import Figure, limit, say, seconds
from fedsim.bench.runs import alone, opened, rate, side_by_side
from fedsim.run.tune import advance

MILLION = 1_000_000
TRAINING = "train: {epochs: 1, batch: 10, lr: 0.05}\n"


def drawing(nodes: int) -> str:
    """Clients with 1 to 100 samples each, drawn by key from one data set; a uniform cohort of 100."""
    return (
        f"task: {{data: 'fedsim.bench:images', partition: {{name: draw, nodes: {nodes}, least: 1, most: 100}}, model: logistic}}\n"
        f"strategy: fedavg\nschedule: {{name: rounds, cohort: 100}}\n{TRAINING}"
        "world: {compute: {step: {name: log_normal, median: 20 ms, sigma: 0.5}}, network: {up: 1 MB/s, down: 5 MB/s, latency: 50 ms}}\n"
    )


def million(trials: int) -> list[Figure]:
    """Set-up, imports included, and peak memory of a process that then works for 20 rounds; each trial has its own."""
    found = []
    for trial in range(min(trials, 3)):
        what = f"a million clients, {trial + 1} of {min(trials, 3)}"
        found.append(json.loads(alone(what, "fedsim.bench.scale", str(time.monotonic()))))
    setup, peak = (median(one[what] for one in found) for what in ("setup", "peak"))
    return [limit("a million clients, seconds to set up", setup, 10.0), limit("a million clients, peak memory, MiB", peak, 2048.0)]


def _alone(began: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = opened(Path(folder), drawing(MILLION))
        setup = time.monotonic() - began
        advance(run, 20)
        run.close("finished")
    return {"setup": setup, "peak": peak()}


def peak() -> float:
    """MiB that this process had in memory at most. Linux hands `ru_maxrss` on from the process before, which may have had more."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def population(trials: int) -> list[Figure]:
    """Client-steps a second with a million clients beside 10,000."""
    name = "a million clients, beside 10,000"
    with tempfile.TemporaryDirectory() as many, tempfile.TemporaryDirectory() as few:
        runs = [opened(Path(folder), drawing(nodes)) for folder, nodes in ((many, MILLION), (few, 10_000))]
        found = side_by_side(name, trials, *(partial(rate, run, 20) for run in runs))
        for run in runs:
            run.close("finished")
    return [Figure(name, *found, 0.8)]


def asynchronous(trials: int) -> list[Figure]:
    """Client-steps a second of 1,000 clients that are always at work, buffer 10, durations from 5 s to 1 s, beside cohorts of 100."""
    name, world = "asynchronous, beside synchronous", "world: {compute: {job: {name: linear, from: 5 s, to: 1 s}}}\n"
    task = "task: {data: 'fedsim.bench:images', partition: {name: iid, nodes: 1000}, model: logistic}\n" + TRAINING + world
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        buffered = opened(Path(first), task + "strategy: fedbuff\nschedule: {name: buffered, size: 10, concurrency: all}\n")
        rounds = opened(Path(second), task + "strategy: fedavg\nschedule: {name: rounds, cohort: 100}\n")
        found = side_by_side(name, trials, lambda: rate(buffered, 200), lambda: rate(rounds, 20))
        for run in (buffered, rounds):
            run.close("finished")
    return [Figure(name, *found, 0.7)]


def events(batch: int, trials: int) -> list[Figure]:
    """Events a second through a queue with a million in flight: `batch` leave it, and return at random times."""
    name, lot = f"event queue, a million in flight, by {batch}", np.random.default_rng(0)
    queue, nodes, moves = EventQueue(), np.arange(MILLION), MILLION // batch
    queue.push(lot.integers(0, 10**12, MILLION), nodes, nodes)
    found = []
    for trial in range(trials + 1):
        say(f"{name}: trial {trial} of {trials}")
        delays = lot.integers(1, 10**12, (moves, batch))
        found.append(moves * batch / seconds(partial(_through, queue, delays)))
    return [Figure(name, median(found[1:]), 1e6, median(found[1:]) / 1e6, 1.0)]


def _through(queue: EventQueue, delays: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
    count = delays.shape[1]
    for row, delay in enumerate(delays):
        first = queue.peek(count)
        queue.drop(count)
        queue.push(first.time + delay, first.node, np.arange(row * count, (row + 1) * count))


if __name__ == "__main__":
    print(json.dumps(_alone(float(sys.argv[1]))))
