"""Runs of a sweep side by side, and sweeps that grow."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedsim.base.errors import FedsimError
from fedsim.commands.abreast import side_by_side
from fedsim.commands.cli import app
from fedsim.run.folders import find_runs
from fedsim.scenario import load

TEXT = """name: small
task: {data: ./table.npz, partition: {name: iid, nodes: 4}, model: logistic}
strategy: fedavg
schedule: {cohort: 2}
train: {steps: 1}
stop: {rounds: 6}
checkpoint: {every: 1 round}
track: none
sweep: {seeds: 0..2}
"""
METRIC = """
import os, signal
from dataclasses import dataclass
from fedsim import Metric

@dataclass(frozen=True)
class Odd(Metric):
    def measure(self, view):
        if view.round == 3:
            {}
        return {{"odd": 1.0}}
"""


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def models(name: str = "small") -> list[str]:
    return [str(run.info["model"]) for run in find_runs([name])]


@pytest.fixture
def file(folder: Path) -> str:
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(folder / "table.npz", x=rng.normal(size=(40, 3)).astype("float32"), y=rng.integers(0, 2, 40))
    (folder / "small.yaml").write_text(TEXT)
    return "small.yaml"


def test_side_by_side_gives_the_same_models(file: str) -> None:
    assert call("run", file).exit_code == 0
    alone = models()
    result = call("run", file, "--jobs", "2", "--anew")
    assert result.exit_code == 0 and "2 at a time" in result.stdout and result.stdout.count("round 6") == 3
    assert result.stdout.count("samples") == 1  # what was found in the data is said once
    assert models() == alone and len(set(alone)) == 3
    assert [run.info["beside"] for run in find_runs(["small"])] == [2, 2, 2]


def test_only_what_is_missing_is_run(file: str, folder: Path) -> None:
    assert call("run", file).exit_code == 0
    before = models()
    (folder / file).write_text(TEXT.replace("0..2", "0..3"))
    result = call("run", file)
    assert result.exit_code == 0 and "3 of 4 runs have finished before and are taken over" in result.stdout
    runs = find_runs(["small"])
    assert models()[:3] == before and [("taken_from" in run.info) for run in runs] == [True, True, True, False]
    assert all(run.events.num_rows and run.metrics for run in runs) and not list(runs[0].path.parent.glob("*.part"))
    assert "4 of 4 runs have finished" in call("run", file).stdout
    assert "taken over" not in call("run", file, "--anew").stdout


@pytest.mark.parametrize("what", ["data", "end", "unfinished", "damaged"])
def test_what_has_changed_is_run_again(file: str, folder: Path, what: str) -> None:
    import numpy as np

    (folder / file).write_text(TEXT.replace("0..2", "0..1"))
    assert call("run", file).exit_code == 0
    first = find_runs(["small"])[0].path
    words = [file]
    if what == "data":
        with np.load(folder / "table.npz") as old:
            np.savez(folder / "table.npz", x=old["x"] + 1, y=old["y"])
    elif what == "end":
        words.append("stop.rounds=7")
    elif what == "unfinished":
        text = (first / "run.json").read_text()
        (first / "run.json").write_text(text.replace('"finished"', '"stopped"'))
    else:
        lines = (first / "metrics.jsonl").read_text().splitlines(keepends=True)
        (first / "metrics.jsonl").write_text("".join(lines[:-1]))
    result = call("run", *words)
    assert result.exit_code == 0
    taken = [("taken_from" in run.info) for run in find_runs(["small"])]
    assert taken == ([False, False] if what in ("data", "end") else [False, True])


def test_own_code_that_has_changed_is_run_again(file: str, folder: Path) -> None:
    words = (file, "evaluate.metrics=[odd:Odd]")
    (folder / "odd.py").write_text(METRIC.format("pass"))
    assert call("run", *words).exit_code == 0
    (folder / "odd.py").write_text(METRIC.format("pass") + "# new\n")
    assert call("run", *words).exit_code == 0
    assert not any("taken_from" in run.info for run in find_runs(["small"]))


def test_a_process_that_dies_takes_its_run_alone(file: str, folder: Path) -> None:
    (folder / "odd.py").write_text(METRIC.format("os.path.exists('once') or (open('once', 'w'), os.kill(os.getpid(), signal.SIGKILL))"))
    result = call("run", file, "evaluate.metrics=[odd:Odd]", "--jobs", "2")
    assert result.exit_code == 1 and "failed: its process was ended by SIGKILL" in result.stdout
    assert "resume with: fedsim resume small" in result.stdout
    assert sorted(run.status for run in find_runs(["small"])) == ["finished", "finished", "killed"]


def test_ctrl_c_stops_all_where_they_can_go_on(file: str, folder: Path) -> None:
    assert call("run", file).exit_code == 0
    straight = models()
    (folder / "odd.py").write_text(METRIC.format("os.path.exists('once') or (open('once', 'w'), os.kill(os.getppid(), signal.SIGINT))"))
    result = call("run", file, "evaluate.metrics=[odd:Odd]", "--jobs", "2")
    assert result.exit_code == 130 and "resume with: fedsim resume small" in result.stdout
    stopped = find_runs(["small"])
    assert {run.status for run in stopped} <= {"stopped", "finished"} and "stopped" in {run.status for run in stopped}
    assert call("resume", "small", "--jobs", "2").exit_code == 0
    assert models() == straight


def test_who_has_the_machine_for_itself(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.commands.abreast.cores", lambda: 4)
    monkeypatch.setattr("fedsim.commands.abreast.free_memory", lambda: 8 << 30)
    assert side_by_side(load(file), None) == 3  # runs
    assert side_by_side(load(file), 2) == 2
    assert side_by_side(load(file, ["engine.processes=2"]), None) == 2  # cores
    assert side_by_side(load(file, ["engine.memory=5 GiB"]), None) == 1
    assert side_by_side(load(file, ["stop.wall=1 h"]), None) == 1
    assert side_by_side(load(file, ["engine.threads=2"]), None) == 1
    with pytest.raises(FedsimError, match=r"--jobs 2: `engine.threads: 2`; side by side each run has a core"):
        side_by_side(load(file, ["engine.threads=2"]), 2)


def test_a_refusal_leaves_nothing_behind(file: str, folder: Path) -> None:
    result = call("run", file, "engine.threads=2", "--jobs", "2")
    assert result.exit_code == 2 and "side by side" in result.stderr and not (folder / "runs").exists()
    assert call("run", file, "--jobs", "0").exit_code == 2
