"""MyStrategy: numbers worked out by hand, what it reduces to, and its scenario."""

from pathlib import Path

import torch
from my_strategy import MyStrategy

from fedsim import Inbox
from fedsim.base.rows import Layout
from fedsim.run.building import Tasks, build
from fedsim.scenario import load

SCENARIO = Path(__file__).with_name("my_strategy.yaml")
TASKS = Tasks()


def news(*updates: float) -> Inbox:
    """Messages of clients with equally many samples; models have one number."""
    m = len(updates)
    rows = torch.tensor(updates).view(m, 1)
    return Inbox({"update": rows}, torch.full((m,), 1 / m), torch.arange(m), torch.zeros(m, dtype=torch.int64), Layout({"w": [1]}))


def model_of(folder: Path, *settings: str) -> str:
    """The hash of the model that the scenario makes at smoke size, with these settings instead of its sweep."""
    info = build(load(SCENARIO, ["track=none", "sweep=null", *settings], smoke=True)[0], TASKS).execute(folder)
    assert info["status"] == "finished"
    return str(info["model"])


def test_two_rounds_by_hand() -> None:
    # mean updates 4 and 2, half of the last step is kept: steps 4 and 2 + 4/2, models 4 and 8
    state = {"model": torch.zeros(1, 1), "step": torch.zeros(1, 1)}
    state = MyStrategy(momentum=0.5).merge(state, news(3.0, 5.0))
    assert state["model"].item() == 4
    state = MyStrategy(momentum=0.5).merge(state, news(1.0, 3.0))
    assert state["model"].item() == 8


def test_without_momentum_it_is_fedavg_in_bits(tmp_path: Path) -> None:
    first = model_of(tmp_path / "mine", "strategy.momentum=0")
    assert first == model_of(tmp_path / "fedavg", "strategy=fedavg")
    assert first != model_of(tmp_path / "kept", "strategy.momentum=0.9")
