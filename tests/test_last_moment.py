"""The end of a run: who is still taken in at its last moment, and the state that it leaves for a longer one."""

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
