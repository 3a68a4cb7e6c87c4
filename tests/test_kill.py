"""The real process is killed with SIGKILL, at one moment of each kind of run, at twenty with `make test-kill`; resumed = uninterrupted."""

import shutil
import signal
import time
from functools import cache
from pathlib import Path

import pytest
from launch import Forked, resumed, same, simulate, write

from fedsim.base.keys import fold, uniform
from fedsim.run.folders import RunFolder, find_runs

TOP = "{name: ef21, inner: {name: topk, fraction: 5 %}}"
RARE = ("world.availability={name: bernoulli, chance: 80 %}", "world.faults={crash: 10 %, lost: 10 %}")
KINDS = {
    "rounds": ("stop.rounds=60",),
    "error feedback": ("stop.rounds=50", f"uplink={TOP}"),
    "buffered": ("stop.rounds=75", "strategy=fedbuff", "schedule={name: buffered, size: 3, concurrency: 5}", "evaluate.every=20 s"),
    "unreliable": ("stop.rounds=75", "strategy=fedbuff", "schedule={name: buffered, size: 3}", *RARE),
    "ticks": ("stop.rounds=80", "strategy=fedfix", "schedule={name: ticks, every: 900 ms}"),
    "gossip": ("stop.rounds=50", "strategy=dsgd", "schedule=gossip"),
    "pairwise": ("stop.rounds=20", "strategy=dsgd", "schedule=pairwise"),
}
OFTEN = ("engine.plan=looped", "train.steps=1", "checkpoint=30 ms", "evaluate.every=25 rounds")


@cache
def uninterrupted(folder: Path, kind: str) -> RunFolder:
    return simulate(folder, *OFTEN, *KINDS[kind], "checkpoint=none", into=f"whole {kind}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the uninterrupted runs are."""
    return tmp_path_factory.mktemp("whole")


def kill(folder: Path, *settings: str, seconds: float) -> RunFolder | None:
    """The folder of a run whose process is killed so long after its run.json is there; None where it was finished before."""
    write(folder)
    process = Forked(folder, "run", "small.yaml", "--quiet", *settings)
    started, patience = folder / "runs/small/latest/run.json", time.monotonic() + 60
    while not started.exists():
        assert process.poll() is None and time.monotonic() < patience, (folder / "output.txt").read_text()
        time.sleep(0.005)
    time.sleep(seconds)
    process.kill()
    process.wait(60)
    [run] = find_runs(["small"], folder / "runs")
    if process.returncode == 0 or run.info["status"] == "finished":
        return None
    assert process.returncode == -signal.SIGKILL and run.info["status"] == "running"
    return run


def check(place: Path, folder: Path, kind: str, number: int) -> None:
    whole = uninterrupted(place, kind)
    moment = float(uniform(fold(number, kind), 1)) * 0.8 * whole.info["wall_seconds"]
    while (run := kill(folder, *OFTEN, *KINDS[kind], seconds=moment)) is None:  # others slowed the whole run down, not this one
        shutil.rmtree(folder / "runs")
        moment /= 2
    same(whole, resumed(run.path))


@pytest.mark.parametrize("kind", KINDS)
def test_killed_once(place: Path, folder: Path, kind: str) -> None:
    check(place, folder, kind, 0)


@pytest.mark.kill
@pytest.mark.parametrize("number", range(1, 21))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_twenty_moments(place: Path, folder: Path, kind: str, number: int) -> None:
    check(place, folder, kind, number)
