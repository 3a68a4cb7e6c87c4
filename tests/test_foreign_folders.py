"""Run folders that somebody else made to harm: nothing outside of them is written or sent, and the screen shows their texts as texts."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import simulate, write_run, write_sweep
from launch import TEXT, call, refused

from fedsim.base.errors import FedsimError
from fedsim.report.figures.plots import draw, figures_of
from fedsim.report.style import figure
from fedsim.run import checkpoint
from fedsim.run.folders import RunFolder, planned_in, runs_in
from fedsim.run.runfolder import RunWriter
from fedsim.scenario.copies import originals, take_new_code

ROWS, RECORDS = simulate([60, 90, 160], size=2, end=1000, every=500)

pytestmark = pytest.mark.pictures  # a picture may be a link


@pytest.fixture
def foreign(folder: Path) -> Path:
    """A finished run, and beside it a file that is none of its business."""
    (folder / "secret").write_text("secret")
    return write_run(folder / "foreign", ROWS, RECORDS, TEXT)


def linked(run: Path, name: str, target: str = "../secret") -> None:
    place = run / name
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to("../" * name.count("/") + target)


@pytest.mark.parametrize("name", ["log.txt", "run.part", "mlflow.json.new", "figures/accuracy.png", "spare.part"])
def test_nothing_is_written_or_sent_through_a_link(foreign: Path, name: str) -> None:
    linked(foreign, name)
    for words in (["resume", "foreign", "stop.rounds=900"], ["plot", "foreign"], ["track", "foreign", "--uri", "sqlite:///new.db"]):
        assert f"{name} is a link out of the run's folder" in refused(*words)
    assert Path("secret").read_text() == "secret" and not Path("new.db").exists()


def test_a_folder_of_pictures_may_be_no_link(foreign: Path) -> None:
    (foreign.parent / "elsewhere").mkdir()
    linked(foreign, "figures", "../elsewhere")
    with pytest.raises(FedsimError, match="figures is a link out of"):
        draw([RunFolder(foreign)])
    assert not list((foreign.parent / "elsewhere").iterdir())


def test_links_within_a_folder_are_followed(foreign: Path) -> None:
    (foreign / "first.parquet").symlink_to("events/000000.parquet")
    (foreign / "round").symlink_to("round")
    with pytest.raises(FedsimError, match="round is a link out of"):
        RunWriter(foreign)
    (foreign / "round").unlink()
    RunWriter(foreign).release()


@pytest.mark.parametrize("name", ["../secrets", "/etc", "..", ".", "a/b", "", 3, None, "away"])
def test_a_sweep_names_only_folders_of_its_own(foreign: Path, name: object) -> None:
    upper = foreign.parent / "sweep" / "20260101-000000-abc"
    upper.mkdir(parents=True)
    write_sweep(upper, ["good", name])  # type: ignore[list-item]
    (upper / "away").symlink_to(foreign)
    for reads in (runs_in, planned_in):
        with pytest.raises(FedsimError, match=r"sweep.json: (broken \(|`.*` is no folder of the sweep)"):
            reads(upper)
    assert "sweep.json: " in refused("resume", upper)


def test_pictures_of_some_variants_stay_in_the_sweeps_figures(folder: Path) -> None:
    upper = folder / "x" / "20260101-000000-abc"
    for name, variant in (("a", ".."), ("b", ".."), ("c", "../.."), ("d", "good")):
        write_run(upper / name, ROWS, RECORDS, variant=variant, label=variant)
    write_sweep(upper, ["a", "b", "c", "d"])
    for runs in (runs_in(upper)[:2], runs_in(upper)[1:3]):
        assert figures_of(runs).resolve().is_relative_to((upper / "figures").resolve())


def test_names_with_dollars_are_no_formulas(folder: Path) -> None:
    with figure(folder / "one.png", 1, 1, (2, 2)) as (_, panels):
        panels[0, 0].set_title("$\\frac{")
        panels[0, 0].plot([1], [1], label="$x^$")
        panels[0, 0].legend()
    assert (folder / "one.png").stat().st_size


def test_texts_of_a_folder_are_shown_as_texts(foreign: Path) -> None:
    evil = "\x1b[2J\x1b[31mall checks pass\nok\x9b1m\u202e"
    info = json.loads((foreign / "run.json").read_text())
    (foreign / "run.json").write_text(json.dumps(info | {"name": evil, "label": evil, "variant": evil, "reason": evil, "version": evil}))
    metrics = [json.loads(line) | {evil: 1.0} for line in (foreign / "metrics.jsonl").read_text().splitlines()]
    (foreign / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    for words in (["inspect", "foreign"], ["resume", "foreign"]):
        said = call(*words).output
        assert not set(said) & set("\x1b\x9b\u202e")
    run = RunFolder(foreign)
    assert "\n" not in run.label and all("\n" not in name for record in run.metrics for name in record)


def test_the_scenario_of_a_folder_is_bounded_too(foreign: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))
    for text, said in ((bomb, "values, counted with"), (f"about: {'x' * 2**20}", "over 1 MiB"), ("[" * 10**5, "deep")):
        (foreign / "scenario.yaml").write_text(text)
        with pytest.raises(FedsimError, match=said):
            _ = RunFolder(foreign).parameters


@pytest.mark.parametrize(
    "text", ['{"mine.py": 3}', '{"a/a/mine.py": "/mine.py"}', '{"../mine.py": "/a/mine.py"}', '{"a//mine.py": "/mine.py"}', '["x"]', None]
)
def test_originals_are_paths_that_copies_can_have(foreign: Path, text: str | None) -> None:
    file = foreign / "parts" / "origins.json"
    file.parent.mkdir(exist_ok=True)
    os.mkfifo(file) if text is None else file.write_text(text)
    for look in (originals, take_new_code):
        with pytest.raises(FedsimError, match=r"origins.json: broken \(the original path of each module is due\)"):
            look(foreign)
    file.write_text('{"a/mine.py": "/b/mine.py"}') if text else None
    assert originals(foreign) == {"a/mine.py": Path("/b/mine.py")} if text else "it is no plain file" in refused("resume", "foreign")


def huge(head: dict[str, object]) -> None:
    head["arrays"] = [["torch", "float32", [2**40]]]


def objects(head: dict[str, object]) -> None:
    head["arrays"] = [["numpy", "O", [3]]]


def method(head: dict[str, object]) -> None:
    head["arrays"] = [["torch", "load", [3]]]


@pytest.mark.parametrize("change", [huge, objects, method])
def test_a_checkpoint_holds_numbers_only(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    class Kept:
        keeps = ("rows",)
        rows = torch.zeros(3)

    file = folder / "one.checkpoint"
    checkpoint.write(file, {}, checkpoint.collect(Kept()))
    raw = file.read_bytes()
    length = int.from_bytes(raw[8:16], "little")
    head = json.loads(raw[16 : 16 + length])
    change(head)
    new = json.dumps(head).encode()
    file.write_bytes(raw[:8] + len(new).to_bytes(8, "little") + new + raw[16 + length :])
    with pytest.raises(checkpoint.BrokenError):
        checkpoint.read(file)


def test_arrays_of_objects_are_not_unpacked(foreign: Path) -> None:
    np.savez(foreign / "labels.npz", counts=np.array([{"a": 1}], dtype=object))
    with pytest.raises((FedsimError, ValueError)):
        _ = RunFolder(foreign).label_counts
