"""`fedsim watch`: what is shown of a run, asked of its server or read from its folder."""

import io
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from deployed import threads, written
from launch import call, simulate
from machines import Machines
from rich.console import Console
from trust import HERE

from fedsim.base.errors import FedsimError
from fedsim.report.screen.watching import Screen, follow, lines, missing, since
from fedsim.run.folders import RunFolder
from fedsim.transport.authority import issue, parse_workers
from fedsim.transport.handler import Refused
from fedsim.transport.hub import Hub
from fedsim.transport.identity import ServerIdentity, WorkerIdentity
from fedsim.transport.messages_pb2 import SCENARIO, Refusal
from fedsim.transport.objects import Store
from fedsim.transport.watching import NoAnswer, Server
from tests.outposts import Door

__all__ = ["threads"]
WORKER = {
    "id": "1",
    "name": "wards",
    "address": "10.0.0.6:4711",
    "nodes": "0..3",
    "state": "there",
    "since": 100.0,
    "why": "",
    "samples": 9,
}
WORKER |= {"device": "cuda:0", "hardware": "", "plan": "stacked", "version": "0", "torch": "0", "round_trip": 0.0004, "ahead": -0.003}
WORKER |= {"up": 12_000_000, "down": 40_000_000, "jobs": 1180, "out": 3, "came": 1, "up_rate": 1e6, "down_rate": 2e6, "jobs_rate": 3.2}
STATE: dict[str, Any] = {
    "name": "it",
    "label": "seed 0",
    "folder": "f",
    "at": 142.0,
    "here": 142.0,
    "began": 40.0,
    "status": "running",
    "reason": "",
}
STATE |= {"doing": "", "nodes": 8, "full": False, "round": 12, "seconds": 201.0, "end": 1200.0, "accuracy": 0.881, "loss": 0.3}
STATE |= {"updates": 96, "bytes": 189_000_000, "workers": [WORKER]}
LOST = WORKER | {
    "id": "2",
    "name": "labs",
    "nodes": "4..6",
    "state": "lost",
    "why": "nothing was heard of it for 30 s",
    "out": 0,
    "came": 0,
}
LOST |= {"up_rate": 0.0, "down_rate": 0.0, "jobs_rate": 0.0, "jobs": 20}


def test_a_state_in_lines() -> None:
    state = STATE | {"workers": [WORKER, LOST]}
    first, second = (f"{time.strftime('%H:%M:%S', time.localtime(at))}" for at in (100, 40))
    assert lines(state) == [
        "it seed 0  running  round 12  03:21/20:00  88.1 %  189 MB  3.00 MB/s",
        "  jobs     3 out, 1 back and waiting, 1,200 done, 3.20 a second",
        f"  missing  since {first} (42 s), nodes 4..6: nothing was heard of it for 30 s",
        f"           since {second} (1 min 42), node 7: no worker has joined with it yet",
        "  worker  nodes  address        device  trip     clock     up       down     jobs/s",
        "  wards   0..3   10.0.0.6:4711  cuda:0  0.40 ms  -3.00 ms  12.0 MB  40.0 MB  3.20",
        f"  labs    4..6   10.0.0.6:4711  cuda:0  lost since {first} (42 s)",
    ]


def test_who_is_missing_is_whom_nobody_else_hosts() -> None:
    away = LOST | {"state": "away", "nodes": "2..5", "why": "", "since": 120.0}
    assert [(str(nodes), at, why) for nodes, at, why in missing(STATE | {"workers": [WORKER, LOST, away]})] == [
        ("4..5", 120.0, "its connection broke"),
        ("6", 100.0, "nothing was heard of it for 30 s"),
        ("7", 40.0, "no worker has joined with it yet"),
    ]
    taken = LOST | {"nodes": "1..2"}
    assert not [line for line in lines(STATE | {"workers": [WORKER, taken]}) if "labs" in line]


def test_times_are_by_this_machines_clock() -> None:
    here = time.strftime("%H:%M:%S", time.localtime(5000 - 42))
    assert since(STATE | {"here": 5000.0}, 100.0) == f"since {here} (42 s)"


def test_plain_lines_come_when_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    out, ended = io.StringIO(), STATE | {"status": "finished", "reason": "13 rounds", "round": 13}
    states = iter([STATE, STATE, None, None, STATE | {"workers": [WORKER | {"state": "away"}]}, ended])

    def look() -> dict[str, Any]:
        if (state := next(states)) is None:
            raise NoAnswer("it:7400: tcp: port 7400 is closed")
        return state

    assert follow(look, Screen(Console(file=out, width=80)), lambda seconds: None) is ended
    said = out.getvalue().splitlines()
    assert said[: len(lines(STATE))] == lines(STATE)
    trouble, away, there, last = said[len(lines(STATE)) :]
    assert re.fullmatch(r"no answer since \d\d:\d\d:\d\d: it:7400: tcp: port 7400 is closed", trouble)
    assert away.startswith("  wards: away since") and there.startswith("  wards: there since")
    assert last.startswith("it seed 0  finished  round 13")


def test_on_a_terminal_the_picture_is_painted_anew() -> None:
    out = io.StringIO()
    with Screen(Console(file=out, width=100, force_terminal=True)) as screen:
        screen.show(STATE)
        screen.show(STATE, "no answer since 14:03:21")
    assert out.getvalue().count("wards") == 3 and "no answer since 14:03:21" in out.getvalue() and "\x1b[2K" in out.getvalue()


def test_a_simulated_run_is_watched_in_its_folder(folder: Path) -> None:
    run = simulate(folder)
    shown = call("watch", run.path)
    assert shown.exit_code == 0
    head, reason, about = shown.stdout.splitlines()[:3]
    assert re.fullmatch(r"small seed 0  finished  round 4  \d\d:\d\d  \d+\.\d %  .*[kM]B", head)
    assert reason == f"  {run.info['reason']}" and about.startswith("  cpu, ")
    assert call("watch", run.path, "--once").stdout == shown.stdout


def test_watching_a_run_that_failed_ends_with_1(folder: Path) -> None:
    run = simulate(folder)
    file = run.path / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "failed", "reason": "no room"}))
    assert call("watch", run.path).exit_code == 1 and call("watch", run.path, "--once").exit_code == 0
    assert call("watch", "nothing").exit_code == 2


def test_a_broken_file_of_workers_is_named(folder: Path) -> None:
    run = simulate(folder)
    (run.path / "workers.json").write_text(json.dumps(STATE | {"workers": [WORKER | {"nodes": "9..1"}]}))
    said = call("watch", run.path)
    assert said.exit_code == 2 and "workers.json: broken" in said.stderr and "Traceback" not in said.stderr


def test_who_may_not_join_may_not_watch(tmp_path: Path) -> None:
    for name in ("good", "other"):
        issue(tmp_path / name, HERE, parse_workers("a=0..49"))
    identity, door = ServerIdentity.folder(tmp_path / "good"), Door()
    door.welcome = lambda hello, claim: Refusal(reason=SCENARIO, cause="it is Sunday", cure="come tomorrow")  # type: ignore[method-assign]
    hub = Hub(
        Store(tmp_path / "objects"),
        door,
        listen=["127.0.0.1:0"],
        credentials=identity.credentials(),
        identify=identity.identify,
        seen=lambda: b'{"label": "it\\u001b[2J"}',
    )
    [address] = hub.start()
    try:
        own = WorkerIdentity.load(tmp_path / "good/ca.pem", tmp_path / "good/a.pem")
        with Server(address, own) as server, pytest.raises(Refused, match="it is Sunday; come tomorrow"):
            server.state()
        stranger = WorkerIdentity.load(tmp_path / "other/ca.pem", tmp_path / "other/a.pem")
        with Server(address, stranger, 1.0) as server, pytest.raises(FedsimError, match="not certified by"):
            server.state()
    finally:
        hub.stop("the test is over", True, 0.2)


DEPLOYED = """
task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: logistic}
strategy: fedavg
schedule: {name: rounds, cohort: 4, deadline: 200 ms}
stop: {rounds: 100000}
deploy: {silence: 5 s, start_with: 3}
"""


@pytest.mark.kill
def test_a_deployed_run_is_watched_at_its_server_and_in_its_folder(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        machines.serve(written(tmp_path, DEPLOYED), "world.network.up=1MB/s")
        where = f"127.0.0.1:{machines.port}"
        for nodes in ("0..2", "3..4"):
            machines.join(nodes)
        ask = ("watch", where, "--insecure", "--once")

        def shown(*texts: str) -> str | None:
            time.sleep(0.3)
            said = call(*ask)
            good = said.exit_code == 0 and "preparing" not in said.stdout and all(text in said.stdout for text in texts)
            return said.stdout if good else None

        seen = machines.until(lambda: shown("  0..2  ", "  3..4  ", "running", " ms"), 120)
        assert re.search(r"missing  since \d\d:\d\d:\d\d .*, node 5: no worker has joined with it yet", seen), seen
        machines.all["3..4"].send_signal(signal.SIGSTOP)
        seen = machines.until(lambda: shown("nodes 3..4: nothing was heard of it for 5 s"))
        assert re.search(r"  3\.\.4 .* lost since \d\d:\d\d:\d\d \(\d+ s\)", seen), seen
        run = machines.run
        assert run
        machines.until(lambda: "nodes 3..4: nothing was heard" in call("watch", run.path, "--once").stdout)
        watching = machines.start("watch", "watch", where, "--insecure")
        machines.until(lambda: "missing" in machines.said("watch"), names=("watch",))
        watching.send_signal(signal.SIGINT)
        assert machines.ends("watch") == 0 and "Traceback" not in machines.said("watch")
        machines.all["server"].send_signal(signal.SIGINT)
        assert machines.ends("server") == 130
        state = RunFolder(run.path).workers
        assert state and state["status"] == "stopped" and {one["state"] for one in state["workers"]} == {"there", "lost"}
        assert call("watch", run.path).exit_code == 1
