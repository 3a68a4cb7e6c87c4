"""Deployed runs: the model of the simulation where nothing is left to time, and that of the replay where something is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Worker, deployed, replayed, simulated, threads, written
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from fedsim.base.errors import FedsimError
from fedsim.commands.cli import app
from fedsim.deploy.crew import folders
from fedsim.deploy.serve import Service
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

TASK = "task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: %s}\n"
BASE = TASK % "logistic" + "train: {epochs: 1, batch: 32, lr: 0.1}\ndeploy: {silence: 20 s}\n"
ROUNDS = "schedule: {name: rounds, cohort: 4}\nstop: {rounds: 3}\n"

SAME = {
    "fedavg": BASE + ROUNDS + "strategy: fedavg\n",
    "memories": BASE + ROUNDS + "strategy: scaffold\n",
    "moments": TASK % "logistic"
    + "train: {epochs: {0..2: 1, 3..5: 2}, lr: {name: uniform, from: 0.01, to: 0.02}, optimizer: adam, state: keep}\n"
    + "strategy: fedavg\ndeploy: {silence: 20 s}\n"
    + ROUNDS,
    "error feedback": BASE + ROUNDS + "strategy: fedavg\nuplink: {name: ef21, inner: {name: topk, fraction: 0.1}}\n",
    "both ways": BASE + ROUNDS + "strategy: fedavg\nuplink: qsgd\ndownlink: qsgd\n",
    "statistics": TASK % "{name: resnet18, norm: batch, width: 4, groups: 2}"
    + "train: {steps: 2, batch: 8, lr: 0.1}\nstrategy: fedavg\n"
    + ROUNDS,
}


STORED = (
    TASK % "logistic"
    + "train: {lr: 0.01, optimizer: adam, state: keep_8bit, clip: {name: spam, every: 3, wait: 1, warmup: 2}}\n"
    + "strategy: {name: saf, ago: 1, after: 0}\ndeploy: {silence: 20 s}\n"
    + ROUNDS
)


@pytest.mark.parametrize(
    "text", [*SAME.values(), pytest.param(STORED, marks=pytest.mark.slow)], ids=[*SAME, "outputs, and moments in 8 bits"]
)
def test_without_faults_a_deployed_run_is_the_simulation(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", ["0..2", "3..5"])
    assert info["status"] == "finished", info["reason"]
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert replayed(tmp_path / "run")
    assert not {*(tmp_path / "run").iterdir()} & {tmp_path / "run" / name for name in ("objects", "replies")}


INNER = "inner: {name: topk, fraction: 0.1}"
DOWN = {"{name: topk, fraction: 0.1}": 1, f"{{name: ef21, {INNER}}}": 3, f"{{name: ef14, {INNER}}}": 3, "powersgd": 3}  # messages a worker


def test_what_all_hear_travels_packed_and_once_to_each_worker(tmp_path: Path) -> None:
    """In as many bytes as a node's message has; where it follows on those before, each node's own."""
    carried, sizes = list[dict[bytes, Any]](), list[Any]()

    def meanwhile(run: Run, workers: list[Worker]) -> None:
        carried.append(run.fed.flight.hub.carried)  # type: ignore[attr-defined]
        sizes.append(run.fed.down_bytes)

    for downlink, each in DOWN.items():
        text = BASE + ROUNDS.replace("cohort: 4", "cohort: 6") + f"strategy: fedavg\ndownlink: {downlink}\n"
        (place := tmp_path / downlink).mkdir()
        info = deployed(file := written(place, text), place / "run", ["0..2", "3..5"], meanwhile)
        assert info["model"] == simulated(file, place / "plain")["model"] and replayed(place / "run")
        sent = 3 * sizes.pop() * each
        assert [one.objects_down for one in carried.pop().values()] == [sent, sent]


TIMED = {
    "late: keep": BASE + "schedule: {name: rounds, cohort: 4, wait_for: 2, late: keep}\nstop: {rounds: 5}\nstrategy: fedavg\n",
    "deadline": BASE + "schedule: {name: rounds, cohort: 4, deadline: 400 ms}\nstop: {updates: 12}\nstrategy: fedavg\n",
    "buffered": BASE + "schedule: {name: buffered, size: 2, concurrency: 4}\nstop: {rounds: 8}\nstrategy: fedbuff\n",
    "together": BASE + "schedule: {name: buffered, size: 2, restart: merge}\nstop: {rounds: 8}\nstrategy: fedbuff\n",
    "asynchronous": BASE + "schedule: {name: buffered, size: 1, concurrency: 5}\nstop: {rounds: 12}\nstrategy: fedasync\n",
    "ticks": BASE
    + "schedule: {name: ticks, every: 60 ms}\nstop: {updates: 12}\n"
    + "strategy: {name: fedfix, frequencies: estimated}\nevaluate: {every: 100 ms}\n",
    "ef21": TASK % "logistic" + "stop: {rounds: 5}\nstrategy: ef21\n",
    "remembered": BASE + "schedule: {name: buffered, size: 2, restart: merge}\nstop: {rounds: 6}\nstrategy: mifa\n",
}


@pytest.mark.parametrize("text", TIMED.values(), ids=TIMED)
def test_what_time_decided_is_replayed(text: str, tmp_path: Path) -> None:
    info = deployed(written(tmp_path, text), tmp_path / "run", ["0..2", "3..5"])
    assert info["status"] == "finished", info["reason"]
    assert replayed(tmp_path / "run")


def test_own_data_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a simulation of all data by one who has them; the server has the test set, and each worker a file of one name."""
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    x, y = load_digits(return_X_y=True)
    home, wards = np.arange(1400) % 7 // 3, [tmp_path / f"ward-{ward}" for ward in range(3)]
    for ward, folder in enumerate(wards):
        folder.mkdir()
        np.savez(folder / "xray.npz", x=x[:1400][home == ward], y=y[:1400][home == ward])
    np.savez(tmp_path / "holdout.npz", x=x[1400:], y=y[1400:])
    rest = "train: {epochs: 1, batch: 16, lr: 0.001}\nstrategy: fedavg\nschedule: {name: rounds, cohort: 2}\nstop: {rounds: 4}\n"
    data = "task: {data: {name: npz, file: %s.npz, test: holdout.npz}, partition: {name: %s}, model: logistic}\n"
    file = written(tmp_path, data % ("xray", "own, nodes: 3") + rest)
    info = deployed(file, tmp_path / "run", ["0", "1", "2"], data=wards)
    assert info["status"] == "finished" and info["final"]["test/accuracy"] > 0.5
    assert replayed(tmp_path / "run", [([ward], folder) for ward, folder in enumerate(wards)])
    np.savez(tmp_path / "all.npz", x=x[:1400], y=y[:1400], ward=home)
    assert simulated(written(tmp_path, data % ("all", "natural, by: ward") + rest), tmp_path / "plain")["model"] == info["model"]


def test_a_deployed_run_is_resumed_by_serving_it(tmp_path: Path) -> None:
    file = written(tmp_path, SAME["fedavg"])
    deployed(file, tmp_path / "runs" / "it" / "20260101-000000-abcdef", ["0..2", "3..5"])
    said = CliRunner().invoke(app, ["resume", "it", "--runs", str(tmp_path / "runs"), "stop.rounds=5"])
    assert said.exit_code == 2 and "was deployed: it goes on with the command that served it" in said.output


def test_a_workers_devices_share_its_nodes(tmp_path: Path) -> None:
    """Each has a process; what nodes remember is found again by as many, and others are refused."""
    [loaded] = load(file := written(tmp_path, SAME["memories"]))
    service = Service(loaded, tmp_path / "run", ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    [address] = service.start()
    run = service.build()
    worker = Worker(address, "0..5", tmp_path / "worker", device="cpu, cpu")
    info = run.execute(tmp_path / "run")
    service.stop(info["status"], info["reason"])
    worker.join(20)
    assert info["status"] == "finished" and info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert "joined it" in "".join(worker.said) and "cpu, cpu" in "".join(worker.said)
    for at, place in enumerate(folders(tmp_path / "worker/run", 2)):
        told = [json.loads(line)[0] for line in (place / "kept.jsonl").read_text().splitlines()]
        assert place.name == f"device-{at}-of-2" and told and {node % 2 for node in told} == {at}
    with pytest.raises(FedsimError, match="was begun with 2 devices, where its nodes' memories lie; with 1 device they would not"):
        folders(tmp_path / "worker/run", 1)
