"""MyModel: its shapes and sizes, and its scenario."""

from pathlib import Path

import torch
from my_model import MyModel

from fedsim.run.building import Tasks, build
from fedsim.scenario import load


def test_shapes_and_size() -> None:
    model = MyModel((2, 3), outputs=4, width=5)
    assert model(torch.zeros(7, 2, 3)).shape == (7, 4)
    # 6 x 5 + 5 within, 5 x 4 + 4 out, 6 x 4 around
    assert sum(p.numel() for p in model.parameters()) == 35 + 24 + 24


def test_the_scenario_runs_with_clients_stacked(tmp_path: Path) -> None:
    [first] = load(Path(__file__).with_name("my_model.yaml"), ["track=none", "sweep=null", "engine.plan=stacked"], smoke=True)
    info = build(first, Tasks()).execute(tmp_path / "run")
    assert info["status"] == "finished" and info["final"]["test/loss"] < 2.5
