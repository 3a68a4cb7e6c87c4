"""Loss barriers by hand, and first models of nodes' own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tools import classification, federation, quadratics, steps
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout
from fedsim.data.partition import Iid
from fedsim.data.sources import Digits
from fedsim.metrics.barrier import Barrier, couples, heights
from fedsim.metrics.view import View
from fedsim.models import Mlp
from fedsim.report.figures.barrier import draw_barrier, last_apart
from fedsim.report.style import Variant
from fedsim.run.building import Tasks, build
from fedsim.scenario.loader import load
from fedsim.schedule import Gossip
from fedsim.task.build import build_task
from fedsim.task.first import first_models
from fedsim.task.loss import Output
from fedsim.task.settings import TaskSettings
from fedsim.task.task import Task
from fedsim.topology.changing import Alone
from strategies.dsgd import Dsgd

SLOPE = np.array([[0.0, 1.0, 0.5]])


class Wells(nn.Module):
    """(w^2 - 1)^2: two wells, at -1 and 1, and a ridge of height 1 at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return ((self.w**2 - 1) ** 2).expand(len(x))


def wells(nodes: int = 3) -> Task:
    model, x = Wells(), torch.zeros(nodes, 1)
    y, starts = torch.zeros(nodes), torch.arange(nodes + 1)
    return Task(x, y, torch.arange(nodes), starts, x, y, None, model, Layout.of(model), torch.zeros(1), Output(), 0)


def test_the_ridge_between_two_wells() -> None:
    view = View(wells(2), torch.tensor([[-1.0], [1.0]]))
    found = Barrier(points=3).measure(view)
    # -1, -.5, 0, .5, 1: 0, 9/16, 1, 9/16, 0; and half of the way, to the mean on the ridge: 1 - .25^2 .. less the straight line to 1
    assert found["barrier/pairs_loss"] == found["barrier/pairs_loss_worst"] == 1
    assert view.arrays["barrier"]["pairs"].tolist() == [[0, 0.5625, 1, 0.5625, 0]]
    to_mean = (1 - np.array([1, 0.75, 0.5, 0.25, 0]) ** 2) ** 2
    assert view.arrays["barrier"]["to_mean"][0] == pytest.approx(to_mean)
    assert found["barrier/to_mean_loss"] == pytest.approx((to_mean - np.linspace(0, 1, 5)).max())
    assert found.keys() == {f"barrier/{a}_loss{b}" for a in ("pairs", "to_mean") for b in ("", "_worst")}
    assert Barrier().measure(View(wells(1), torch.ones(1, 1))) == {}


def test_convex_losses_have_no_barrier_and_means_are_over_pairs() -> None:
    centres = torch.tensor([[1.0, 0], [-2, 3], [4, 1]]).double()
    found = Barrier(pairs=3).measure(View(quadratics(centres), centres))
    assert set(found.values()) == {0.0}
    found = Barrier().measure(View(wells(), torch.tensor([[-1.0], [1.0], [1.0]])))  # of three pairs two cross the ridge
    assert (found["barrier/pairs_loss"], found["barrier/pairs_loss_worst"]) == (pytest.approx(2 / 3), 1)
    task = classification([5, 5])
    assert Barrier(points=2).measure(View(task, torch.stack([task.init, -task.init])))["barrier/pairs_error"] >= 0


def test_pairs_differ() -> None:
    for count, wanted, got in ((2, 8, 1), (3, 8, 3), (4, 8, 6), (5, 4, 4), (16, 20, 20)):
        pairs = list(zip(*couples(count, wanted), strict=True))
        assert len({frozenset(pair) for pair in pairs}) == len(pairs) == got and all(a != b for a, b in pairs)
    assert heights(torch.tensor([[0.0, -1, 2]]), torch.tensor([0.0, 0.5, 1])).tolist() == [0]


def test_the_picture_shows_models_before_they_are_merged(tmp_path: Path) -> None:
    apart, merged = (
        {"at": np.linspace(0, 1, 3), "round": np.array(at), "pairs": y, "to_mean": y} for at, y in ((4, SLOPE), (5, 0 * SLOPE))
    )
    run: Any = SimpleNamespace(arrays=lambda name: [apart, merged] if name == "barrier" else [])
    assert last_apart([apart, merged]) is apart and last_apart([merged]) is merged
    assert draw_barrier(tmp_path / "barrier.png", [Variant("a", (run,), "black", "-")]) and (tmp_path / "barrier.png").stat().st_size > 1000
    nothing: Any = SimpleNamespace(arrays=lambda name: [])
    assert not draw_barrier(tmp_path / "none.png", [Variant("a", (nothing,), "black", "-")])


def digits(nodes: int, **settings: object) -> Task:
    return build_task(TaskSettings(data=Digits(), partition=Iid(nodes), model=Mlp(hidden=(4,)), **settings), 0, {}, Path())  # type: ignore[arg-type]


def test_each_peer_begins_at_its_own_model() -> None:
    few, more = digits(2, first_model="own"), digits(3, first_model="own")
    assert few.each is not None and more.each is not None and torch.equal(few.each, more.each[:2])
    assert torch.equal(few.init, digits(2).init) and digits(2).each is None
    assert len({tuple(row.tolist()) for row in (*more.each, more.init)}) == 4
    fed = federation(more, Dsgd(train=steps(1, 0.0), schedule=Gossip(Alone())), 1, plan="looped")
    fed.run()
    assert torch.equal(fed.state["model"], more.each)


def test_first_models_that_can_not_be_own(tmp_path: Path) -> None:
    settings = TaskSettings(data=Digits(), model=Mlp(), first_model="own", weights="theirs")
    with pytest.raises(SettingError, match="gives all the same"):
        first_models(settings, (4,), 2, 2, 0, Path(), Layout({}), torch.float32)
    file = tmp_path / "server.yaml"
    file.write_text("task: {data: digits, partition: {name: iid, nodes: 2}, first_model: own}\nstrategy: fedavg\nstop: {rounds: 1}")
    [loaded] = load(file)
    with pytest.raises(SettingError, match="under `rounds` the server's model is the first of all"):
        build(loaded, Tasks())
