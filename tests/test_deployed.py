"""Deployed runs: the model of the simulation where nothing is left to time, and that of the replay where something is."""

from pathlib import Path

import pytest
from deployed import deployed, replayed, simulated, threads, written

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

TASK = "task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: %s}\n"
BASE = TASK % "logistic" + "train: {epochs: 1, batch: 32, lr: 0.1}\ndeploy: {silence: 20 s}\n"
ROUNDS = "schedule: {name: rounds, cohort: 4}\nstop: {rounds: 3}\n"

SAME = {
    "fedavg": BASE + ROUNDS + "strategy: fedavg\n",
    "memories": BASE + ROUNDS + "strategy: scaffold\n",
    "error feedback": BASE + ROUNDS + "strategy: fedavg\nuplink: {name: ef21, inner: {name: topk, fraction: 0.1}}\n",
    "both ways": BASE + ROUNDS + "strategy: fedavg\nuplink: qsgd\ndownlink: float16\n",
    "statistics": TASK % "{name: resnet18, norm: batch, width: 4, groups: 2}"
    + "train: {steps: 2, batch: 8, lr: 0.1}\nstrategy: fedavg\n"
    + ROUNDS,
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_without_faults_a_deployed_run_is_the_simulation(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", ["0..2", "3..5"])
    assert info["status"] == "finished", info["reason"]
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert replayed(tmp_path / "run")


TIMED = {
    "late: keep": BASE + "schedule: {name: rounds, cohort: 4, wait_for: 2, late: keep}\nstop: {rounds: 5}\nstrategy: fedavg\n",
    "deadline": BASE + "schedule: {name: rounds, cohort: 4, deadline: 400 ms}\nstop: {rounds: 5}\nstrategy: fedavg\n",
    "buffered": BASE + "schedule: {name: buffered, size: 2, concurrency: 4}\nstop: {rounds: 8}\nstrategy: fedbuff\n",
    "together": BASE + "schedule: {name: buffered, size: 2, restart: merge}\nstop: {rounds: 8}\nstrategy: fedbuff\n",
    "asynchronous": BASE + "schedule: {name: buffered, size: 1, concurrency: 5}\nstop: {rounds: 12}\nstrategy: fedasync\n",
    "ticks": BASE
    + "schedule: {name: ticks, every: 60 ms}\nstop: {rounds: 6}\nstrategy: {name: fedfix, frequencies: estimated}\nevaluate: {every: 100 ms}\n",
    "ef21": TASK % "logistic" + "stop: {rounds: 5}\nstrategy: ef21\n",
    "remembered": BASE + "schedule: {name: buffered, size: 2, restart: merge}\nstop: {rounds: 6}\nstrategy: mifa\n",
}


@pytest.mark.parametrize("text", TIMED.values(), ids=TIMED)
def test_what_time_decided_is_replayed(text: str, tmp_path: Path) -> None:
    info = deployed(written(tmp_path, text), tmp_path / "run", ["0..2", "3..5"])
    assert info["status"] == "finished", info["reason"]
    assert replayed(tmp_path / "run")
