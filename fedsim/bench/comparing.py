"""How long it takes to set many runs beside each other."""

import math
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import run as process

import numpy as np

from fedsim.bench.figures import Figure, limit, say, seconds
from fedsim.bench.host import QUICKSTART
from fedsim.federation.ledger import Ledger
from fedsim.run.crossing import crossing
from fedsim.run.runfolder import RunWriter, make_upper, write_scenario
from fedsim.scenario import load
from fedsim.scenario.loader import Loaded

RUNS, EVALUATIONS, JOBS = "sweep: {grid: {train.lr: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1]}, seeds: 0..9}\n", 500, 10


def compares(trials: int) -> list[Figure]:
    """`fedsim compare` on 100 runs of 500 evaluations, from the start of its process to its end."""
    with tempfile.TemporaryDirectory() as place:
        upper = sweep_in(Path(place), EVALUATIONS)
        start = partial(process, [sys.executable, "-P", "-m", "fedsim", "compare", str(upper)], capture_output=True, check=True)
        alone = []
        for trial in range(trials + 1):
            say(f"compare: trial {trial} of {trials}")
            alone.append(seconds(start))
    return [limit("fedsim compare, 100 runs of 500 evaluations, seconds", median(alone[1:]), 3.0)]


def sweep_in(folder: Path, evaluations: int, sweep: str = RUNS) -> Path:
    """A sweep, of 100 runs, that nobody has computed, written as runs write it; its folder."""
    file = folder / "many.yaml"
    file.write_text(QUICKSTART.replace("name: quickstart", "name: many") + sweep)
    runs = load(file)
    upper = make_upper(folder / "runs", "many", runs[0].hash, {one.folder: {"changed": dict(one.changed)} for one in runs}, file)
    for number, one in enumerate(runs):
        say(f"writing run {number + 1} of {len(runs)}")
        _write(upper / one.folder, one, number, evaluations)
    return upper


def _write(folder: Path, loaded: Loaded, number: int, evaluations: int) -> None:
    """One run: between evaluations JOBS jobs end, each tenth dropped."""
    write_scenario(folder, loaded.resolved, loaded.own)
    writer, ledger, records = RunWriter(folder), Ledger(folder / "events", per_second=1), []
    head = {"name": "many", "label": loaded.label, "variant": "", "seed": loaded.seed, "changed": dict(loaded.changed), "hash": loaded.hash}
    writer.begin(head | {"target": 0.8, "nodes": 100, "command": "fedsim bench compare"})
    nodes, parts = np.arange(JOBS), {"down": 1, "work": 8, "up": 1}
    for at in range(evaluations):
        jobs = at * JOBS + nodes
        ledger.add("dispatch", JOBS, time=10 * at, node=nodes, job=jobs, version=at, bytes_down=2600, steps=5, **parts)
        ledger.add("drop", 1, time=10 * at + 9, node=0, job=jobs[0], version=at)
        ledger.add("arrival", JOBS - 1, time=10 * at + 10, node=nodes[1:], job=jobs[1:], version=at, bytes_up=2600)
        ledger.add("merge", JOBS - 1, time=10 * at + 10, node=nodes[1:], job=jobs[1:], version=at + 1, staleness=0)
        ledger.add("evaluate", time=10 * at + 10, version=at + 1)
        ledger.merged(np.zeros(JOBS - 1, dtype=np.int64), 5 * (JOBS - 1))
        ledger.dropped += 1
        accuracy = 0.9 - 0.8 * math.exp(-at / (50 + number))
        record = {"round": at + 1, "version": at + 1, "time/seconds": 10.0 * (at + 1), "time/wall_seconds": 0.1 * at} | ledger.totals()
        records.append(record | {"test/accuracy": accuracy, "test/loss": 1 - accuracy, "clients/accuracy_worst_10": accuracy / 2})
        writer.metrics(records[-1])
    ledger.flush()
    ended = {"final": records[-1], "target_reached": crossing(records, 0.8, 3), "wall_seconds": 0.1 * evaluations, "reason": "20 min"}
    writer.make_room()
    writer.update(status="finished", **ended)
    writer.release()
