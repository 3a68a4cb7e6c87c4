"""`fedsim doctor` without an address: what it says of this machine, and of each thing that may be wrong with it."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from launch import call

from fedsim import __version__
from fedsim.report import machine
from fedsim.report.machine import LITTLE, examine

CONCERNS = ["fedsim", "packages", "disk", "data", "mlflow", "memory", "processor", "threads", "devices"]


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDSIM_DATA", raising=False)


def failing(concern: str) -> machine.Finding:
    """The one finding that is not good."""
    [found] = [one for one in examine(Path("runs")) if not one.good]
    assert found.layer == concern and found.cure
    return found


def test_a_line_a_concern(folder: Path) -> None:
    shown = call("doctor")
    assert shown.exit_code == 0
    assert [line.split()[:2] for line in shown.stdout.splitlines()][: len(CONCERNS)] == [["ok", one] for one in CONCERNS]
    assert f"{__version__} at " in shown.stdout and f"torch {metadata.version('torch')}" in shown.stdout
    assert "sqlite:///runs/mlflow.db is made by the first run" in shown.stdout
    assert not list(folder.iterdir())  # it leaves nothing


def test_what_fails_is_told_with_a_cure_and_a_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", "nowhere")
    shown = call("doctor")
    lines = shown.stdout.splitlines()
    assert shown.exit_code == 1 and "failed  data        FEDSIM_DATA is nowhere, which is no folder" in lines
    assert lines[lines.index("failed  data        FEDSIM_DATA is nowhere, which is no folder") + 1].strip().startswith("name the folder")


def test_data_sets_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mnist/mnist.npz", "news/train.tsv", "alone.csv", "deep/er/x.npz", "other.zip"):
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).touch()
    monkeypatch.setenv("FEDSIM_DATA", "data")
    [found] = [one for one in examine(Path("runs")) if one.layer == "data"]
    assert found.said == "FEDSIM_DATA is data: alone, mnist, news"


def test_other_versions_than_are_due(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"numpy": "1.26.0"}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))
    assert "numpy is 1.26.0, and " in failing("packages").said


def test_a_disk_that_is_nearly_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": LITTLE // 2}))
    assert failing("disk").said == "537 MB free for runs/"


def test_runs_that_can_not_be_written(folder: Path) -> None:
    (folder / "runs").write_text("a file")
    assert "runs can't be written: Not a directory" in failing("disk").said


def test_a_store_that_is_broken(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs/mlflow.db").write_text("no database at all" * 100)
    assert "is no whole SQLite database; move it away" in failing("mlflow").said


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"OK")

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_of_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
        [good] = [one for one in examine(Path("runs")) if one.layer == "mlflow"]
        assert good.good and good.said.endswith("answers: OK") and "secret" not in good.said
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}/elsewhere")
        assert "answers 404 Not Found: this is no MLflow server" in failing("mlflow").said
        server.shutdown()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    assert "can't be reached: [Errno 111] Connection refused" in failing("mlflow").said


def test_options_of_a_connection_need_an_address(folder: Path) -> None:
    shown = call("doctor", "--insecure")
    assert shown.exit_code == 2 and shown.stderr == "certificates, tokens and --insecure go with HOST:PORT\n"
