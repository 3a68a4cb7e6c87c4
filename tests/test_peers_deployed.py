"""Peers on real machines: the simulation's models without a server, and what happens where one of them is lost."""

from pathlib import Path

import pytest

from deployed import deployed, replayed, simulated, threads, written

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

TASK = "task: {data: digits, partition: {name: dirichlet, nodes: %d, alpha: 0.5}, model: logistic}\n"
BASE = "train: {steps: 2, batch: 16, lr: 0.1}\ndeploy: {silence: 20 s}\nstop: {rounds: 4}\nevaluate: {every: 2 rounds}\n"
WORKERS = ["0..2", "3", "4", "5"]


def peers(topology: str, strategy: str = "dsgd", more: str = "", nodes: int = 6) -> str:
    return TASK % nodes + BASE + f"strategy: {strategy}\nschedule: {{name: gossip, topology: {topology}}}\n" + more


GRAPHS = {
    "ring": peers("ring"),
}


@pytest.mark.parametrize("text", GRAPHS.values(), ids=GRAPHS)
def test_without_faults_peers_are_the_simulation(text: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", WORKERS)
    assert info["status"] == "finished", (info["reason"], info["why"])
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    assert replayed(tmp_path / "run")
