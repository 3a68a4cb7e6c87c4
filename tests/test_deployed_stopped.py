"""Servers and workers that people stop, as processes: what was done stays, and it goes on."""

import signal
import time
from pathlib import Path

import pytest
from deployed import replayed, written
from machines import SCENARIO, Machines

from fedsim.run.folders import RunFolder
from fedsim.run.guard import PATIENCE

LONGER = SCENARIO.replace("rounds: 30}", "rounds: 45}")


@pytest.mark.kill
def test_a_worker_and_a_server_stopped_by_hand_go_on(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        scenario = written(tmp_path, LONGER)
        machines.serve(scenario)
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 6)
        machines.all["0..2"].send_signal(signal.SIGINT)
        assert machines.ends("0..2") == 0
        assert machines.said("0..2").endswith("its worker was stopped by hand\n")
        machines.until(lambda: "nodes 0..2 lost" in machines.said("server"))
        machines.all["server"].send_signal(signal.SIGINT)
        assert machines.ends("server") == 130
        said = machines.said("server")
        assert ": its worker was stopped by hand" in said and f"resume with: fedsim serve {scenario} --listen" in said
        machines.until(lambda: "no connection to" in machines.said("3..5"), names=("3..5",))
        machines.join("0..2")
        machines.start("resume", "resume", "it")
        assert machines.ends("resume") == 2 and "goes on with the command that served it" in machines.said("resume")
        machines.serve(scenario)
        assert machines.ends("server") == machines.ends("0..2") == machines.ends("3..5") == 0
        run = machines.run
        assert run and run.info["status"] == "finished" and len(run.info["resumed"]) == 1
        assert "Traceback" not in "".join(map(machines.said, machines.all))
        replayed(run.path)


def test_a_run_that_fails_is_a_failure_everywhere(tmp_path: Path) -> None:
    """Its one worker's strategy breaks, on every job. The worker is a program that was started, and so starts its trainer."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from strategies.fedavg import FedAvg\n"
        "@dataclass(frozen=True)\n"
        "class Mine(FedAvg):\n"
        "    def merge(self, state, inbox):\n"
        "        if inbox.round:\n"
        "            raise ValueError('no merge today')\n"
        "        return super().merge(state, inbox)\n"
    )
    with Machines(tmp_path, forked=True) as machines:
        machines.serve(written(tmp_path, LONGER.replace("strategy: scaffold", "strategy: mine:Mine")))
        machines.forked = False
        machines.join("0..5")
        assert machines.ends("server") == 1 and "no merge today" in machines.said("server")
        assert machines.ends("0..5") == 1 and "failed: round 2" in machines.said("0..5")
        [folder] = tmp_path.glob("runs/*/2*/run.json")
        assert RunFolder(folder.parent).info["status"] == "failed"


def test_a_server_for_which_nobody_works_ends_at_once(tmp_path: Path) -> None:
    """Not after the time that a round is given to end."""
    with Machines(tmp_path, forked=True) as machines:
        machines.serve(written(tmp_path, SCENARIO))
        machines.until(lambda: "round 0" in machines.said("server"))
        machines.all["server"].send_signal(signal.SIGINT)
        began = time.monotonic()
        machines.until(lambda: machines.run and machines.run.info["status"] == "stopped")
        assert time.monotonic() - began < PATIENCE - 1  # the picture comes after it
        assert machines.ends("server") == 130 and "resume with: fedsim serve" in machines.said("server")
