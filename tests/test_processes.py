"""What a run does with other processes: signals stop it with all it has, and MLflow follows it without being needed."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from launch import TASKS, TEXT, Forked, call, same, simulate, write

from fedsim.report.checks import check_events
from fedsim.run import checkpoint
from fedsim.run.building import build
from fedsim.run.folders import find_runs
from fedsim.scenario import load

PROGRAM = Path(sys.executable).parent / "fedsim"
ENDLESS = ("stop.rounds=1000000000", "stop.wall=100 s", "evaluate.every=25 rounds")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand(folder: Path, sent: signal.Signals) -> None:
    write(folder)
    process = Forked(folder, "run", "small.yaml", *ENDLESS)
    metrics, patience = folder / "runs/small/latest/metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.05)
    process.send_signal(sent)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    [line] = [line for line in output.splitlines() if "kept" in line]
    assert "stopped: by hand; kept: runs/small/" in line and output.splitlines()[-1] == "resume with: fedsim resume small"
    [run] = find_runs(["small"])
    assert run.info["status"] == "stopped" and run.info["final"] == run.metrics[-1]
    assert all(check.ok for check in check_events(run.columns, run.info, run.metrics))
    assert safetensors.torch.load_file(run.path / "model.safetensors")
    [kept] = checkpoint.files(run.path)
    assert checkpoint.read(kept)[0]["round"] == run.info["final"]["round"] + checkpoint.read(kept)[0]["round"] % 25
    end = int(kept.stem) + 30
    assert call("replay", "small").stdout.splitlines()[1].startswith(f"  same: model {run.info['model'][:8]}")
    again = call("resume", "small", f"stop.rounds={end}")
    assert again.exit_code == 0 and f"resumed from the checkpoint after round {int(kept.stem)}" in again.output, again.output
    settings = (f"stop.rounds={end}", "evaluate.every=25 rounds")
    same(simulate(folder, *settings, into="whole"), find_runs(["small"])[0])


def test_a_signal_while_a_checkpoint_is_considered_is_heard_a_round_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came after the question whether a checkpoint is due, and the run stopped without one."""
    [loaded] = load(write(folder), ("stop.rounds=4", "evaluate.every=1 rounds"))
    run = build(loaded, TASKS)
    hold = run.guard._hold

    def disturbed(of: Any) -> None:
        hold(of)
        run.guard.asked = run.fed.round >= 2

    monkeypatch.setattr(run.guard, "_hold", disturbed)
    info = run.execute(folder / "run")
    assert (info["status"], info["reason"], run.fed.round) == ("stopped", "by hand", 3)
    assert [checkpoint.read(file)[0]["round"] for file in checkpoint.files(folder / "run")] == [3]


def test_a_second_time_interrupts_within_a_round(folder: Path) -> None:
    """A round takes some seconds; nothing is at the top of its loop before."""
    write(folder)
    words = (PROGRAM, "run", "small.yaml", "train.steps=5000", "engine.plan=looped", "schedule.cohort=all")
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (folder / "runs/small/latest/metrics.jsonl").exists() or not (folder / "runs/small/latest/metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)  # from the first evaluation into the round
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped: by hand, within a round; kept: " in output, output
    assert not checkpoint.files(find_runs(["small"])[0].path)


def test_tracked_in_sqlite(folder: Path) -> None:
    write(folder, TEXT.replace("track: none", "sweep: {seeds: 0..1}"))
    result = call("run", "small.yaml")
    assert result.exit_code == 0 and "tracked  small: 2 runs" in result.stdout
    import sqlite3

    with sqlite3.connect(folder / "runs" / "mlflow.db") as store:
        names = {name for (name,) in store.execute("select name from runs")}
        values = store.execute("select count(*) from metrics where key = 'test/accuracy'").fetchone()
    store.close()
    assert {"seed 0", "seed 1"} <= names and values == (10,)  # five evaluations of each


def test_mlflow_being_down_changes_nothing(folder: Path) -> None:
    write(folder, TEXT.replace("track: none", "track: {uri: 'http://127.0.0.1:9'}"))
    began = time.monotonic()
    result = call("run", "small.yaml")
    assert result.exit_code == 0 and time.monotonic() - began < 40
    assert "not tracked" in result.stdout and "later: fedsim track" in result.stdout
    assert find_runs(["small"])[0].info["status"] == "finished"
