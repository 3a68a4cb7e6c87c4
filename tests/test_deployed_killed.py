"""Servers and workers that die, as processes: nothing is lost, nothing is counted twice."""

import random
import signal
import time
from pathlib import Path

import pytest
from deployed import replayed, written
from machines import SCENARIO, Machines


def killed(folder: Path, moments: list[int], seed: int, strategy: str = "scaffold") -> None:
    """A run whose server is killed at each of these numbers of decisions, and begun again."""
    lot = random.Random(seed)
    with Machines(folder, forked=True) as machines:
        scenario = written(folder, SCENARIO.replace("scaffold", strategy))
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        for number, moment in enumerate(moments):
            server = machines.serve(scenario)
            machines.until(lambda number=number: machines.run and len(machines.run.info.get("resumed", ())) == number)  # it goes on
            machines.until(lambda moment=moment: machines.decisions >= moment)
            time.sleep(lot.random() / 20)
            server.kill()
            server.wait()
        machines.serve(scenario)
        assert machines.ends("server") == 0, machines.said("server")
        assert machines.ends("0..2") == machines.ends("3..5") == 0
        run = machines.run
        assert run and run.info["status"] == "finished" and len(run.info["resumed"]) == len(moments)
        assert "Traceback" not in "".join(map(machines.said, machines.all))
        replayed(run.path)


def test_a_server_that_is_killed_goes_on_to_the_same_model(tmp_path: Path) -> None:
    killed(tmp_path, [12, 60], 0)


@pytest.mark.kill
@pytest.mark.parametrize("part", range(5))
def test_a_server_is_killed_at_twenty_moments(part: int, tmp_path: Path) -> None:
    lot = random.Random(part)
    strategy = "scaffold" if part else "ditto"  # whose nodes' own models workers judge
    killed(tmp_path, sorted(lot.sample(range(2, 85), 4)), part, strategy)


@pytest.mark.kill
def test_a_worker_that_is_killed_is_the_same_nodes_again(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        machines.serve(written(tmp_path, SCENARIO))
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 20)
        machines.all["0..2"].kill()
        machines.all["0..2"].wait()
        machines.join("0..2")
        assert machines.ends("server") == 0, machines.said("server")
        run = machines.run
        assert run and run.info["status"] == "finished" and run.info["final"]["work/dropped"] == 0
        replayed(run.path)


@pytest.mark.kill
def test_a_worker_that_stops_moving_is_lost_and_the_round_ends(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        machines.serve(written(tmp_path, SCENARIO.replace("20 s", "2 s")))
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 20)
        machines.all["0..2"].send_signal(signal.SIGSTOP)
        assert machines.ends("server") == 0, machines.said("server")
        run = machines.run
        assert run and run.info["status"] == "finished"
        assert "nothing was heard of it for 2 s" in machines.said("server")
        replayed(run.path)


@pytest.mark.network
def test_workers_are_soon_at_a_server_that_was_away_for_long(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        scenario = written(tmp_path, SCENARIO)
        server = machines.serve(scenario)
        for nodes in ("0..2", "3..5"):
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 20)
        server.kill()
        server.wait()
        time.sleep(25)
        done = machines.decisions
        machines.serve(scenario)
        machines.until(lambda: machines.said("server").count(": at 127.0.0.1") == 2)
        back = time.monotonic()
        machines.until(lambda: machines.decisions > done + 3)  # clock, orders and replies of a round
        took = time.monotonic() - back
        print(f"\nfirst merge {took:.1f} s after a server was back that was away for 25 s")
        assert took < 5
        assert machines.ends("server") == 0
