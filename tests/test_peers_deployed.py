"""Peers on real machines: the simulation's models without a server, and what happens where one of them is lost."""

from pathlib import Path

import pytest
from deployed import deployed, replayed, simulated, threads, written
from machines import Machines

from fedsim.base.errors import SettingError
from fedsim.deploy.peers import introducer
from fedsim.run.building import Tasks
from fedsim.scenario import load

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

TASK = "task: {data: digits, partition: {name: dirichlet, nodes: %d, alpha: 0.5}, model: logistic}\n"
BASE = "train: {steps: 2, batch: 16, lr: 0.1}\ndeploy: {silence: 20 s}\nstop: {rounds: 4}\nevaluate: {every: 2 rounds}\n"
WORKERS = ["0..2", "3", "4", "5"]


def peers(topology: str, strategy: str = "dsgd", more: str = "", nodes: int = 6) -> str:
    return TASK % nodes + BASE + f"strategy: {strategy}\nschedule: {{name: gossip, topology: {topology}}}\n" + more


GRAPHS = {
    "ring": peers("ring"),
    "line": peers("line"),
    "tree": peers("tree"),
    "complete": peers("complete"),
    "exponential, push-sum": peers("exponential", "sgp"),
    "another peer each time": peers("one_peer_exponential"),
    "combine first, 8 bits": peers("ring", "{name: dsgd, order: combine_then_adapt}", "crosslink: qsgd\n"),
    "remembered estimates": peers("ring", "choco"),
    "sparse pushes": peers("one_peer_exponential", "sgp", "crosslink: {name: topk, fraction: 0.5}\n"),
    "statistics taken anew": peers("{name: final_merge, inner: ring}", nodes=4)
    .replace("logistic", "{name: resnet18, norm: batch, width: 4, groups: 2}")
    .replace("{every: 2", "{every: 4"),
    "trackers": peers("ring", "{name: gradient_tracking, order: combine_then_adapt}"),
    "one last merge": peers("{name: final_merge, inner: ring}"),
}


@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_without_faults_peers_are_the_simulation(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", WORKERS)
    assert info["status"] == "finished", (info["reason"], info["why"])
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert replayed(tmp_path / "run")


@pytest.mark.parametrize("topology", ["ring", "one_peer_exponential", "exponential"])
def test_the_others_finish_without_a_peer_that_is_killed(topology: str, tmp_path: Path) -> None:
    text = peers(topology, "sgp" if topology == "exponential" else "dsgd").replace("20 s", "4 s").replace("rounds: 4", "rounds: 60")
    with Machines(tmp_path) as machines:
        machines.serve(written(tmp_path, text.replace("every: 2", "every: 10")))
        for nodes in WORKERS:
            machines.join(nodes)
        machines.until(lambda: machines.decisions >= 20)
        machines.all["4"].kill()
        assert machines.ends("server") == 0, machines.said("server")
        assert "nodes 4 are out from round" in machines.said("server")
        run = machines.run
        assert run and run.info["status"] == "finished" and run.info["final"]["test/accuracy"] > 0.5
        assert all(machines.ends(nodes) == 0 for nodes in WORKERS if nodes != "4")
        replayed(run.path)


REFUSED = {
    "strategy": peers("ring", "gradient_tracking"),
    "crosslink": peers("one_peer_exponential", "choco"),
    "stop.seconds": peers("ring", more="world: {compute: {job: 1 s}}\n").replace("rounds: 4", "seconds: 4"),
    "evaluate.every": peers("ring", more="world: {compute: {job: 1 s}}\n").replace("every: 2 rounds", "every: 2 s"),
    "schedule": peers("ring").replace("gossip", "pairwise") + "world: {compute: {job: 1 s}}\n",
}


@pytest.mark.parametrize(("key", "text"), REFUSED.items(), ids=REFUSED)
def test_what_peers_cannot_do_apart_is_refused_at_its_key(key: str, text: str, tmp_path: Path) -> None:
    [loaded] = load(written(tmp_path, text))
    with pytest.raises(SettingError) as refused:
        introducer.build(loaded, Tasks().get(loaded))
    assert refused.value.key == key
