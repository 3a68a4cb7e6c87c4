"""What MLflow is told of a sweep as a whole, and its pages."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import mlflow
import mlflow.pytorch
import pytest
import torch
from folders import write_run, write_sweep
from launch import call

from fedsim.base.errors import FedsimError
from fedsim.report.mlflow import ui
from fedsim.report.mlflow.system import Machine
from fedsim.report.mlflow.upload import upload
from fedsim.run.folders import find_runs
from fedsim.run.modules import models_of

SCENARIO = "seed: {seed}\nstrategy: {{name: fedavg}}\ntrain: {{lr: {lr}}}\ntask: {{data: digits}}\nworld: null\n"


def record(round: int, accuracy: float) -> dict[str, Any]:
    return {"round": round, "version": round, "time/seconds": float(round), "time/wall_seconds": 0.1 * round} | {
        "traffic/bytes": 1000 * round,
        "test/accuracy": accuracy,
        "work/updates": round,
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Variants at two rates, the first with two seeds that were evaluated at the same rounds."""
    root = tmp_path_factory.mktemp("store")
    upper = root / "runs/demo/20261121-142530-3f9a1c"
    for name, lr, seed, values in (("slow", 0.1, 0, (0.2, 0.5)), ("slow", 0.1, 1, (0.4, 0.9)), ("fast", 0.3, 0, (0.6, 0.7))):
        records = [record(round, value) for round, value in zip((5, 10), values, strict=True)]
        where = upper / f"{name}-seed{seed}"
        text = SCENARIO.format(seed=seed, lr=lr)
        write_run(where, [], records, text, label=f"{name} seed {seed}", variant=name, seed=seed, data="ab" * 32, nodes=4)
    write_sweep(upper, ["slow-seed0", "slow-seed1", "fast-seed0"])
    uri = f"sqlite:///{root / 'runs/mlflow.db'}"
    upload(upper, uri, "demo")
    upload(upper, uri, "demo")  # the same again adds nothing
    return uri, upper


def found(uri: str, folder: Path) -> mlflow.entities.Run:
    return mlflow.MlflowClient(uri).get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])


def test_the_sweeps_run_has_means_over_seeds(sweep: tuple[str, Path]) -> None:
    client, run_id = mlflow.MlflowClient(sweep[0]), found(*sweep).info.run_id

    def curve(name: str) -> list[tuple[int, float]]:
        return [(point.step, round(point.value, 9)) for point in client.get_metric_history(run_id, name)]

    assert curve("mean/test/accuracy/slow") == [(5, 0.3), (10, 0.7)]
    deviation = [0.1 * 2**0.5, 0.2 * 2**0.5]  # of two values, a and b: |a - b| / sqrt 2
    assert curve("mean_low/test/accuracy/slow") == [(5, round(0.3 - deviation[0], 9)), (10, round(0.7 - deviation[1], 9))]
    assert curve("mean_high/test/accuracy/slow") == [(5, round(0.3 + deviation[0], 9)), (10, round(0.7 + deviation[1], 9))]
    assert curve("mean/test/accuracy/fast") == [(5, 0.6), (10, 0.7)]
    assert not curve("mean_low/test/accuracy/fast")  # one seed has no deviation


def test_the_sweeps_run_has_the_settings_that_differ(sweep: tuple[str, Path]) -> None:
    assert found(*sweep).data.params == {"seed": "0, 1", "train.lr": "0.1, 0.3"}


def test_a_run_has_data_tags_and_no_empty_settings(sweep: tuple[str, Path]) -> None:
    child = found(sweep[0], sweep[1] / "slow-seed1")
    assert "world" not in child.data.params and child.data.params["train.lr"] == "0.1"
    assert (child.data.tags["fedsim.variant"], child.data.tags["fedsim.seed"], child.data.tags["fedsim.data"]) == ("slow", "1", "ab" * 32)
    assert child.data.tags["mlflow.user"] and child.data.tags["mlflow.source.name"] == "demo"
    [used] = child.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("digits", "ab" * 18) and used.dataset.profile == '{"nodes": 4}'
    assert max(child.data.metrics) == "x_by_second/test/accuracy"  # after all others


def test_runs_there_took_as_long_as_they_did(sweep: tuple[str, Path]) -> None:
    """Seven seconds each, whenever they were uploaded; means come first in MLflow's alphabetical order."""
    for folder in (sweep[1], sweep[1] / "fast-seed0"):
        info = found(sweep[0], folder).info
        assert info.end_time - info.start_time == 7000
    assert min(found(*sweep).data.metrics).startswith("mean/")


def test_how_busy_the_machine_is(sweep: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.report.mlflow.system.EVERY", 0.0)
    machine = Machine()
    machine.look()
    upload(sweep[1], sweep[0], "demo", machine)
    metrics = found(*sweep).data.metrics
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100 and 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert machine.taken() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_pages_open_on_the_runs(sweep: tuple[str, Path], number: signal.Signals) -> None:
    root = sweep[1].parents[1]
    with subprocess.Popen([sys.executable, "-m", "fedsim", "ui", "--runs", str(root)], stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout
        name, _, address = shown.stdout.readline().strip().partition("  ")
        assert name == "demo" and address.endswith("/#/experiments/1/runs")
        assert shown.stdout.readline() == "until Ctrl-C\n"
        with urllib.request.urlopen(address) as page:
            assert b"<title>MLflow</title>" in page.read()
        shown.send_signal(number)
        assert shown.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(address)  # no server is left behind


def test_pages_that_cannot_be_shown(folder: Path) -> None:
    none = call("ui")
    assert none.exit_code == 2 and none.stderr.startswith(f"no MLflow store at {folder}/runs/mlflow.db: no run was tracked there yet")
    (folder / "runs").mkdir()
    (folder / "runs/mlflow.db").touch()
    assert call("ui", "--port", "99999").stderr == "--port 99999: 1 to 65535 is due\n"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert call("ui", "--port", str(port)).stderr == f"port {port} is in use on 127.0.0.1; name another one: fedsim ui --port\n"


def test_a_server_that_ends_says_why() -> None:
    said = "raise SystemExit('OperationalError: file is not a database\\n(Background on this error)')"
    with TemporaryFile() as errors:
        process = subprocess.Popen([sys.executable, "-S", "-c", said], stderr=errors)
        with pytest.raises(FedsimError, match=r"^MLflow at sqlite:////x.db: /x.db is no whole SQLite database; move it away"):
            ui._wait(process, "http://127.0.0.1:1/health", errors, "sqlite:////x.db")


def test_a_logged_model_is_loaded_by_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}\nstrategy: fedavg\nstop: {rounds: 1}\n"
    (folder / "one.yaml").write_text(f"{text}track: {{models: true, uri: none}}\n")
    assert call("run", "one.yaml").exit_code == 0
    [run] = find_runs(["one"])
    uri = f"sqlite:///{folder / 'm.db'}"
    upload(run.path, uri)
    stored = found(uri, run.path)
    [output] = stored.outputs.model_outputs
    assert "MLFLOW_TRACKING_URI" not in os.environ  # where the next run would take it for the user's store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pytorch.load_model(f"models:/{output.model_id}")
    [own] = models_of(run)
    assert all(torch.equal(mine, its) for mine, its in zip(own.parameters(), loaded.parameters(), strict=True))
    assert stored.info.status == "FINISHED"
    logged = mlflow.MlflowClient(uri).get_logged_model(output.model_id)
    assert (logged.name, logged.tags["mlflow.source.name"]) == ("seed 0", "one")
    shown = {metric.key: metric.value for metric in logged.metrics}
    assert shown["test/accuracy"] == run.metrics[-1]["test/accuracy"] != run.metrics[0]["test/accuracy"]
