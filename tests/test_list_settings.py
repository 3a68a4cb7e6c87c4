"""Settings of own parts that are lists: written as such, kept as tuples, given to functions as lists."""

from pathlib import Path

import pytest
from launch import TASKS, refused, write

from fedsim.scenario import load
from fedsim.scenario.trust import trust

OWN = """
from dataclasses import dataclass
from pathlib import Path
import numpy as np
import torch
from fedsim import setting
from strategies.fedavg import FedAvg

@dataclass(frozen=True)
class Stepwise(FedAvg):
    rates: list[float] = setting(factory=lambda: [1.0, 0.5], help="a server rate a round")
    few: list[int] | None = None

class Net(torch.nn.Sequential):
    def __init__(self, input_shape: tuple, outputs: int, hidden: list[int] = [4]):
        sizes = [64] + hidden + [outputs]
        super().__init__(torch.nn.Flatten(), *(torch.nn.Linear(*pair) for pair in zip(sizes, sizes[1:])))

def table(base: Path, columns: list[int] = [0, 1]):
    x = np.loadtxt(base / "table.csv", delimiter=",")
    return {"x": x[:, columns], "y": np.arange(len(x)) % 2}
"""


@pytest.fixture
def own(folder: Path) -> str:
    (folder / "list_parts.py").write_text(OWN)
    return write(folder).name


def test_lists_are_read_written_and_read_again(own: str, folder: Path) -> None:
    [loaded] = load(own, ["strategy={name: list_parts:Stepwise, few: [1, 2]}"])
    strategy = loaded.scenario.strategy
    assert (strategy.rates, strategy.few) == ((1.0, 0.5), (1, 2))
    [again] = load(write(folder, loaded.resolved, "again.yaml"))
    assert again.scenario.strategy == strategy and again.hash == loaded.hash
    assert load(own, ["strategy=list_parts:Stepwise"])[0].scenario.strategy.few is None
    assert "strategy.few: a list is due: `[3]`" in refused("run", own, "strategy=list_parts:Stepwise", "strategy.few=3")


def test_functions_that_ask_for_lists_get_lists(own: str, folder: Path) -> None:
    [loaded] = load(own, ["task.model={name: list_parts:Net, hidden: [3, 5]}"])
    assert [tuple(p.shape) for p in TASKS.get(loaded).model.parameters()][::2] == [(3, 64), (5, 3), (10, 5)]


@pytest.mark.parametrize("where", ["", "base: tables, "])
def test_data_functions_may_take_the_scenarios_folder(own: str, folder: Path, where: str) -> None:
    place = folder / "tables" if where else folder
    place.mkdir(exist_ok=True)
    (place / "table.csv").write_text("\n".join(f"{row},{row},{-row}" for row in range(40)))
    data = ["task.data={name: list_parts:table, " + where + "columns: [2]}", "task.partition={name: iid, nodes: 8}"]
    [loaded] = load(own, data)
    assert float(TASKS.get(loaded).inputs.min()) == -39
    assert f"base: {place.resolve()}" in loaded.resolved  # so that it is found from anywhere
    away = folder / "away"
    away.mkdir()
    trust(["list_parts"])
    try:
        [again] = load(write(away, loaded.resolved))
    finally:
        trust([])
    assert again.hash == loaded.hash and TASKS.get(again).hash() == TASKS.get(loaded).hash()
