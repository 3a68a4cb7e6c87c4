"""The end of a run: who is still taken in at its last moment, and the state that it leaves for a longer one."""

from itertools import count
from pathlib import Path

import pytest
from launch import TASKS, resumed, same, simulate

from fedsim.report.checks import MERGE
from fedsim.run.building import build
from fedsim.run.folders import RunFolder
from fedsim.run.resume import reload, reopen

QUICK = ("engine.plan=looped", "train.steps=1", "evaluate.every=1 s")
ASYNCHRONOUS = ("strategy=fedbuff", "schedule={name: buffered, size: 2, concurrency: 5}")
KINDS = {
    "rounds": ((), "stop.seconds"),
    "asynchronous": (ASYNCHRONOUS, "stop.seconds"),
    "pairs": (("strategy=dsgd", "schedule=pairwise"), "stop.seconds"),
    "counted": (ASYNCHRONOUS, "stop.rounds"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_run_goes_on_where_it_ended(folder: Path, kind: str) -> None:
    """Of the short run nothing is computed again but the round within which its time was up."""
    settings, key = KINDS[kind]
    ends = ("6.2 s", "9 s") if key == "stop.seconds" else ("4", "6")
    short, long = ((f"{key}={end}", *(("stop.rounds=null",) if key == "stop.seconds" else ())) for end in ends)
    whole = simulate(folder, *QUICK, *settings, *long, into="long")
    path = simulate(folder, *QUICK, *settings, *short, into="short").path
    done = RunFolder(path).info["final"]
    same(whole, resumed(path, long[0]))
    [at] = RunFolder(path).info["resumed"]
    assert done["round"] - 1 <= at["round"] <= done["round"] and at["round"] > 0


@pytest.mark.parametrize("kind", ["rounds", "asynchronous"])
def test_an_evaluation_by_the_clock_that_confirms_the_accuracy_is_the_last(folder: Path, kind: str) -> None:
    """Evaluations within rounds: none comes after, no update is merged after, and a longer run goes on from that round's top."""
    settings = (*QUICK, *KINDS[kind][0], "stop.rounds=40", "evaluate.every=0.3 s", "evaluate.smooth=2")
    whole = simulate(folder, *settings, "stop.accuracy=40 %", into="long")
    run = simulate(folder, *settings, "stop.accuracy=30 %", into="short")
    accuracy = run.column("test/accuracy")
    assert run.info["reason"] == "accuracy 30 %" and accuracy[-2:].mean() >= 0.3 > max(
        accuracy[:-1][k : k + 2].mean() for k in range(len(accuracy) - 2)
    )
    assert run.info["final"]["time/seconds"] * 10 % 3 == pytest.approx(0)
    same(whole, resumed(run.path, "stop.accuracy=40 %"))
    [at] = RunFolder(run.path).info["resumed"]
    assert at["round"] >= run.info["final"]["round"] - 1 > 0


def test_a_run_that_the_host_s_clock_ended_within_a_round_goes_on_from_that_round(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's clock moves a second each time that it is asked."""
    clock = count(1000.0)
    for module in ("run.runner", "run.guard", "run.measured", "run.runfolder", "run.resume", "method.local"):
        monkeypatch.setattr(f"fedsim.{module}.monotonic", lambda: next(clock))
    settings = (*QUICK, *ASYNCHRONOUS, "stop.rounds=null", "checkpoint.every=1000 rounds")
    path = simulate(folder, *settings, "stop.wall=200 s", into="short").path
    done = RunFolder(path).info["final"]
    assert done["round"] > 5
    resumed(path, "stop.wall=300 s")
    [at] = RunFolder(path).info["resumed"]
    assert done["round"] - 1 <= at["round"] <= done["round"]


def test_all_who_arrive_at_the_last_moment_are_taken_in(folder: Path) -> None:
    """Jobs of 2 s, one merge each; at 6 s all eight arrive a third time: 3 x 8 merges."""
    world = ("world.compute.job=2 s", "world.network=null", "strategy=fedasync", "schedule={name: buffered, size: 1}", "stop.rounds=null")
    run = simulate(folder, *QUICK, *world, "stop.seconds=6 s")
    times = run.columns["time"][run.columns["kind"] == MERGE] // run.ticks_per_second
    assert times.tolist() == [2] * 8 + [4] * 8 + [6] * 8


def test_a_round_that_is_due_at_the_last_moment_is_merged_and_none_begins(folder: Path) -> None:
    run = simulate(folder, *QUICK, "world.compute.job=2 s", "world.network=null", "stop.rounds=null", "stop.seconds=6 s")
    assert run.info["final"]["round"] == 3 and run.info["final"]["work/updates"] == 12
    assert run.columns["time"][run.columns["kind"] == 0].max() == 4 * run.ticks_per_second


def test_a_run_without_checkpoints_keeps_none(folder: Path) -> None:
    assert not (simulate(folder, *QUICK, "checkpoint=none").path / "checkpoints").exists()


def test_what_a_longer_run_does_not_measure_is_not_in_its_records(folder: Path) -> None:
    """A metric with its own `every` is measured at the end too, and not there where the end comes later."""
    often = ("evaluate.every=1 rounds", "evaluate.metrics=[accuracy, loss, {name: gradient_norm, every: 3 rounds}]")
    whole = simulate(folder, *QUICK, *often, "stop.rounds=4", into="long")
    path = simulate(folder, *QUICK, *often, "stop.rounds=2", into="short").path
    assert "train/gradient_norm" in RunFolder(path).info["final"]
    run = build(reload(path, ["stop.rounds=4"]), TASKS)
    assert reopen(run, path) == ["resumed from the checkpoint after round 2"]
    run.execute(path)
    same(whole, RunFolder(path))
