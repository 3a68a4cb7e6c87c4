"""`fedsim bench`: which measurements are made, and what is printed of them."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedsim import bench
from fedsim.base.clock import EventQueue
from fedsim.base.errors import RunError
from fedsim.bench import codecs, comparing, methods, peers, scale
from fedsim.bench.figures import Figure, limit
from fedsim.bench.plain import Workload
from fedsim.bench.runs import alone, side_by_side
from fedsim.commands.cli import app
from fedsim.report.comparison.rows import compared
from fedsim.report.inspection import inspect_run
from fedsim.run.folders import runs_in
from fedsim.scenario import load
from fedsim.scenario.trust import trusting

MADE = {
    "fast": lambda trials: [Figure("fast", 300.0, 100.0, 3.0, 2.0)],
    "small": lambda trials: [limit("memory", 4.0, 2.0), Figure("elsewhere", float(trials), 1.0, 1.0, None)],
}


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measurements", lambda: MADE)


def test_json_is_a_line_a_figure() -> None:
    shown = CliRunner().invoke(app, ["bench", "--json", "--trials", "5"])
    assert shown.exit_code == 0
    assert [json.loads(line) for line in shown.stdout.splitlines()] == [
        {"name": "fast", "ours": 300.0, "other": 100.0, "ratio": 3.0, "target": 2.0},
        {"name": "memory", "ours": 4.0, "other": 2.0, "ratio": 0.5, "target": 1.0},  # a limit of 2 that 4 is above
        {"name": "elsewhere", "ours": 5.0, "other": 1.0, "ratio": 1.0, "target": None},
    ]
    assert shown.stderr == ""


def test_the_table_says_what_is_reached() -> None:
    shown = CliRunner().invoke(app, ["bench", "small"])
    assert [line.split()[0] for line in shown.stdout.splitlines()[2:]] == ["memory", "elsewhere"]
    assert [line.rsplit("  ", 1)[1] for line in shown.stdout.splitlines()[2:]] == ["1, missed", "-"]


def test_how_long_it_takes_is_said_before_and_every_figure_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(trials: int) -> list[Figure]:
        raise RunError("bench: cut short")

    monkeypatch.setitem(MADE, "fast", broken)
    for options, first in (([], "2 measurements, about 20 s on two quiet cores"), (["--json"], '{"name": "memory"')):
        shown = CliRunner().invoke(app, ["bench", "small", "fast", "--trials", "4", *options])
        assert shown.exit_code == 1 and shown.stdout.startswith(first) and shown.stderr == "bench: cut short\n"
        assert "memory" in shown.stdout and "elsewhere" in shown.stdout


def test_a_process_that_dies_is_told_with_its_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunError, match=r"^bench: half: its process was ended by SIGSEGV"):
        alone("half", "dying")


def test_an_unknown_measurement_is_answered_with_the_known_ones() -> None:
    shown = CliRunner().invoke(app, ["bench", "fats"])
    assert shown.exit_code == 2
    assert shown.stderr == "no measurement `fats`; there are fast, small, gpu\n"
    assert CliRunner().invoke(app, ["bench", "--trials", "0"]).exit_code == 2


def test_a_mixing_step_is_measured_in_matrices() -> None:
    found = peers._alone(5, 4000)
    assert found["seconds"] > 0 and found["matrices"] > 2  # of a process that has more than 80 kB


def test_peers_and_the_server_beside_them_have_the_same_work(tmp_path: Path) -> None:
    hows = ("strategy: dsgd\nschedule: {name: gossip, topology: ring}\n", "strategy: fedavg\nschedule: {name: rounds, cohort: all}\n")
    for place, how in enumerate(hows):
        file = tmp_path / f"{place}.yaml"
        file.write_text(peers.meeting(how))
        with trusting("fedsim.bench"):
            [loaded] = load(file)
        assert loaded.scenario.strategy.schedule.concurrency_limit(64) == 64


def test_the_queue_is_measured_with_all_events_still_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "MILLION", 1000)
    [figure] = scale.events(100, 1)
    assert figure.name == "event queue, a million in flight, by 100"
    assert figure.ratio == figure.ours / 1e6 > 0
    queue = EventQueue()
    queue.push(np.arange(10), np.arange(10), np.arange(10))
    scale._through(queue, np.full((2, 5), 100))
    assert queue.all().time.tolist() == list(range(100, 110))


def test_setting_up_and_working_are_measured_by_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "MILLION", 5000)
    found = scale._alone(time.monotonic() - 3)
    assert 3 < found["setup"] < 60
    assert found["peak"] > 50


def test_runs_that_are_compared_are_whole(tmp_path: Path) -> None:
    """Three evaluations of nine updates each; a tenth of the work is dropped."""
    runs = runs_in(comparing.sweep_in(tmp_path, 3, "sweep: {grid: {train.lr: [0.1, 0.2]}}\n"))
    assert [inspect_run(run)[1] for run in runs] == [True, True]
    found = compared(runs)
    assert [(row.name, row.over("work/updates"), row.ends[0].wasted) for row in found.rows] == [
        ("lr 0.1", [27], 0.1),
        ("lr 0.2", [27], 0.1),
    ]


def test_two_rates_are_compared_trial_by_trial() -> None:
    first, second = iter([9.0, 4.0, 6.0, 8.0]), iter([1.0, 2.0, 2.0, 8.0])
    assert side_by_side("demo", 3, lambda: next(first), lambda: next(second)) == (6.0, 2.0, 2.0)  # ratios 2, 3 and 1


def test_a_method_is_measured_beside_fedavg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "MLP", Workload("logistic", 2, 1))
    [figure] = methods.beside_fedavg("FedStale", "{name: fedstale, beta: 1}", 0.85, 2, 1)
    assert figure.name == "FedStale beside FedAvg, MLP, cohort 50" and figure.target == 0.85
    assert figure.ratio == figure.ours / figure.other > 0


def test_a_server_that_remembers_is_measured_with_all_its_rows(tmp_path: Path) -> None:
    run = methods.filled(tmp_path, 200, "logistic")
    assert run.fed.state["last"].memories.count == 200
    run.close("finished")


def test_what_codecs_get_through_is_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "SIZE", 512)
    figures = codecs.codecs(1)
    wanted = {figure.name.split(",")[0]: figure.other for figure in figures if figure.target == 1}
    assert wanted == {"codec topk": 100, "codec blocks8": 200, "codec qsgd": 200, "codec countsketch": 100, "codec srht": 50}
    assert len(figures) == 2 * len(codecs.TARGETS) and all(figure.ratio == figure.ours / figure.other > 0 for figure in figures)
