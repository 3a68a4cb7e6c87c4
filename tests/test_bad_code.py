"""Users' own code that raises, and runs that fail: the message says where, and what was written stays."""

import errno
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
from click.testing import Result
from launch import TEXT, call, refused, write

from fedsim.base.errors import RunError, SettingError
from fedsim.federation import health
from fedsim.report.checks import check_events
from fedsim.run.building import Tasks
from fedsim.run.folders import RunFolder, find_runs
from fedsim.scenario import Loaded
from fedsim.task.task import Task

# Users' own code

OWN = '''
from dataclasses import dataclass
import numpy as np
import torch
from fedsim.data.partition import Partition
from fedsim import Metric
from strategies.fedavg import FedAvg

class Logistic(torch.nn.Linear):
    def __init__(self, input_shape: tuple, outputs: int):
        super().__init__(64, outputs)

    def forward(self, x):
        return super().forward(x.flatten(1))

class Unbuilt(Logistic):
    def __init__(self, outputs: int):
        raise RuntimeError("the weights are elsewhere")

class Unfit(Logistic):
    def forward(self, x):
        raise RuntimeError("no forward")

class Picky(Logistic):
    def forward(self, x):
        if len(x) == 8:
            raise RuntimeError("eight is too many")
        return super().forward(x)

class Quits(Logistic):
    def __init__(self):
        raise SystemExit(3)

CALLS = []

class Tired(Logistic):
    def forward(self, x):
        CALLS.append(x)
        if len(CALLS) > 60:
            raise RuntimeError("sixty times is enough")
        return super().forward(x)

@dataclass(frozen=True)
class Third(FedAvg):
    """Fails in the third round."""
    def merge(self, state, inbox):
        state = super().merge(state, inbox)
        if MERGES.append(1) or len(MERGES) > 4:  # after a first merge for the check, and the run's own first
            raise KeyError("third")
        return state

MERGES = []

@dataclass(frozen=True)
class Leaves(FedAvg):
    """As a script does."""
    def merge(self, state, inbox):
        if MERGES.append(1) or len(MERGES) > 4:
            raise SystemExit(3)
        return super().merge(state, inbox)

@dataclass(frozen=True)
class Never(FedAvg):
    """Fails at once."""
    def merge(self, state, inbox):
        return state["modle"]

@dataclass(frozen=True)
class Late(Metric):
    """Fails in round 2."""
    def measure(self, view):
        MERGES.append(1)
        if len(MERGES) > 2:
            raise ZeroDivisionError("nothing to divide by")
        return {"late": 1.0}

@dataclass(frozen=True)
class Odd(Metric):
    """Gives what is no number by name."""
    kind: str = "plain"
    def measure(self, view):
        ones = {"tensor": torch.ones(2), "number": 1.0, "taken": {"round": 7.0}, "nameless": {3: 1.0}, "many": {"a": torch.ones(2)}}
        return ones.get(self.kind, {"plain": torch.tensor(0.5), "far": float("inf"), "whole": np.int64(3)})

@dataclass(frozen=True)
class Gap(Partition):
    """Nobody is node 2."""
    nodes: int = 4
    def split(self, labels, keys, key):
        owner = np.arange(len(labels)) % 4
        return np.where(owner == 2, 3, owner)

class Callable:
    def __call__(self, n: int = 3):
        return {}

CALLABLE = Callable()

def samples(n: int):
    return {"x": np.ones((n, 3)), "y": np.arange(n) % 2}

def broken(n: int):
    raise OSError("the disk is elsewhere")
'''


@pytest.fixture
def own(folder: Path) -> str:
    """A scenario's file beside `bad_parts.py`."""
    (folder / "bad_parts.py").write_text(OWN)
    (folder / "leaving_parts.py").write_text("raise SystemExit(2)\n")
    return write(folder).name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["task.model=bad_parts:Unbuilt"], "task.model: bad_parts:Unbuilt raised RuntimeError: the weights are elsewhere"),
        (["task.model=bad_parts:Quits"], "task.model: bad_parts:Quits raised SystemExit: 3 (bad_parts.py:"),
        (["task.model=leaving_parts:Net"], "`leaving_parts` can't be imported: SystemExit: 2 (leaving_parts.py:1)"),
        (["task.data=bad_parts:CALLABLE"], "`bad_parts:CALLABLE` can't be a data; a function (`def`) is due"),
        (["task.model=bad_parts:Unfit"], "task.model: bad_parts:Unfit raised RuntimeError: no forward"),
        (["task.model=bad_parts:Picky", "engine.plan=looped"], "eight is too many (bad_parts.py:"),
        (["task.model=bad_parts:Missing"], "Missing"),
        (["task.model=not_there:Net"], "not_there"),
        (["strategy=bad_parts:Never"], "KeyError: 'modle' (bad_parts.py:"),
        (["task.partition=bad_parts:Gap"], "gives no sample to 1 of 4 nodes: 2"),
        (["task.data={name: bad_parts:broken, n: 9}"], "task.data: bad_parts:broken raised OSError: the disk is elsewhere"),
        (["task.data={name: bad_parts:samples, n: 40}", "task.partition={name: natural, by: ward}"], "the data have no ids `ward`"),
        (["task.data=bad_parts:samples"], "n"),
    ],
)
def test_own_code_that_fails_at_once(own: str, settings: list[str], said: str) -> None:
    message = refused("run", own, *settings)
    assert said in message and "command line: " in message


def failed(result: Result, name: str = "small") -> RunFolder:
    """The folder of a run that failed on the way: exit code 1, one line that says what is kept, and all of it readable."""
    assert result.exit_code == 1, result.output
    [run] = find_runs([name])
    [line] = [line for line in result.stdout.splitlines() if "kept: " in line]
    assert str(run.path) in line and run.info["reason"] in line
    assert run.info["status"] == "failed" and run.info["final"] == run.metrics[-1]
    assert all(check.ok for check in check_events(run.columns, run.info, run.metrics))
    assert safetensors.torch.load_file(run.path / "model.safetensors")
    assert run.info["reason"] in (run.path / "log.txt").read_text()
    return run


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["strategy=bad_parts:Third"], "KeyError: 'third' (bad_parts.py:"),
        (["strategy=bad_parts:Leaves"], "SystemExit: 3 (bad_parts.py:"),
        (["evaluate.metrics=[loss, bad_parts:Late]"], "ZeroDivisionError: nothing to divide by (bad_parts.py:"),
        (["task.model=bad_parts:Tired", "engine.plan=looped", "stop.rounds=100"], "RuntimeError: sixty times is enough (bad_parts.py:"),
    ],
)
def test_own_code_that_fails_later(own: str, settings: list[str], said: str) -> None:
    run = failed(call("run", own, *settings))
    assert said in run.info["reason"] and run.info["reason"].startswith("round ")
    assert len(run.metrics) > 1 and (run.columns["kind"] == 2).any()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("number", "metric `odd` returns float; numbers by name are due, such as {'my/number': 0.5}"),
        ("taken", "metric `odd` returns `round`: each record has that already"),
        ("nameless", "metric `odd` returns `3`: a text is due as a name"),
        ("many", "metric `odd` returns Tensor as `a`; one number is due"),
    ],
)
def test_own_metrics_that_are_no_numbers_by_name(own: str, kind: str, said: str) -> None:
    assert f"failed: {said}; kept: " in call("run", own, f"evaluate.metrics=[{{name: bad_parts:Odd, kind: {kind}}}]").stdout


def test_own_metrics_may_be_tensors_of_one_number(own: str) -> None:
    assert call("run", own, "evaluate.metrics=[bad_parts:Odd]").exit_code == 0
    [run] = find_runs(["small"])
    assert (run.metrics[-1]["plain"], run.metrics[-1]["whole"], run.metrics[-1]["far"]) == (0.5, 3, math.inf)


# Runs that fail

WILD = TEXT.replace("logistic", "{name: mlp, hidden: [8, 8]}")


def test_a_diverging_run(folder: Path) -> None:
    run = failed(call("run", write(folder, WILD).name, "train.lr=1e8", "train.weight_decay=0.01", "stop.rounds=30"))
    assert run.info["reason"].startswith("diverged in round ") and "clients " in run.info["reason"]
    arrived = run.columns["node"][run.columns["kind"] == 1][-4:]  # of the last cohort
    named = run.info["reason"].split("clients ")[1].split(";")[0]
    assert {int(node) for node in named.split(", ")} <= set(arrived.tolist())
    assert len(run.metrics) > 1


def test_a_variant_that_diverges_does_not_stop_the_others(folder: Path) -> None:
    sweep = "sweep: {variants: {wild: {train: {lr: 1e30}}, calm: {}}}\n"
    result = call("run", write(folder, WILD + sweep).name)
    assert result.exit_code == 1
    assert [run.info["status"] for run in find_runs(["small"])] == ["failed", "finished"]
    assert "finished 1 of 2" in result.stdout


def test_a_world_without_anybody_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.PATIENCE == 10_000
    monkeypatch.setattr(health, "PATIENCE", 1_000)
    settings = ["world.availability={name: bernoulli, chance: 0 %}", "stop.rounds=null", "stop.seconds=1 min"]
    result = call("run", write(folder).name, *settings, "evaluate.every=1000 rounds")
    assert result.exit_code == 1 and "nobody was there in 1,000 rounds in a row; see `world.availability`" in result.stdout


def test_an_unwritable_run_folder(folder: Path) -> None:
    (folder / "runs").write_text("in the way")
    result = call("run", write(folder).name)
    assert result.exit_code == 2 and result.stderr.startswith("runs/small: can't write the run's folder")
    assert (folder / "runs").read_text() == "in the way"


@pytest.mark.pictures
def test_a_seed_that_cannot_be_built_does_not_stop_the_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {1: SettingError("task.partition", "seed 1 splits badly"), 3: RunError("seed 3 splits badly")}

    def get(tasks: Tasks, loaded: Loaded) -> Task:
        if loaded.seed in errors:
            raise errors[loaded.seed]
        return usual(tasks, loaded)

    usual = Tasks.get
    monkeypatch.setattr(Tasks, "get", get)
    text = TEXT.replace("track: none", "sweep: {seeds: 0..3}")
    result = call("run", write(folder, text).name)
    assert result.exit_code == 1
    assert "seed 1 failed: " in result.stdout and "seed 1 splits badly\n" in result.stdout
    assert "seed 3 failed: " in result.stdout and "seed 3 splits badly\n" in result.stdout
    assert "finished 2 of 4" in result.stdout and "tracked  small: 2 runs" in result.stdout
    runs = find_runs(["small"])
    assert [run.info["seed"] for run in runs] == [0, 2] and (runs[0].path.parent / "figures" / "accuracy.png").exists()


# A full disk


def test_a_disk_that_fills_up(folder: Path, disk: Path) -> None:
    result = call("run", write(folder).name, "stop.rounds=100000", "evaluate.every=1 rounds", "--runs", disk)
    assert result.exit_code == 1
    [line] = [line for line in result.stdout.splitlines() if "kept: " in line]
    assert line.startswith("seed 0 failed: metrics.jsonl can't be written: No space left on device; kept: ")
    [run] = find_runs(["small"], disk)
    assert (run.info["status"], run.info["final"]) == ("failed", run.metrics[-1]) and len(run.metrics) > 1
    assert all(check.ok for check in check_events(run.columns, run.info, run.metrics))
    assert safetensors.torch.load_file(run.path / "model.safetensors")
    assert not list(disk.rglob("*.part"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("a file system of 200 kB can be mounted by root only")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", ["000000", "model", "run"])
def test_files_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def replace(draft: Path, target: Path) -> Path:
        if target.stem == name and (name != "run" or target.exists()):
            raise OSError(errno.ENOSPC, "full")
        return usual(draft, target)

    usual = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    result = call("run", write(folder).name)
    file = {"000000": "000000.parquet", "model": "model.safetensors", "run": "run.json"}[name]
    assert result.exit_code == 1
    assert f"seed 0 failed: {file} can't be written: No space left on device; kept: " in result.stdout
    [run] = find_runs(["small"])
    assert run.info["status"] == ("running" if name == "run" else "failed") and len(run.metrics) == 5
    assert (run.path / "model.safetensors").exists() == (name != "model")
    assert len(list(run.path.glob("events/*.parquet"))) == (0 if name == "000000" else 2)  # before the last checkpoint, and after it
    assert not list(run.path.rglob("*.part"))
