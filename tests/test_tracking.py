import base64
import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from folders import simulate, write_run, write_sweep
from launch import call, write

from fedsim.base.errors import FedsimError
from fedsim.report.mlflow import tracking
from fedsim.report.mlflow.places import database_of, whole_uri
from fedsim.report.mlflow.store import Store, UploadError
from fedsim.report.mlflow.upload import Whole, default_uri, upload

SCENARIO = "seed: 0\nstrategy: {name: fedavg}\ntask:\n  shift: [{name: swap, pair: [0, 1]}]\ntrack: {tags: {team: blue}}\n"
WAIT = tracking.WAIT  # of people; tests have more patience
REFUSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs/demo/20261121-142530-3f9a1c", *simulate([300, 200], 2, 2000, 1000), SCENARIO)


def found(uri: str, folder: Path) -> mlflow.entities.Run:
    return mlflow.MlflowClient(uri).get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])


def test_a_run_arrives_whole(uri: str, run: Path) -> None:
    assert upload(run, uri, "whole").startswith("whole: 1 run, 3 evaluations at sqlite:////")
    stored = found(uri, run)
    assert stored.data.params == {
        "seed": "0",
        "strategy.name": "fedavg",
        "task.shift.0.name": "swap",
        "task.shift.0.pair": "[0, 1]",
        "track.tags.team": "blue",
    }
    tags = {key: value for key, value in stored.data.tags.items() if not key.startswith("mlflow.")}
    assert tags.pop("fedsim.folder") == str(run)
    assert tags == {
        "team": "blue",
        "fedsim.version": "0.1.0",
        "fedsim.hash": "3f9a1c" * 8,
        "fedsim.seed": "0",
        "fedsim.clock": "virtual",
        "fedsim.model": "9be277d0" * 8,
        "fedsim.reason": "60 s",
    }
    assert (stored.info.run_name, stored.info.status) == ("seed 0", "FINISHED")
    client = mlflow.MlflowClient(uri)
    files = {file.path for name in ("", "events") for file in client.list_artifacts(stored.info.run_id, name)}
    assert files == {"scenario.yaml", "run.json", "metrics.jsonl", "model.safetensors"} | {f"events/{i:06}.parquet" for i in (0, 1)} | {
        "events"
    }


def test_evaluations_lie_on_three_axes(uri: str, run: Path) -> None:
    upload(run, uri, "axes")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    client, run_id = mlflow.MlflowClient(uri), found(uri, run).info.run_id
    steps = {
        prefix: [(point.step, point.value) for point in client.get_metric_history(run_id, f"{prefix}test/accuracy")]
        for prefix in ("", "x_by_second/", "x_by_kilobyte/")
    }
    accuracy = [record["test/accuracy"] for record in records]
    assert len(records) == 3
    assert steps[""] == list(zip([record["round"] for record in records], accuracy, strict=True))
    assert steps["x_by_second/"] == list(zip([0, 1, 2], accuracy, strict=True))
    assert steps["x_by_kilobyte/"] == list(zip([record["traffic/bytes"] // 1000 for record in records], accuracy, strict=True))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of test/accuracy that are sent to the store."""
    steps: list[int] = []
    log = Store.log

    def counted(self: Store, run_id: str, kind: str, entries: Sequence[Any], most: int) -> None:
        steps.extend(entry.step for entry in entries if kind == "metrics" and entry.key == "test/accuracy")
        log(self, run_id, kind, entries, most)

    monkeypatch.setattr(Store, "log", counted)
    return steps


def test_a_second_upload_adds_only_what_is_missing(uri: str, run: Path, sent: list[int]) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    rounds = [json.loads(line)["round"] for line in lines]
    (run / "metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:20])  # the last line is still being written
    assert upload(run, uri, "twice").startswith("twice: 1 run, 2 evaluations at ")
    first = found(uri, run)
    upload(run, uri, "twice")
    assert sent == rounds[:2]
    (run / "metrics.jsonl").write_text("".join(lines))
    assert upload(run, uri, "twice").startswith("twice: 1 run, 3 evaluations at ")
    assert sent == rounds and found(uri, run).info.run_id == first.info.run_id
    client = mlflow.MlflowClient(uri)
    assert len(client.get_metric_history(first.info.run_id, "test/loss")) == 3
    assert len(client.search_runs([first.info.experiment_id])) == 1


def test_another_experiment_gets_everything(uri: str, run: Path, sent: list[int]) -> None:
    upload(run, uri, "one")
    upload(run, uri, "other")
    assert len(sent) == 6


def test_a_sweep_is_a_parent_with_children_and_their_ends(uri: str, tmp_path: Path) -> None:
    upper = tmp_path / "runs/demo/20261121-142530-3f9a1c"
    for name, status in (("a", "finished"), ("b", "failed")):
        write_run(
            upper / name, *simulate([300], 1, 1000, 1000), SCENARIO, label=f"{name} seed 0", variant=name, status=status, reason="nan"
        )
    write_sweep(upper, ["a", "b"])
    upload(upper, uri, "sweep")
    parent, children = found(uri, upper), [found(uri, upper / name) for name in "ab"]
    assert [child.data.tags["mlflow.parentRunId"] for child in children] == [parent.info.run_id] * 2
    assert [run.info.status for run in (parent, *children)] == ["FAILED", "FINISHED", "FAILED"]
    assert [child.info.run_name for child in children] == ["a seed 0", "b seed 0"]


def test_what_is_whole_there_is_not_looked_at_again(uri: str, tmp_path: Path, sent: list[int]) -> None:
    upper = tmp_path / "runs/demo/20261121-142530-3f9a1c"
    for name, status in (("a", "finished"), ("b", "running")):
        write_run(upper / name, *simulate([300], 1, 1000, 1000), f"{SCENARIO}odd@{name}: 1\n", label=name, variant=name, status=status)
    write_sweep(upper, ["a", "b"])
    whole = Whole()
    first = upload(upper, uri, "again", whole=whole)
    assert whole == {upper / "a": (2, {"odd@a": "odd_a"})} and len(sent) == 4
    (upper / "a/metrics.jsonl").unlink()  # it would be missed
    assert upload(upper, uri, "again", whole=whole) == first and "2 runs, 4 evaluations" in first and "(and 1 more)" in first
    assert len(sent) == 4


def test_a_resumed_run_runs_again(uri: str, run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    states = []
    for status in ("stopped", "running", "finished"):
        (run / "run.json").write_text(json.dumps(info | {"status": status}))
        upload(run, uri, "resumed")
        states.append(found(uri, run).info.status)
    assert states == ["KILLED", "RUNNING", "FINISHED"]


def test_the_default_store_lies_beside_the_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    upper = tmp_path / "runs/demo/20261121-142530-3f9a1c"
    write_run(upper / "a", [], [])
    write_sweep(upper, ["a"])
    assert default_uri(upper) == default_uri(upper / "a") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert default_uri(Path("runs/demo/latest")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert whole_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    odd = tmp_path / "100%20?/runs"
    assert database_of(default_uri(odd / "demo/latest")) == odd / "mlflow.db"
    (tmp_path / "100%20?").mkdir()
    monkeypatch.chdir(tmp_path / "100%20?")
    assert database_of(whole_uri("sqlite:///runs/mlflow.db")) == odd / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", REFUSED)
    assert default_uri(upper) == REFUSED


def test_an_unreachable_server_is_one_line_within_seconds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert tracking.main([str(run), "--uri", REFUSED]) == 1
    assert time.monotonic() - start < 10
    assert capsys.readouterr().out == f"MLflow at {REFUSED}: Connection refused\n"
    assert not (run / "mlflow.json").exists()


def test_errors_are_the_users(tmp_path: Path, run: Path) -> None:
    with pytest.raises(FedsimError, match="no run to upload"):
        upload(tmp_path)
    with pytest.raises(UploadError, match="MLflow at sqlite"):
        upload(run, "sqlite:////dev/null/mlflow.db")
    for uri in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(FedsimError, match=f"^track.uri: {uri} is a store in memory, which keeps nothing; name a file"):
            upload(run, uri)


def test_a_follower_uploads_while_the_run_goes_on(uri: str, run: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "run.json").write_text(json.dumps(info | {"status": "running"}))
    (run / "metrics.jsonl").write_text(lines[0])
    follower = tracking.start_follower(run, uri, "followed")
    assert follower is not None
    deadline = time.monotonic() + 60
    while not (run / "mlflow.json").exists() or json.loads((run / "mlflow.json").read_text())["metrics"] < 1:
        assert time.monotonic() < deadline, "the first evaluation was not uploaded"
        time.sleep(0.1)
    assert found(uri, run).info.status == "RUNNING"
    (run / "metrics.jsonl").write_text("".join(lines))
    (run / "run.json").write_text(json.dumps(info))
    assert follower.finish(60) == f"tracked  followed: 1 run, 3 evaluations at {uri}"
    assert found(uri, run).info.status == "FINISHED"
    assert json.loads((run / "mlflow.json").read_text())["metrics"] == 3


def test_a_follower_of_an_unreachable_server_says_how_to_upload_later(folder: Path, run: Path) -> None:
    (folder / "random.py").write_text("raise SystemExit('a module of the working folder is not Python's')")
    follower = tracking.start_follower(run, REFUSED)
    assert follower is not None
    assert follower.finish(60) == f"not tracked: MLflow at {REFUSED}: Connection refused; later: fedsim track {run}"
    assert follower.process is not None and follower.process.returncode == 1


def test_a_stuck_server_costs_no_more_than_the_timeout(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard = threading.Event()

        def accept() -> None:
            connection, _ = server.accept()
            with connection:
                heard.set()
                released.wait(60)

        released = threading.Event()
        silent = threading.Thread(target=accept)
        silent.start()
        follower = tracking.start_follower(run, f"http://127.0.0.1:{server.getsockname()[1]}", linger=0.5)
        assert follower is not None and follower.process is not None
        assert heard.wait(60)
        start = time.monotonic()
        said = follower.finish(0.2)
        assert said == f"not tracked yet: the upload goes on by itself, for at most 0.5 s; what is missing then: fedsim track {run}"
        assert follower.process.wait(10) == 1  # it ends by itself, though the server never answers
        assert time.monotonic() - start < 5
        released.set()
        silent.join()
    assert WAIT < 10


def test_a_password_comes_from_the_scenario_and_goes_to_the_server_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = list[str]()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode())
            self.send_error(403, "no user:hu@sh here")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        host = f"127.0.0.1:{server.server_port}"
        follower = tracking.start_follower(run, f"http://user:hu%40sh@{host}")
        assert follower is not None and follower.process is not None
        while not (words := Path(f"/proc/{follower.process.pid}/cmdline").read_text()):  # it has none before its program begins
            assert follower.process.poll() is None
        said = follower.finish(60)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hu@sh")
        with pytest.raises(UploadError) as caught:
            upload(run, f"http://user:***@{host}")
        server.shutdown()
    assert f"http://user:***@{host}" in words and f"MLflow at http://user:***@{host}: " in said
    assert set(heard) == {"user:hu@sh"} and len(heard) >= 2
    assert all("hu%40sh" not in text and "hu@sh" not in text for text in (words, said, str(caught.value)))


def test_a_password_is_nowhere_in_a_run_that_can_still_be_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder)
    secret = "track.uri=http://user:hush@127.0.0.1:9"
    wrong = call("run", "small.yaml", secret, "track.experimant=x")
    assert wrong.exit_code == 2 and "user:***@" not in wrong.stdout and "hush" not in wrong.output
    first = call("run", "small.yaml", secret)
    assert first.exit_code == 0 and "http://user:***@127.0.0.1:9" in (Path("runs/small/latest") / "scenario.yaml").read_text()
    again = call("resume", "small", "stop.rounds=5")
    why = "the password of http://user:***@127.0.0.1:9 is not kept with runs; it is taken from MLFLOW_TRACKING_PASSWORD, or from"
    assert again.exit_code == 0 and again.stdout.count(why) == 2 and "later: fedsim track runs/small/" in again.stdout
    later = call("track", "small")
    assert later.exit_code == 1 and why in later.stderr
    files = [file for file in Path("runs").rglob("*") if file.is_file()]
    assert {"run.json", "scenario.yaml", "log.txt"} < {file.name for file in files}
    assert not [file for file in files if b"hush" in file.read_bytes()]
    assert "hush" not in first.output + again.output + later.output


def test_none_is_off(run: Path) -> None:
    assert tracking.start_follower(run, "none") is None


def test_following_needs_no_mlflow_in_the_run_itself() -> None:
    import subprocess

    code = "import sys, fedsim.report.mlflow.tracking; print('mlflow' in sys.modules, 'matplotlib' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
