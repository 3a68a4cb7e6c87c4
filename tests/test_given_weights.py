"""Mixing weights from files, by hand: each format, turns, and what is wrong with broken ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tools import quadratics, run, steps

from fedsim.base.errors import SettingError
from fedsim.scenario import load
from fedsim.schedule import Gossip
from fedsim.topology.given import Weights
from strategies.d2 import D2
from strategies.dsgd import Dsgd

KEY = torch.tensor(7)
W = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]
EDGES = "# hearer sender weight\n0 1 0.5\n1 0 0.5  # and back\n1 2 0.25\n2 1 0.25\n"


def matrix(file: Path, step: int = 0, every: int = 1) -> list[list[float]]:
    found: list[list[float]] = Weights(file=str(file), every=every).mixing(3, step, KEY).weights.toarray().tolist()
    return found


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def lines(matrix: list[list[float]]) -> str:
    return "\n".join(",".join(map(str, row)) for row in matrix) + "\n"


def test_formats(tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.array(W))
    for file in (tmp_path / "w.npy", write(tmp_path, "w.csv", lines(W)), write(tmp_path, "w.edges", EDGES)):
        assert matrix(file) == W, file
        Weights(file=str(file)).check(3, KEY)


def test_several_take_turns(tmp_path: Path) -> None:
    swap, stay = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]
    np.save(tmp_path / "w.npy", np.array([swap, stay]))
    edges = write(tmp_path, "w.edges", "0 1 1\n1 0 1\n\n# the next\n1 2 .5\n2 1 .5\n")
    for file in (tmp_path / "w.npy", write(tmp_path, "w.csv", lines(swap) + "\n" + lines(stay)), edges):
        assert [matrix(file, step) for step in range(3)] == [swap, stay, swap]
        assert [matrix(file, step, every=2) for step in range(5)] == [swap, swap, stay, stay, swap]
        Weights(file=str(file)).check(3, KEY)  # neither is connected, both together are
    with pytest.raises(ValueError, match=r"2 parts don't hear of each other: \{0, 1\}, \{2\}"):
        Weights(file=str(write(tmp_path, "one.csv", lines(swap)))).check(3, KEY)


def test_a_round_mixes_by_the_file(tmp_path: Path) -> None:
    """With learning rate 0 models stay where they begin, so all are equal and so are means; what travels tells the edges."""
    file = str(write(tmp_path, "w.csv", lines(W)))
    fed = run(quadratics([0.0, 1.0, 2.0]), Dsgd(train=steps(1), schedule=Gossip(topology=Weights(file=file))), 2)
    assert fed.ledger.bytes_cross == 2 * 4 * fed.flight.peer_bytes


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("w.csv", "1,0\n0.5,0.5\n", "3 x 3 numbers are due, not 2 x 2"),
        ("w.csv", "1,0\n0.5\n", "w.csv:2: 1 numbers in a matrix of 2 rows"),
        ("w.csv", "1,0,x\n", "w.csv:1: `x` is no number"),
        ("w.csv", "1,0,0\n0,1.5,-0.5\n0,0,1\n", "row 1, column 2 is -0.5; weights are numbers from 0"),
        ("w.csv", "1,0,0\n0,1,0\n0,0,1\n\n0,1,0\n1,0,0\n0,.5,.4\n", "matrix 1: row 2 sums to 0.9, not to 1"),
        ("w.edges", "0 1 .5\n1 0\n", "w.edges:2: `hearer sender weight` is due"),
        ("w.edges", "0 3 .5\n", "w.edges:1: nodes are whole numbers from 0 to 2"),
        ("w.edges", "0 1 .5\n0 1 .2\n", "w.edges:2: 0 hears 1 on a line before"),
        ("w.edges", "0 1 1.5\n", "row 0 sums to 1.5, not to 1"),
        ("w.csv", "", "it has no matrix"),
        ("w.bin", "", "a file of .npy, .csv, .edges, .txt is due"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Weights(file=str(write(tmp_path, name, text))).check(3, KEY)


def test_what_a_method_needs(tmp_path: Path) -> None:
    ring = [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]]
    schedule = Gossip(topology=Weights(file=str(write(tmp_path, "ring.csv", lines(ring)))))
    run(quadratics([0.0, 1.0, 2.0]), Dsgd(train=steps(1), schedule=schedule), 1)
    with pytest.raises(SettingError, match=r"rows and columns 0 and 1 have 0\.5 and 0; a symmetric matrix is due"):
        run(quadratics([0.0, 1.0, 2.0]), D2(train=steps(1), schedule=schedule), 1)
    columns = Gossip(topology=Weights(file=str(write(tmp_path, "c.csv", "1,0.5,0\n0,0.5,0.5\n0,0,0.5\n")), connected=False))
    with pytest.raises(SettingError, match=r"row 0 sums to 1\.5, not to 1"):
        run(quadratics([0.0, 1.0, 2.0]), Dsgd(train=steps(1), schedule=columns), 1)


def test_a_run_s_scenario_names_the_whole_path(tmp_path: Path) -> None:
    file = write(tmp_path, "w.edges", EDGES)
    text = "task: {data: digits, partition: {name: iid, nodes: 3}}\nstrategy: dsgd\n"
    text += "schedule: {name: gossip, topology: {name: weights, file: w.edges}}\n"
    [loaded] = load(write(tmp_path, "s.yaml", text))
    [again] = load(write(tmp_path, "again.yaml", loaded.resolved))
    assert isinstance(schedule := again.scenario.schedule, Gossip) and schedule.topology == Weights(file=str(file))
    assert again.hash == loaded.hash
