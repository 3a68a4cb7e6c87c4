"""Every shipped scenario: it loads, its smoke run ends, and what the run writes down is the same scenario again."""

import re
from dataclasses import replace
from math import ceil
from pathlib import Path

import matplotlib
import pytest

from fedsim.base.errors import SettingError
from fedsim.commands.experiment import execute
from fedsim.data.files import find_file
from fedsim.data.sources import Npz
from fedsim.data.text_sources import Tokens, Tsv
from fedsim.data.windows import Windows
from fedsim.report.checks import check_events
from fedsim.run.building import Tasks, build
from fedsim.run.folders import find_runs
from fedsim.scenario import load
from fedsim.settings.anchored import anchored
from fedsim.settings.traces import find_trace
from fedsim.world import FileTimes

ROOT = Path(__file__).resolve().parent.parent
MOST = 3  # runs of a sweep that are tried each time; all in `make test-slow`
TASKS = Tasks()  # keeps the samples that were read last


def data_of(file: Path) -> tuple[str, Path]:
    """What is written of its data, so that scenarios with the same data come one after the other and they are read once."""
    found = re.search(r"\bdata: *({.*?}|\w+)", file.read_text())
    return found[1] if found else "", file


FILES = sorted((ROOT / "scenarios").rglob("*.yaml"), key=data_of)


def test_there_are_scenarios() -> None:
    assert {"minimal.yaml", "quickstart.yaml"} <= {file.name for file in FILES}


DRAWN = {"quickstart", "phones", "peers", "drift"}  # runs of each kind
SOME = [pytest.param(file, MOST, marks=pytest.mark.pictures if file.stem in DRAWN else (), id=file.stem) for file in FILES]
ALL = [pytest.param(file, None, marks=[pytest.mark.slow, pytest.mark.pictures], id=f"{file.stem}, whole") for file in FILES]


@pytest.mark.parametrize(("file", "most"), SOME + ALL)
def test_shipped(file: Path, most: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 40)
    whole, runs = load(file), load(file, ["track=none"], smoke=True)
    assert all((run.scenario.stop.rounds or 3) <= 2 or (run.scenario.stop.seconds or 3600) <= 600 for run in runs)
    assert len(whole) == len(runs) and all(run.scenario.stop != small.scenario.stop for run, small in zip(whole, runs, strict=True))
    data = runs[0].scenario.task.data
    if isinstance(data, Npz | Tsv | Tokens | Windows):
        try:
            find_file(data.file, file.parent, (".npz", ".tsv", ".txt", ".csv"))
        except SettingError:
            pytest.skip(f"{file.name} needs `{data.file}` under FEDSIM_DATA")
    if isinstance(times := runs[0].scenario.world.compute.trace, FileTimes):
        try:
            find_trace(times.file, file.parent)
        except ValueError:
            pytest.skip(f"{file.name} needs `{times.file}` under FEDSIM_DATA")
    assert [run.label for run in whole] == [run.label for run in runs]
    if file.parent.name == "papers":  # other seeds are the same code once more
        runs = [run for run in runs if run.seed == runs[0].seed]
    runs = runs[:: ceil(len(runs) / most)] if most else runs
    assert execute(runs, TASKS, quiet=True) == 0
    found = find_runs([runs[0].scenario.name])
    assert len(found) == len(runs)
    for run, loaded in zip(found, runs, strict=True):
        assert run.info["status"] == "finished" and run.info["final"]["test/loss"] > 0
        assert all(check.ok for check in check_events(run.columns, run.info, run.metrics))
        [again] = load(run.path / "scenario.yaml")
        assert again.hash == loaded.hash == run.info["hash"]
        world, strategy = (anchored(part, file.parent) for part in (loaded.scenario.world, loaded.scenario.strategy))
        parts = {"world": world, "strategy": strategy, "schedule": strategy.schedule}
        assert again.scenario == replace(loaded.scenario, **parts)  # files beside it are named in whole
    [again] = load(found[-1].path / "scenario.yaml")
    info = build(again, TASKS).execute(folder / "again")
    assert (info["model"], info["data"], info["hash"]) == tuple(found[-1].info[name] for name in ("model", "data", "hash"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shipped_files_are_tidy(file: Path) -> None:
    text = file.read_text()
    assert text.endswith("\n") and "\t" not in text and not any(line != line.rstrip() for line in text.splitlines())
    assert str(ROOT) not in text and "/home/" not in text
