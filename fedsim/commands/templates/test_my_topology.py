"""MyTopology: a graph worked out by hand, what it keeps, and its scenario."""

from pathlib import Path

import pytest
import torch
from my_topology import MyTopology

from fedsim.run.building import Tasks, build
from fedsim.scenario import load

KEY = torch.tensor(0)


def test_four_nodes_by_hand() -> None:
    matrix = MyTopology(reach=1).matrix(4, 0, KEY)
    assert (3 * matrix).round().tolist() == [[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]


def test_models_come_together_at_their_mean() -> None:
    models = torch.tensor([[0.0], [3.0], [6.0], [9.0], [12.0]], dtype=torch.float64)
    mixing = MyTopology(reach=1).mixing(5, 0, KEY)
    for _ in range(100):
        models = mixing @ models
    assert torch.allclose(models, torch.full_like(models, 6.0))


def test_too_few_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 5 nodes; there are 4"):
        MyTopology(reach=2).matrix(4, 0, KEY)


def test_the_scenario_runs(tmp_path: Path) -> None:
    [first] = load(Path(__file__).with_name("my_topology.yaml"), ["track=none", "sweep=null"], smoke=True)
    info = build(first, Tasks()).execute(tmp_path / "run")
    assert info["status"] == "finished" and info["final"]["nodes/consensus"] > 0
