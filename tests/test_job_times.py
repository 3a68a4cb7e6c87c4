"""Measured times of jobs: each format by hand, what comes after an end, and what is wrong with broken ones."""

import json
import pickle
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tools import events, quadratics, run, steps

from fedsim.base.errors import SettingError
from fedsim.commands.coding_probe import main
from fedsim.schedule import Rounds
from fedsim.settings.values import Count, PerNode, Population
from fedsim.world import Compute, FileTimes, Nature, World
from fedsim.world.job_times import read_times
from strategies.fedavg import FedAvg

TIMES = [[1.0, 2.0, 4.0], [3.0, 2.0, 0.5]]  # of two jobs of three nodes
Written = Callable[[str, str | bytes], str]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, content: str | bytes) -> str:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return str(tmp_path / name)

    return write


def profile() -> list[object]:
    """As the authors of M-SGC wrote theirs: a worker's number is NumPy's, an answer and what kind it was stand beside the times."""
    answer = {"response": {}, "payload": {"grads": {"type": list, "len": 8}}}
    workers = [[{"worker_id": np.int32(at), "started": 5.0, "finished": 5.0 + t, **answer} for at, t in enumerate(r)] for r in TIMES]
    return [{"round": at, "started": 5.0, "finished": 9.0, "results": one} for at, one in enumerate(workers)]


def test_formats(written: Written, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array(TIMES))
    plain = [{"results": [{"started": 0, "finished": time} for time in row]} for row in TIMES]
    files = [
        str(tmp_path / "t.npy"),
        written("t.csv", "1,2,4\n3,2,0.5\n"),
        written("named.csv", "a,b,c\n1,2,4\n\n3,2,.5\n"),
        written("long.csv", "seconds,node,job,what\n3,0,7,x\n1,0,2,x\n2,1,0,x\n2,1,1,x\n4,2,0,x\n0.5,2,9,x\n"),
        written("rows.json", json.dumps(TIMES)),
        written("nodes.json", json.dumps({"x": [1, 3], "y": [2, 2], "z": [4, 0.5]})),
        written("rounds.json", json.dumps(plain)),
        written("rounds.pkl", pickle.dumps(profile())),
    ]
    for file in files:
        assert read_times(file).tolist() == TIMES, file
    assert np.array_equal(read_times(written("short.csv", "1,2,4\n3,,0.5\n")), [[1, 2, 4], [3, np.nan, 0.5]], equal_nan=True)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("t.csv", "1,2\n3,x\n", ":2: column 2: `x` is no number"),
        ("t.csv", "1,2\n3\n", ":2: 1 times, and 2 nodes in the first line"),
        ("t.csv", "1,2\n3,-1\n", ": job 1 of node 1 (the first are 0): -1: a time from 0 is due"),
        ("t.csv", "1,\n3,2\n", ": job 1 of node 1 (the first are 0): 2: a gap before it; times may end early"),
        ("t.csv", "", ": a matrix [jobs, nodes] of numbers is due, not float64 [0]"),
        ("t.csv", "node,job,seconds\n0,0,1\n2,0,1\n", ": there is no job of node 1"),
        ("t.csv", "node,job,seconds\n0,0,1\n0,0,1\n", ":3: job 0 of node 0 stands there twice"),
        ("t.json", '[{"results": [{"started": 1}]}]', ": round 0, worker 0: numbers `started` and `finished` are due"),
        ("t.json", '{"a": 3}', ": node a: a list of times is due"),
        ("t.json", "{", " can't be read as .json"),
        ("t.pkl", pickle.dumps(Fraction(1)), " can't be read as .pkl: it names `fractions.Fraction`"),
        ("t.npy", pickle.dumps(1), " can't be read as .npy"),
        ("t.txt", "1", ": a file of .csv, .json, .npy, .pkl is due"),
    ],
)
def test_broken_files(written: Written, name: str, content: str | bytes, why: str) -> None:
    file = written(name, content)
    with pytest.raises(ValueError, match=f"^{re.escape(file + why)}"):
        read_times(file)


def test_rounds_last_as_long_as_their_slowest_measured_job(written: Written) -> None:
    """Rounds of 4 s and 3 s, then from the first again; work is what was measured and 1 s a sample, in halves of a second."""
    trace = FileTimes(written("t.csv", "2,4,8\n6,4,1\n"), unit=Fraction(1, 2))
    strategy = FedAvg(train=steps(1, batch=1), schedule=Rounds(cohort=Count()))
    found = events(run(quadratics([1.0, 2.0, 3.0]), strategy, 3, World(Compute(trace=trace))), "merge")
    assert sorted(set(found["time"].tolist())) == [4.0, 7.0, 11.0]
    found = events(run(quadratics([1.0, 2.0, 3.0]), strategy, 2, World(Compute(sample=PerNode(Fraction(1)), trace=trace))), "merge")
    assert sorted(set(found["time"].tolist())) == [5.0, 9.0]


def test_after_its_end(written: Written) -> None:
    file, people, one = written("t.csv", "1,2\n3,\n"), Population(2, {}), np.ones(2, dtype=np.int64)
    nature = Nature(World(Compute(trace=FileTimes(file))), people, 0, 10)
    assert [nature.work(np.arange(2), one, one, one * turn).tolist() for turn in (1, 2, 3)] == [[10, 20], [30, 20], [10, 20]]
    assert nature.work(np.arange(2), one, one).tolist() == [20, 20]
    strict = Nature(World(Compute(trace=FileTimes(file, end="error"))), people, 0, 10)
    assert strict.work(np.array([0]), one[:1], one[:1], one[:1] * 2).tolist() == [30]
    with pytest.raises(SettingError, match=r"node 1 begins its job 2, and .*t.csv has 1 of it") as caught:
        strict.work(np.arange(2), one, one, one * 2)
    assert caught.value.key == "world.compute.trace"
    with pytest.raises(SettingError, match="has the times of 2 nodes, and there are 3"):
        Nature(World(Compute(trace=FileTimes(file))), Population(3, {}), 0, 10)
    shared = Nature(World(Compute(trace=FileTimes(file, lot=0))), Population(4, {}), 0, 10)
    assert sorted(shared.work(np.arange(4), *(np.ones(4, dtype=np.int64),) * 3).tolist()) == [10, 10, 20, 20]


def test_a_probe_of_gradient_coding_takes_the_trace(written: Written, capsys: pytest.CaptureFixture[str]) -> None:
    """80 jobs, one of two workers slow in each: 5 s uncoded; coded twice, 1 s of the faster one and the `patience` of 1 s after it."""
    written("t.csv", "1,5\n5,1\n")
    text = "task: {data: digits, partition: {name: iid, nodes: 2}}\nworld: {compute: {trace: {file: t.csv}}}\n"
    file = written("s.yaml", text + "strategy: {name: gradient_coding, batch: 10, models: 1}\n")
    assert main([file]) == 0
    assert [line.split()[-4] for line in capsys.readouterr().out.splitlines()][:2] == ["400.00", "160.00"]
    assert main([file, "world.compute.trace.file=u.csv"]) == 2
    assert "world.compute.trace: no file `u.csv`" in capsys.readouterr().err
