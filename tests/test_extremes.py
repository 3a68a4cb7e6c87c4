"""Every setting at and beyond its ends: a scenario loads and can be built, or one error names the place; nothing else ever happens."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from extremes import TINY, cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launch import refused

from fedsim.base.errors import Problem, ScenarioError, SettingError
from fedsim.run.building import Tasks, build
from fedsim.scenario import Loaded, load

CASES = [(setting, words) for setting, words in cases() if not setting.startswith("data.hub.")]


@contextmanager
def patience(seconds: int, words: list[str]) -> Iterator[None]:
    """What takes longer is a hang."""

    def late(*_: object) -> NoReturn:
        pytest.fail(f"hangs: {words}")

    usual = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


def tried(folder: Path, words: list[str], built: bool) -> None:
    (folder / "tiny.yaml").write_text(TINY)
    runs: list[Loaded] = []
    problems: list[Problem] = []
    with patience(60, words):
        try:
            runs = load(folder / "tiny.yaml", words)
            for run in runs if built else ():
                build(run, Tasks())
        except ScenarioError as error:
            problems = error.problems
        except SettingError as error:
            problems = [runs[0].problem(error)]
    assert all(problem.file and problem.message for problem in problems), words


@pytest.mark.filterwarnings("error")
def test_one_end_of_each_setting_is_read(tmp_path: Path) -> None:
    last = {name: words for place, (name, words) in enumerate(CASES) if place % 5}
    assert len(last) > 300
    for words in last.values():
        tried(tmp_path, words, built=False)


@pytest.mark.filterwarnings("error")
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.sampled_from(CASES))
def test_a_scenario_with_an_extreme_setting_is_built_or_refused(tmp_path: Path, case: tuple[str, list[str]]) -> None:
    tried(tmp_path, case[1], built=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["world.network.up=1e300 GB/s"], "world.network.up: `1e300 GB/s`: at most 1000000000 GB/s is due"),
        (["world.network={up: 1 B/s}", "world.compute.step=0.1 ns"], "world.compute.step: `0.1 ns`: unknown unit"),
        (["schedule.deadline=1e-12 s"], "schedule.deadline: `1e-12 s`: the clock counts in ns; at least 0.000000001 s is due"),
        (["task.partition.nodes=1000000000"], "task.partition.nodes: `1000000000`: at least 1 and at most 10000000 is due"),
        (["task.data.samples=1000000000000"], "task.data: gaussians: 2,000,000,000,000 samples of 3 numbers take 22351.7 GiB"),
        (["train.lr=1e300"], "train.lr: `1e300`: at most 1e+30 is due"),
        (["task.model={name: mlp, hidden: [1000000000000]}"], "task.model: mlp with 6,000,000,000,002 parameters would take about 192 TB"),
        (["task.model={name: mlp, hidden: [99999999999999, 99999999999999]}"], "task.model: mlp has more parameters than can be counted"),
        (["engine.threads=9999"], "engine.threads: `9999`: at least 1 and at most 256 is due, or `auto`"),
        (["world.compute.job=1e9 d"], "world.compute.job: `1e9 d`: at most 50000 d is due"),
        (["world.compute.job=40000 d"], "world.compute.job: 40,000 days are more than the clock can count, 3,336 days in ticks of 1 ns"),
        (["world.compute.sample=3000 d"], "world.compute: 30,000 days are more than the clock can count"),
        (["world.energy.compute=1e9 W", "world.compute.job=10 d", "stop.rounds=1"], ""),
        (["world.network.loss={name: independent, chance: {name: uniform, from: 0, to: 1}}"], "at most 99.9 % is due"),
        (
            ["world.faults.lost={name: linear, from: 0, to: 1}", "world.faults.crash={name: pareto, least: 1, shape: 1}"],
            "a share is 0 to 1",
        ),
    ],
)
def test_what_overflows_has_its_place_and_its_reason(folder: Path, words: list[str], said: str) -> None:
    (folder / "tiny.yaml").write_text(TINY)
    if said:
        message = refused("validate", "tiny.yaml", *words)
        assert said in message.replace("\n", " ") and re.match(r"(command line|tiny\.yaml)", message)
    else:
        tried(folder, words, built=True)


def test_a_time_beyond_fine_ticks_is_refused_with_the_cure_and_the_cure_is_one(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(TINY.replace("1 s", "1.000000000001 s"))
    words = ["world.availability={name: timetable, joins: {0: 120 d}}"]
    message = refused("validate", "tiny.yaml", *words)
    assert "world.availability: joins.0: 120 days are more than the clock can count, 53.38 days in ticks of 0.001 ns" in message
    assert "with a longer `stop.seconds`, or with times in whole ns, ticks are longer" in message
    (run,) = load("tiny.yaml", [*words, "stop.seconds=121 d"])
    assert build(run, Tasks()).fed.nature.per_second == 10**9


def test_heavy_tails_that_are_cut_say_so_once(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(TINY)
    job = "world.compute.job={name: pareto, least: 1 s, shape: 0.001}"
    (run,) = load("tiny.yaml", [job, "world.network.up={name: log_normal, median: 1 MB/s, sigma: 50}"])
    notes = build(run, Tasks()).fed.nature.notes
    assert [*notes] == ["compute.job", "network.up"]
    assert re.fullmatch(r"the times of \d nodes are cut to 3,336 days, the longest that the clock can count", notes["compute.job"])
    assert re.fullmatch(r"the rates of \d nodes are cut to 1 B/s to 1e\+18 B/s", notes["network.up"])
    (run,) = load("tiny.yaml", ["world.compute.jitter={name: pareto, shape: 0.001}", "track=none"])
    built = build(run, Tasks())
    assert not built.fed.nature.notes
    built.execute(folder / "run")
    log = (folder / "run" / "log.txt").read_text()
    assert log.count("world.compute: jobs that jitter or bursts make longer than 3,336 days are cut to it") == 1
