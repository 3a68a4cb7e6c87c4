"""Damaged run folders: a command works rightly or says in one line which file is at fault; nothing ends in a traceback."""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from launch import TASKS, call, same, simulate, write

from fedsim.base.errors import FedsimError
from fedsim.metrics.metrics import known
from fedsim.run.building import Tasks
from fedsim.run.folders import RunFolder, runs_in
from fedsim.run.records import numbers, opened_all, sealed

SETTINGS = ("engine.plan=looped", "checkpoint=1 rounds", "train.steps=1", "schedule.cohort=2", "evaluate.every=1 rounds")
FILES = ("run.json", "scenario.yaml", "metrics.jsonl", "labels.npz", "events/000000.parquet", "checkpoints/000000002.checkpoint")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 4
    file.write_bytes(raw)


def folder_instead(file: Path) -> None:
    file.unlink()
    file.mkdir()


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def huge(file: Path) -> None:
    os.truncate(file, 1 << 42)


def swap(file: Path) -> None:
    other = "labels.npz" if file.suffix != ".npz" else "events/000000.parquet"
    shutil.copy(file.parents[1 if file.parent.name in ("events", "checkpoints") else 0] / other, file)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "flipped": flip,
    "no text": lambda file: file.write_bytes(b"\xff\xfe{}\n" * 9),
    "another type": lambda file: file.write_text("[1, {}]\n"),
    "nested": lambda file: file.write_text("[" * 3000 + "\n"),
    "a folder": folder_instead,
    "a loop": loop,
    "huge": huge,
    "another file": swap,
    "gone": Path.unlink,
}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """A run of two rounds, and the same run to its third."""
    place = tmp_path_factory.mktemp("wholes")
    run, longer = (simulate(place, *SETTINGS, f"stop.rounds={rounds}", into=str(rounds)) for rounds in (2, 3))
    return run.path, longer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not painted, and the task is made once."""
    usual = Tasks.get
    monkeypatch.setattr(Tasks, "get", lambda _, loaded: usual(TASKS, loaded))
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda *_, **__: None)


def told(folder: Path, file: str, *words: str) -> int:
    """The exit code of a command, which says one thing on standard error where it is 2: which file is at fault."""
    result = call(words[0], folder, *words[1:])
    assert result.exit_code in (0, 1, 2)
    if result.exit_code == 2:
        first = result.stderr.splitlines()[0]
        assert Path(file).name in first or "can't be resumed to the same bits" in first or "no run `" in first, result.stderr
        assert "Traceback" not in result.stderr
    return result.exit_code


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_each_file_of_a_run(folder: Path, half: tuple[Path, RunFolder], file: str, damage: str) -> None:
    """What `resume` accepts is the run that was never damaged."""
    run, longer = folder / "run", half[1]
    for words in (("inspect",), ("plot",), ("replay", "--quiet"), ("resume", "stop.rounds=3", "--quiet")):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(half[0], run)
        DAMAGES[damage](run / file)
        if told(run, file, *words) == 0 and words[0] == "resume":
            again = RunFolder(run)
            assert again.info["model"] == longer.info["model"]
            same(longer, again)


# A disk that is full from the start


@pytest.mark.parametrize(("name", "said"), [("labels", "it could not begin: labels.npz can't be written: No space"), ("", "a full disk?")])
def test_a_run_that_could_not_begin_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    """There is room up to the labels, or for nothing but the folder."""

    def full(draft: Path, target: Path) -> Path:
        if target.stem == name:
            raise OSError(errno.ENOSPC, "full")
        return replace(draft, target)

    def nothing(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    replace = Path.replace
    write(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        if not name:
            patch.setattr(Path, "write_bytes", nothing)
            patch.setattr(Path, "write_text", nothing)
        result = call("run", "small.yaml", "engine.plan=looped")
    assert result.exit_code in (1, 2) and "can't be written: No space left on device" in result.output
    for command in ("inspect", "plot", "replay"):
        result = call(command, "small")
        assert result.exit_code in (0, 2) and (said in result.stderr or command == "plot"), result.output
    if name:
        assert call("resume", "small").exit_code == 0
    else:
        assert said in call("resume", "small").stderr


FORGED = [
    *(
        {"status": 7},
        {"final": "x"},
        {"final": {"round": "x"}},
        {"target_reached": [1]},
        {"name": "../x"},
        {"resumed": "no"},
        {"seed": "a"},
    ),
    *({"evaluated": [1]}, {"evaluated": [0, 0]}, {"nodes": -1}, {"created": "yesterday"}, {"label_counts": "../x"}, {"attackers": 3}),
    *({"versions": [1]}, {"wall_seconds": float("nan")}, {"concurrency": 1e400}),
]


@pytest.mark.parametrize("entry", FORGED, ids=str)
def test_a_forged_entry_of_run_json_is_named(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "small", "status": "finished"} | entry))
    with pytest.raises(FedsimError, match=f"run.json: broken \\(`{next(iter(entry))}"):
        RunFolder(tmp_path).info  # noqa: B018


def test_what_was_measured_may_be_beyond_all_bounds(tmp_path: Path) -> None:
    """An own metric's infinity, or a whole number that no int64 holds, does not make a run's own folder a broken one."""
    final = {"round": 2, **known({"psnr": math.inf, "norm": 10**30, "count": 7, "none": math.nan})}
    (tmp_path / "run.json").write_text(json.dumps({"name": "small", "status": "finished", "final": final}))
    (tmp_path / "metrics.jsonl").write_text(sealed(final, 0) + "\n")
    assert RunFolder(tmp_path).info["final"] == RunFolder(tmp_path).metrics[0] == {"round": 2, "psnr": math.inf, "norm": 1e30, "count": 7}


def test_a_sweep_names_folders_within_its_own(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": ["../other"]}))
    with pytest.raises(FedsimError, match=r"sweep.json: broken \(`runs.0`: "):
        runs_in(tmp_path)


def test_lines_of_metrics_that_were_changed_moved_or_taken_out() -> None:
    lines = [sealed({"round": place, "test/loss": 0.5}, place) + "\n" for place in range(3)]
    assert opened_all(lines) == ([{"round": place, "test/loss": 0.5} for place in range(3)], "")
    for wrong in ([lines[0], lines[1].replace("0.5", "0.4")], [lines[0], lines[2]], [lines[0], lines[2], lines[1]]):
        found, why = opened_all(wrong)
        assert len(found) == 1 and why == "line 2 is broken: its checksum is wrong: it was changed, or lines before it are missing"
    mixed = [{"round": 0, "test/loss": 0.5}, {"round": 1, "test/loss": None, "x": 2}, {"round": 2, "test/loss": -1e-9}]
    written = [sealed(record, place) + "\n" for place, record in enumerate(mixed)]
    assert str(numbers(written, "test/loss")) == "[0.5, nan, -1e-09]"
    assert str(numbers([*written, '{"round": 3'], "x")) == "[nan, 2.0, nan]"
    assert numbers(['{"round": 0, "x": 1}\n'], "x") is None  # not ours, and so perhaps written otherwise
    assert numbers(written[1:], "x") is None
    assert opened_all(['{"round": 0}\n']) == ([{"round": 0}], "")  # others may write lines without one, but no run goes on with them
    assert opened_all(['{"round": 0}\n'], strict=True) == ([], "line 1 is broken: it has no checksum")
    assert opened_all(['{"round": 0, "x": "y"}\n']) == ([], "line 1 is broken: `x` is no number")
