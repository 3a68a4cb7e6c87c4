"""Runs that would never end: `stop.wall` is obeyed wherever they are, and where nothing can happen any more they end with the reason."""

from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from extremes import TINY

from fedsim.run.building import Tasks, build
from fedsim.run.folders import RunFolder
from fedsim.run.replay import replay
from fedsim.run.runner import Run
from fedsim.scenario import load

BUFFER = ["strategy=fedbuff", "schedule={name: buffered, size: 2}"]
WALL = "stop={rounds: null, wall: 300 ms, seconds: 10000 d}"


def ran(folder: Path, *words: str) -> tuple[Run, dict[str, Any]]:
    (folder / "tiny.yaml").write_text(TINY)
    run = build(load(folder / "tiny.yaml", ["track=none", *words])[0], Tasks())
    return run, run.execute(folder / "run")


@pytest.mark.parametrize(
    "words",
    [
        [*BUFFER, "world.faults.lost=100%"],
        [*BUFFER, "world.faults.crash=100%"],
        ["strategy=fedbuff", "schedule={name: buffered, size: 2, max_staleness: 1}", "world.faults.lost=100%"],
        [*BUFFER, "world.network={server_up: 1 kB/s}", "world.faults.crash=100%"],
        [*BUFFER, "world.availability={name: diurnal, share: 1 %, leaving: drop}", "world.compute.job=9 h"],
        ["evaluate.every=1 us"],
        ["schedule={name: ticks, every: 1 us}", "world.compute.job=1 d"],
        ["world.availability={name: markov, on: 1 us, off: 1 us}", "schedule={name: ticks, every: 1 us}"],
        [*BUFFER, "world.compute.jitter={name: uniform, from: 0, to: 0}"],
        ["strategy=adpsgd", "world.compute.job=1 us"],
        ["train.steps=100000000"],
        ["train.steps=100000000", "engine={plan: stacked, processes: 2, chunk: 1}"],
    ],
    ids=str,
)
def test_the_host_s_time_is_obeyed(folder: Path, words: list[str]) -> None:
    run, info = ran(folder, *words, WALL)
    if info["final"]["work/updates"]:
        assert (info["status"], info["reason"]) == ("finished", "300 ms of wall time")
    else:
        assert info["status"] == "failed" and info["reason"].startswith("nothing merged (300 ms of wall time; ")
    assert monotonic() - run.began < 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*BUFFER, "world.faults.lost=100%"], "jobs in a row brought no update: all crashed, got lost, were dropped or came too late"),
        ([*BUFFER, "world.faults.crash=100%"], "jobs in a row brought no update"),
        (["world.faults.lost=100%"], "jobs in a row brought no update"),
        (["schedule={name: rounds, deadline: 1 ms}"], "jobs in a row brought no update"),
        ([*BUFFER, "world.availability={name: diurnal, share: 1 %, leaving: drop}", "world.compute.job=9 h"], "brought no update"),
        (
            ["schedule={name: ticks, every: 1 s}", "world.availability={name: bernoulli, chance: 0}"],
            "nobody was there in 300 rounds in a row",
        ),
        (["schedule={name: rounds, deadline: 1 s, sampling: {name: bernoulli, chance: 0}}"], "nobody was there in 300 rounds in a row"),
    ],
    ids=str,
)
def test_where_nothing_can_happen_any_more_a_run_ends_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr("fedsim.federation.health.HOPE", 300)
    _, info = ran(folder, *words, "stop={rounds: null, updates: 5}")
    assert info["status"] == "failed" and said in info["reason"]


def test_a_run_that_the_host_s_clock_ended_within_a_round_is_computed_again_as_far_as_it_came(folder: Path) -> None:
    _, info = ran(folder, *BUFFER, "world.faults.lost={name: linear, from: 0.9, to: 1}", "evaluate.every=1 ms", WALL)
    assert "300 ms of wall time" in info["reason"]
    lines, same = replay(RunFolder(folder / "run"), Tasks())
    assert same, lines
