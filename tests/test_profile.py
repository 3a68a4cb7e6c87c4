"""`fedsim profile`: fits by hand, a record whose world is known, a real run over loopback, and what can't be measured."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import deployed, threads, written
from launch import call, simulate

from fedsim.deploy import fits
from fedsim.deploy.decisions import RECORD, Decision, End
from fedsim.deploy.measuring import profile
from fedsim.deploy.worlds import rate, time
from fedsim.report.checks import PARTS
from fedsim.run.building import Tasks, build
from fedsim.run.folders import RunFolder
from fedsim.scenario import load

__all__ = ["threads"]


def test_a_line_through_transfers_a_quarter_of_which_went_wrong() -> None:
    """10 ms, and 1 MB/s; every fourth took some seconds longer."""
    size = np.arange(1, 41) * 1e4
    seconds = 0.01 + size * 1e-6
    seconds[::4] += np.arange(10)
    slope, rest = fits.line(size, seconds, 0.5)
    assert abs(slope / 1e-6 - 1) < 0.05 and abs(rest - 0.01) < 0.005
    assert fits.line(size, 0.01 + size * 1e-6, 0.5) == pytest.approx((1e-6, 0.01))


def test_transfers_of_one_size_need_to_know_the_rest() -> None:
    """1 kB in 30, 20 and 22 ms: 12 ms beside a rest of 10; a rest is no longer than the quickest took, and sizes may be 0."""
    size, seconds = np.full(3, 1000.0), np.array([0.03, 0.02, 0.022])
    assert fits.line(size, seconds, 0.01) == pytest.approx((12e-6, 0.01))
    assert fits.line(size, seconds, 0.1) == pytest.approx((2e-6, 0.02))
    assert fits.line(size[:1] * 0, seconds[:1], 0.0) == pytest.approx((0.03, 0.0))
    # the larger are the quicker, or larger by more than they take: a line would have a negative part
    assert fits.line(np.array([1.0, 2, 3, 4, 5]), np.array([5.0, 4, 3, 2, 1]), 0.5) == pytest.approx((0.8333, 0.5), abs=1e-3)
    assert fits.line(np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 3, 5, 7, 9]), 0.5) == pytest.approx((5 / 3, 0.0))


def test_work_of_stacks_by_what_it_follows() -> None:
    """3 ms once and 0.5 ms a sample, a few stacks ten times as slow; alone with stacks that are alike the first feature has it all."""
    samples, steps, jobs = np.array([[at, 1 + at % 3, 2 + at % 5] for at in range(10, 60)], dtype=float).T
    features = np.stack([samples, steps, jobs, np.ones(50)], 1)
    seconds = 0.003 + 0.0005 * samples
    seconds[::9] *= 10
    assert fits.work(features, seconds) == pytest.approx([0.0005, 0, 0, 0.003], abs=1e-9)
    assert fits.work(features[:1], seconds[:1] * 0) == pytest.approx([0, 0, 0, 0])
    assert fits.work(features[[3, 3, 3]], seconds[[3, 3, 3]]) == pytest.approx([seconds[3] / 13, 0, 0, 0])


def test_numbers_are_written_as_a_scenario_reads_them() -> None:
    assert [time(one) for one in (0.0, 0.0123456, 1.23456e-7, 12.3456, 60)] == ["0 s", "12350 us", "0.000000123 s", "12350 ms", "1 min"]
    assert [rate(one) for one in (0.0, 1e-6, 1 / 3, 8.0)] == ["null", "1 MB/s", "3 B/s", "1 B/s"]


KNOWN = """\
task: {data: digits, partition: {name: dirichlet, alpha: 0.5, nodes: 12}, model: logistic}
strategy: fedavg
train: {epochs: 1, batch: 8, lr: 0.1}
schedule: {name: rounds, cohort: all, sampling: {name: bernoulli, chance: 35 %}}
world:
  hosts: {nodes: [[0..3, 8], [4..7, 9..11]], stack: {0..3: 30 ms, 4..7: 10 ms, 8: 30 ms, 9..11: 10 ms}, merge: 5 ms, together: 100}
  compute: {sample: {0..3: 1 ms, 4..7: 2 ms, 8: 1 ms, 9..11: 2 ms}}
  network:
    up: {0..3: 100 kB/s, 4..7: 40 kB/s, 8: 100 kB/s, 9..11: 40 kB/s}
    down: 50 kB/s
    latency: 20 ms
stop: {rounds: 20}
track: none
"""


COUNTS = dict.fromkeys(("up", "down", "jobs", "since", "out", "came", "up_rate", "down_rate", "jobs_rate"), 0)
WORDS = dict.fromkeys(("name", "label", "folder", "status", "reason", "doing"), "")
NUMBERS = dict.fromkeys(("at", "began", "nodes", "round", "seconds", "end", "accuracy", "loss", "updates", "bytes"), 0)
THERE = COUNTS | {"address": "", "why": "", "state": "there", "round_trip": 0.04}
MACHINES = [THERE | {"id": name * 6, "name": name, "nodes": nodes} for name, nodes in (("a", "0..3,8"), ("b", "4..7,9..11"))]
WORKERS = json.dumps(WORDS | NUMBERS | {"full": False, "workers": MACHINES})


def recorded(run: RunFolder) -> RunFolder:
    """A simulated run's folder as its server would have left it: all transfers ask before they are sent, which takes a round trip."""
    columns, tick = run.columns, run.ticks_per_second // 1000
    sent = dict(zip(columns["job"][columns["kind"] == 0].tolist(), columns["time"][columns["kind"] == 0].tolist(), strict=True))
    ends = np.flatnonzero(columns["kind"] == 1)
    machine = np.isin(columns["node"], [0, 1, 2, 3, 8])
    found = []
    for at in ends:
        when, node, job, down, work, up, size = (int(columns[name][at]) for name in ("time", "node", "job", *PARTS, "bytes_up"))
        found.append(End(when, node, job, True, down + 20 * tick, work, up - 20 * tick, f"{sent[job]}-{machine[at]}", 0, size))
    (run.path / RECORD).write_bytes(Decision(0, None, ends=found).line())
    (run.path / "workers.json").write_text(WORKERS)
    return RunFolder(run.path)


def test_a_world_that_is_known_is_found(folder: Path) -> None:
    """From the record of a run in it; in the world that is found, another run takes the same time."""
    done = simulate(folder, text=KNOWN.replace("  faults: {lost: 1 %}\n", ""))
    shown = call("profile", recorded(done).path)
    assert shown.exit_code == 0 and all(len(line) <= 80 for line in shown.stdout.splitlines()[:4]), shown.output
    found = profile(RunFolder(done.path))
    assert [str(one.nodes) for one in found.machines] == ["0..3,8", "4..7,9..11"] and found.merge == pytest.approx(0.005)
    for one, stack, sample, up in zip(found.machines, (0.03, 0.01), (0.001, 0.002), (1e5, 4e4), strict=True):
        assert (one.stack, one.sample, one.job, one.step, one.off) == pytest.approx((stack, sample, 0, 0, 0), abs=1e-6)
        assert (1 / one.up, 1 / one.down, one.latency) == pytest.approx((up, 5e4, 0.02), rel=1e-3)
    assert profile(*[RunFolder(done.path)] * 2).machines[0].latency == pytest.approx(0.02, rel=1e-3)
    (folder / "other.yaml").write_text(f"extends: [small.yaml, {done.path}/world.yaml]\nschedule: {{sampling: uniform, cohort: 9}}\n")
    runs = [RunFolder(folder / name) for name in ("known", "found")]
    for run, file, settings in zip(runs, ("small.yaml", "other.yaml"), (["schedule={sampling: uniform, cohort: 9}"], []), strict=True):
        [loaded] = load(folder / file, settings)
        build(loaded, Tasks()).execute(run.path)
    assert runs[1].columns["time"] / runs[1].ticks_per_second == pytest.approx(runs[0].columns["time"] / runs[0].ticks_per_second, rel=2e-3)


def test_a_real_run_is_measured(folder: Path, threads: None) -> None:
    """Two workers of three nodes each over loopback: what is written is a world, in which the scenario runs; nothing takes no time."""
    file = written(folder, KNOWN.replace("nodes: 12", "nodes: 6").partition("world:")[0] + "stop: {rounds: 4}\ncheckpoint: none")
    deployed(file, folder / "run", ["0..2", "3..5"])
    assert call("profile", folder / "run", "--out", folder / "measured.yaml").exit_code == 0
    found = profile(RunFolder(folder / "run"))
    assert [str(one.nodes) for one in found.machines] == ["0..2", "3..5"] and all(one.stacks >= 3 for one in found.machines)
    assert all(
        one.up > 0 and one.down > 0 and one.latency > 0 and one.sample + one.step + one.job + one.stack > 0 for one in found.machines
    )
    (folder / "again.yaml").write_text("extends: [it.yaml, measured.yaml]\n")
    [loaded] = load(folder / "again.yaml")
    info = build(loaded, Tasks()).execute(folder / "simulated")
    real = RunFolder(folder / "run").info
    assert info["status"] == "finished" and info["model"] == real["model"]
    assert all(info["final"][f"traffic/bytes_{way}"] == real["final"][f"traffic/bytes_{way}"] for way in ("up", "down"))
    assert 0 < info["final"]["time/seconds"] < 60


def refused(*words: Any) -> str:
    result = call("profile", *words)
    assert result.exit_code == 2 and not result.stdout and "Traceback" not in result.stderr
    return result.stderr


def test_what_can_not_be_measured(folder: Path) -> None:
    run = simulate(folder, "stop.rounds=1").path
    assert "a simulated run, whose times are those of its `world`" in refused(run)
    (run / RECORD).write_bytes(Decision(0, 5, joined=[0]).line())
    assert "no job came back, so there is nothing to measure" in refused(run)
    line = Decision(3, None, ends=[End(9, 0, 0, True)]).line()
    (run / RECORD).write_bytes(line[:-9] + b"x" + line[-8:] + line)
    assert f"{RECORD}:1: damaged" in refused(run)
    (run / RECORD).write_bytes(line)
    two = shutil.copytree(run, folder / "two")
    (two / "workers.json").write_text(WORKERS)
    assert "two: its nodes were on other machines than those of" in refused(run, two)
    assert "can't be written" in refused(run, "--out", folder / "nowhere" / "world.yaml")
    (folder / "empty").mkdir()
    assert "no run" in refused(folder / "empty")
    assert "no run" in refused("nobody")
    shutil.rmtree(run)
    peers = simulate(folder, "strategy=dsgd", "schedule=gossip", "world=null", "stop.rounds=1").path
    (peers / RECORD).write_bytes(line)
    assert "a run of peers" in refused(peers)
    assert not (peers / "world.yaml").exists()
