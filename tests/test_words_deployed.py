"""What servers and workers say: who joined with what, who was refused and why, and of trouble no more than is read."""

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deployed import deployed, threads, written
from launch import call
from machines import Machines
from rich.console import Console

from fedsim.deploy import saying, telling
from fedsim.deploy.saying import Saying
from fedsim.deploy.telling import Logged, Telling
from fedsim.report.screen import standing
from fedsim.report.screen.standing import Standing
from fedsim.run.folders import RunFolder
from fedsim.transport.messages_pb2 import Job, Order, Reply
from fedsim.transport.session import Away, Back, Joined, Left

__all__ = ["threads"]
FACTS = {"name": "hospitals", "hash": "3f9a1c77", "counts": [4700, 8], "model": "cnn_gn", "parameters": 460_000, "device": "cuda:0"}
FACTS |= {"hardware": "H100", "plan": "stacked"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time."""
    now = [1000.0]
    for module in (saying, telling, standing):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def pass_(seconds: float) -> None:
        now[0] += seconds

    return pass_


def test_a_worker_says_what_it_found_and_of_trouble_a_word_each_ten_seconds(clock: Callable[[float], None]) -> None:
    said, outlet = list[str](), SimpleNamespace(connected=False, clock=None)
    words = Saying(said.append, lambda: outlet)  # type: ignore[arg-type, return-value]
    for seconds in (0, 3, 4, 3.5, 2):
        clock(seconds)
        words.state(f"no connection at {seconds}")
    assert said == ["no connection at 0", "no connection at 3.5"] and words.line() == ""
    words.found("run", [1], FACTS)
    outlet.connected = True
    words.state("connected")
    assert said[2:] == ["joined hospitals 3f9a1c as node 1: 4,708 samples, cnn_gn 0.46 M, cuda:0 H100"]
    outlet.connected = False
    words.state("it broke")
    clock(4)
    words.state("it is still broken")
    assert words.line().endswith("no connection for 4 s")
    clock(8.5)
    outlet.connected = True
    words.state("connected")
    assert said[3:] == ["it broke", "connected again after 12.5 s"]
    outlet.clock = (0.0004, -3600.0)
    assert "no connection" not in words.line() and "no connection" not in words.line()
    assert said[5:] == ["the server's clock is 1.0 h behind; 0.40 ms there and back"]


def test_a_worker_counts_its_jobs(clock: Callable[[float], None]) -> None:
    words = Saying(lambda text: None, lambda: SimpleNamespace(connected=True, clock=None))  # type: ignore[arg-type, return-value]
    words.found("run", [0, 1, 2, 3], FACTS)
    words.state("connected")
    words.ordered(Order(jobs=[Job(id=id, round=12) for id in range(8)], done=[7]))
    assert words.line() == "nodes 0..3  round 12  0 jobs done, 7 to do"
    words.replied(Reply(jobs=[0, 1, 2, 3], work=0.8))
    words.settled([4])
    assert words.line() == "nodes 0..3  round 12  4 jobs done, 2 to do  0.40 a second  200 ms a job"
    clock(11)
    assert words.line() == "nodes 0..3  round 12  4 jobs done, 2 to do  200 ms a job"


def test_a_server_says_who_comes_and_goes(clock: Callable[[float], None]) -> None:
    said = list[str]()
    tell = Telling(30.0, said.append)
    tell(Joined(b"w", "wards", (0, 1), json.dumps(FACTS).encode()))
    for event in (Away(b"w"), Back(b"w"), Away(b"w"), Back(b"w")):
        clock(2)
        tell(event)
    clock(10)
    tell(Away(b"w"))
    tell(Left(b"w", (0, 1), "nothing was heard of it for 30 s"))
    assert [re.sub(r"\d\d:\d\d:\d\d", "AT", text) for text in said] == [
        "wards: nodes 0..1 joined: 4,708 samples, cuda:0 H100, plan stacked",
        "wards: its connection broke at AT; nodes 0..1 may be away for 30 s",
        "wards: back after 2 s",
        "wards: back after 6 s",
        "wards: its connection broke at AT; nodes 0..1 may be away for 30 s",
        "wards: nodes 0..1 lost: nothing was heard of it for 30 s (since AT)",
    ]


def test_of_many_lines_of_the_log_some_are_said(clock: Callable[[float], None]) -> None:
    said, log = list[str](), logging.getLogger("fedsim.transport.service")
    with Logged(said.append):
        for number in range(9):
            log.info("10.0.0.6:%d: refused: \x1b[2J", number)
        clock(11)
        log.info("at last")
    log.info("nobody hears it")
    assert said == [*(f"10.0.0.6:{number}: refused: \ufffd[2J" for number in range(5)), "at last (4 lines like this left out)"]


def test_how_it_stands_is_a_line_each_ten_seconds_or_painted_on_a_terminal(clock: Callable[[float], None]) -> None:
    plain, painted = io.StringIO(), io.StringIO()
    with Standing(console=Console(file=plain, width=80)) as line:
        for text, seconds in (("", 0), ("one", 0), ("two", 5), ("three", 5), ("three", 10), ("four", 0)):
            clock(seconds)
            line.show(text)
    assert plain.getvalue().split() == ["one", "three", "four"]
    with Standing(console=Console(file=painted, width=80, force_terminal=True)) as line:
        line.show("one")
        line.say("something happened")
        line.show("two")
    assert all(text in painted.getvalue() for text in ("one", "something happened\n", "two", "\x1b[2K"))
    silent = io.StringIO()
    with Standing(True, Console(file=silent)) as line:
        line.show("one")
        line.say("two")
    assert silent.getvalue() == ""


TEXT = """
task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: logistic}
strategy: fedavg
schedule: {name: rounds, cohort: 4}
stop: {rounds: 3}
deploy: {silence: 20 s, start_with: all}
"""


@pytest.mark.usefixtures("threads")
def test_run_json_has_who_worked_and_what_was_carried(tmp_path: Path) -> None:
    info = deployed(written(tmp_path, TEXT), tmp_path / "run", ["0..2", "3..5"])
    found: dict[str, Any] = info["deployed"]
    assert sorted(one["nodes"] for one in found["workers"]) == ["0..2", "3..5"]
    assert sum(one["jobs"] for one in found["workers"]) == 12 and {one["plan"] for one in found["workers"]} == {"stacked"}
    for way in ("up", "down"):
        assert found[f"carried_{way}"] == sum(one[way] for one in found["workers"])
    assert found["carried_up"] > RunFolder(tmp_path / "run").metrics[-1]["traffic/bytes_up"]
    shown = call("inspect", tmp_path / "run")
    assert shown.exit_code == 0 and re.search(r"\n  carried  up .*kB  down .*kB\n", shown.stdout)
    assert len(re.findall(r"\n  worker   \S+  nodes \d\.\.\d  cpu  stacked  up .*  down .*  \d+ jobs?", shown.stdout)) == 2


def test_servers_and_workers_say_what_they_found(tmp_path: Path) -> None:
    with Machines(tmp_path, forked=True) as machines:
        machines.serve(written(tmp_path, TEXT), "world.network.up=1MB/s", "world.faults.crash=0.1")
        machines.until(lambda: "begins with 6" in machines.said("server"), 120)
        assert "world.network, world.faults: unused here" in machines.said("server")
        machines.join("9")
        assert machines.ends("9") == 2
        assert "there is no node 9; this run has nodes 0..5" in machines.said("9")
        machines.until(lambda: re.search(r"\S+ \(127\.0\.0\.1:\d+\): refused: there is no node 9\n", machines.said("server")))
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        assert machines.ends("server", 180) == machines.ends("0..2") == machines.ends("3..5") == 0, machines.said("server")
        run = machines.run
        assert run
        joined = f"joined it {run.info['hash'][:6]} as nodes 0..2: "
        assert re.search(rf"\n{joined}[\d,]+ samples, logistic 0\.65 k, cpu\n", machines.said("0..2")), machines.said("0..2")
        assert re.search(r"\n\S+: nodes 0\.\.2 joined: [\d,]+ samples, cpu, plan stacked\n", machines.said("server"))
        assert "the run is over: finished: 3 rounds" in machines.said("0..2")
