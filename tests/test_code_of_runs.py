"""A run's copies of the user's own modules: what lies beside the originals is found, and a change of them is said or taken."""

import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from launch import call, write

from fedsim.run.folders import RunFolder, find_runs

MINE = """\
from pathlib import Path

import numpy as np

from my_helper import SCALE


def load() -> dict[str, np.ndarray]:
    found = dict(np.load(Path(__file__).parent / "mine.npz"))
    return found | {"x": found["x"] * SCALE}
"""
METHOD = """\
from dataclasses import dataclass

from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Mine(FedAvg):
    def merge(self, state, inbox):
        return super().merge(state, inbox)
"""
TEXT = """\
task: {data: "mine:load", partition: {name: iid, nodes: 3}, model: logistic}
strategy: "my_method:Mine"
train: {steps: 1, batch: 4, lr: 0.1}
stop: {rounds: 2}
track: none
"""


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of own data, read from a file beside its module, and an own method; nothing of it is imported any more."""
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda *_, **__: None)
    code = folder / "code"
    code.mkdir()
    write(code, TEXT)
    (code / "mine.py").write_text(MINE)
    (code / "my_helper.py").write_text("SCALE = 1.0\n")
    (code / "my_method.py").write_text(METHOD)
    save(code, 0)
    result = call("run", "code/small.yaml", "--quiet")
    assert result.exit_code == 0, result.output
    forget()
    return find_runs(["small"])[0].path


def save(code: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    np.savez(code / "mine.npz", x=draw.normal(size=(60, 3)).astype(np.float32), y=np.arange(60) % 2)


def forget() -> None:
    """As a new process would begin: `my_...` is neither imported nor on the import path."""
    for name in ("mine", "my_helper", "my_method"):
        sys.modules.pop(name, None)
    sys.path[:] = [path for path in sys.path if "/code" not in path and "/runs/" not in path]


def test_data_beside_a_module_are_found_again(run: Path) -> None:
    result = call("resume", "small", "stop.rounds=4")
    assert result.exit_code == 0 and "resumed from the checkpoint after round 2" in result.stdout, result.output
    assert sys.modules["mine"].__file__ == str(Path("code/mine.py").resolve())
    assert sys.modules["mine"].__spec__.origin == str((run / "parts/mine.py").resolve())  # type: ignore[union-attr]
    forget()
    assert call("replay", "small", "--quiet").exit_code == 0


def test_other_data_there_are_refused(run: Path) -> None:
    save(Path("code"), 1)
    result = call("resume", "small", "stop.rounds=4")
    assert result.exit_code == 2 and "the data's hash was " in result.stderr


def test_data_that_are_gone_are_named(run: Path) -> None:
    Path("code/mine.npz").unlink()
    result = call("resume", "small", "stop.rounds=4")
    assert result.exit_code == 2 and "code/mine.npz" in result.stderr and "Traceback" not in result.stderr


def test_a_copy_of_a_copy_knows_the_original(run: Path) -> None:
    result = call("run", run / "scenario.yaml", "--quiet", "name=again")
    assert result.exit_code == 0, result.output
    forget()
    assert call("replay", "again", "--quiet").exit_code == 0


def test_old_code_goes_on_and_says_so(run: Path) -> None:
    Path("code/my_method.py").write_text(METHOD + "# mended\n")
    result = call("resume", "small", "stop.rounds=3")
    assert result.exit_code == 0, result.output
    assert "own code has changed since the run began (my_method.py): it goes on with its copy of then; `--code new`" in result.stdout
    assert (run / "parts/my_method.py").read_text() == METHOD


def test_new_code_goes_on_where_the_old_was(run: Path) -> None:
    """A mended method with a new module of its own; the next resume goes on with that without a word."""
    Path("code/my_method.py").write_text("import my_constants\n" + METHOD.replace("super().merge(state, inbox)", "dict(state)"))
    Path("code/my_constants.py").write_text("")
    result = call("resume", "small", "stop.rounds=3", "--code", "new")
    assert result.exit_code == 0 and "own code has changed" not in result.stdout, result.output
    info = RunFolder(run).info
    assert info["resumed"][0]["code"] == info["code"]
    assert "my_constants" in (run / "parts/my_method.py").read_text() and (run / "parts/my_constants.py").exists()
    forget()
    sys.modules.pop("my_constants")
    result = call("replay", "small", "--quiet")
    assert result.exit_code == 1 and "its own code was changed after round 2" in result.stdout


def test_new_code_that_is_gone(run: Path) -> None:
    Path("code/my_method.py").unlink()
    result = call("resume", "small", "stop.rounds=3", "--code", "new")
    assert result.exit_code == 2 and "there is no new code, " in result.stderr
    assert call("resume", "small", "--code", "old").exit_code == 2


def test_a_resume_is_offered_where_it_can_help(run: Path) -> None:
    """A method that raises fails again as it is; mended, it goes on."""
    Path("code/my_method.py").write_text(METHOD.replace("return super", "assert inbox.round < 1, 'no'\n        return super"))
    result = call("run", "code/small.yaml", "--quiet")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "it would fail again as it is; if its own code is mended: fedsim resume small --code new"
    forget()
    result = call("resume", "small")
    assert result.exit_code == 2 and "AssertionError: no" in result.stderr and "it would fail again as it is" in result.stderr
    Path("code/my_method.py").write_text(METHOD)
    forget()
    result = call("resume", "small", "--code", "new")
    assert result.exit_code == 0, result.output


def test_no_resume_is_offered_where_numbers_diverged(run: Path) -> None:
    """Code of one's own takes part in the run, but did not raise."""
    result = call("run", "code/small.yaml", "task.loss=squared_error", "train.lr=1e30", "--quiet")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "a resume could only fail again: change the scenario and run it anew"
    [failed] = [one for one in find_runs(["small"]) if one.info["status"] == "failed"]
    assert failed.info["again"] is failed.info["diverged"] is True
