"""Actors of Ray beside one, and beside processes, on the CNN; and what a job costs the driver."""

import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from fedsim.base.devices import cores
from fedsim.bench.figures import Figure, limit, say
from fedsim.bench.plain import Workload
from fedsim.bench.runs import opened, rate, side_by_side
from fedsim.run.runner import Run
from fedsim.run.tune import advance

JOBS = 100  # a round, of logistic regression


def cluster(trials: int) -> list[Figure]:
    """Client-steps a second of two actors beside one and beside two processes, trials taking turns; microseconds a job at the driver."""
    with ExitStack() as stack:

        def run(work: Workload) -> Run:
            made = opened(Path(stack.enter_context(tempfile.TemporaryDirectory())), work.text())
            stack.callback(made.close, "finished")
            return made

        cnn = partial(Workload, "cnn_gn", 10, 1, lr=0.01)
        pool = run(cnn("{processes: 2}"))
        one, two = (run(cnn(f"{{name: ray, actors: {count}, address: local}}")) for count in (1, 2 if cores() > 1 else 1))
        enough = cores() > 1
        beside = side_by_side("cnn_gn, two actors beside one", trials, partial(rate, two, 2), partial(rate, one, 2))
        found = [Figure("cnn_gn, two actors beside one", *beside, 1.7 if enough else None)]
        beside = side_by_side("cnn_gn, two actors beside two processes", trials, partial(rate, two, 2), partial(rate, pool, 2))
        found.append(Figure("cnn_gn, two actors beside two processes", *beside, 0.9 if enough else None))
        actors = min(2, cores())
        small = run(Workload("logistic", JOBS, 1, f"{{name: ray, actors: {actors}, address: local}}"))
        costs = []
        for trial in range(trials + 1):
            say(f"the driver's time a job: trial {trial} of {trials}")
            before = time.thread_time()
            advance(small, 20)
            costs.append((time.thread_time() - before) / 20 / JOBS * 1e6)
        return [*found, limit("a job at the driver of actors, microseconds", median(costs[1:]), 100.0)]
