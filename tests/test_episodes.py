"""Environments: their equations by hand, episodes of many policies, and what learns from returns alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tools import models, quick, run, steps
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.environments import Cartpole, GridWorld, distances
from fedsim.data.partition import Iid
from fedsim.data.source import Source
from fedsim.method.population import Noise, Population
from fedsim.metrics.episodes import Return
from fedsim.metrics.view import View
from fedsim.models import Logistic, Mlp
from fedsim.models.policy import Rollout
from fedsim.settings.values import Constant
from fedsim.task.build import build_task
from fedsim.task.loss import CrossEntropy
from fedsim.task.settings import TaskSettings
from fedsim.task.task import Task
from strategies.eggroll import Eggroll
from strategies.fedavg import FedAvg
from strategies.one_byte import OneByte

HERE = Path()


def task_of(data: Source, nodes: int = 1, **settings: Any) -> Task:
    given = {"model": Logistic(), "partition": Iid(nodes=nodes), **settings}
    return build_task(TaskSettings(data, **given), 0, {}, HERE)


class Always(nn.Module):
    """Takes one action, whatever it sees."""

    def __init__(self, action: int, actions: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.eye(actions)[action])

    def forward(self, x: Tensor) -> Tensor:
        return self.scores.expand(len(x), -1)


def test_a_step_of_the_cartpole_by_hand() -> None:
    # upright and at rest, pushed right: force / mass = 10 / 1.1; pole: -(10 / 1.1) / (0.5 (4/3 - 0.1 / 1.1)) = -14.6341;
    # cart: 10 / 1.1 + 0.1 x 0.5 x 14.6341 / 1.1 = 9.7561; after 0.02 s the speeds have changed, the places not yet
    state, reward, over = Cartpole().step(torch.tensor([[0.0, 0, 0, 0], [2.39, 1, 0, 0]]), torch.tensor([1, 0]))
    assert state[0].tolist() == pytest.approx([0, 0.195122, 0, -0.292683], abs=1e-6)
    assert state[1, :2].tolist() == pytest.approx([2.41, 1 - 0.195122], abs=1e-6)
    assert reward.tolist() == [1, 1] and over.tolist() == [False, True]


def test_gravity_and_the_poles_own_turning_by_hand() -> None:
    # float64: angle 0.1, speed 2, pushed left; the equations of the paper's appendix without friction, term by term
    a, w, f, m, half, mass = 0.1, 2.0, -10.0, 0.1, 0.5, 1.1
    pull = 9.8 * math.sin(a) + math.cos(a) * (-f - m * half * w**2 * math.sin(a)) / mass
    turn = pull / (half * (4 / 3 - m * math.cos(a) ** 2 / mass))
    move = (f + m * half * (w**2 * math.sin(a) - turn * math.cos(a))) / mass
    state, _, _ = Cartpole().step(torch.tensor([[0.5, -1, a, w]]).double(), torch.tensor([0]))
    assert state[0].tolist() == pytest.approx([0.5 - 0.02, -1 + 0.02 * move, a + 0.02 * w, w + 0.02 * turn], rel=1e-6)


def test_first_states_lie_within_the_spread_and_are_no_test_states() -> None:
    arrays = Cartpole(episodes=50, tests=20, spread=0.01).load(HERE)
    assert arrays.x.shape == (50, 4) and arrays.x_test is not None and len(arrays.x_test) == 20
    assert 0.005 < abs(arrays.x).max() <= 0.01 and not set(arrays.x[:, 0].tolist()) & set(arrays.x_test[:, 0].tolist())


GRID = GridWorld(("..#.", ".#..", "...G"), steps=8)


def test_ways_to_the_goal_by_hand() -> None:
    assert distances(GRID.map).tolist() == [[5, 6, -1, 2], [4, -1, 2, 1], [3, 2, 1, 0]]
    assert distances(("#.", "G#")).tolist() == [[-1, -1], [0, -1]]  # the free place is walled in


def test_returns_of_walks_by_hand() -> None:
    right = Rollout(Always(1, 4), GRID)  # from the last row to the goal; elsewhere into a wall or along one until the limit
    assert right(torch.tensor([[2.0, 0], [2, 2], [0, 0], [1, 2]])).tolist() == [[-3, 1], [-1, 1], [-8, 0], [-8, 0]]
    up = Rollout(Always(0, 4), GRID)  # nobody leaves the map
    assert up(torch.tensor([[2.0, 2]])).tolist() == [[-8, 0]]
    task = task_of(GRID)
    assert sorted(task.targets.tolist()) == [-6, -5, -4, -3, -2, -2, -2, -1, -1]
    assert task.loss(right(task.inputs), task.targets).min() == 0


def test_an_episode_that_is_over_neither_moves_nor_is_rewarded() -> None:
    alone = Rollout(Always(1, 2), Cartpole(steps=40))
    later, soon = torch.tensor([[0.0, 0, 0.1, 1]]), torch.tensor([[0.0, 0, -0.2, 0.5]])
    both = alone(torch.cat([later, soon]))
    assert torch.equal(both, torch.cat([alone(later), alone(soon)]))
    assert both[1, 0] < both[0, 0] < 40 and both[:, 1].tolist() == [0, 0]


@pytest.mark.parametrize("world", [Cartpole(episodes=5, steps=25), GRID], ids=["cartpole", "grid_world"])
@pytest.mark.parametrize("rank", [1, None])
def test_members_episodes_are_those_of_each_alone_in_bits(world: Any, rank: int | None) -> None:
    task = task_of(world, model=Mlp((8,)))
    noise, keys, seen = Noise(task.layout, rank), fold(5, torch.arange(6)), []
    found = Population(task.model, noise).losses(task.init, keys, 0.5, task.inputs, lambda out: task.loss(out, task.targets).sum())
    for key in keys.split(1):
        one = Population(task.model, noise).losses(task.init, key, 0.5, task.inputs, lambda out: task.loss(out, task.targets).sum())
        seen.append(one)
    assert torch.equal(found, torch.cat(seen)) and len(found.unique()) > 2
    p = task.layout.join({name: noise.whole(name, keys)[0] for name in task.layout.names})
    member = torch.func.functional_call(task.model, task.layout.views(task.init + 0.5 * p), (task.inputs,))
    assert found[0, 0] == pytest.approx(float(task.loss(member, task.targets).sum()), abs=2)  # noise formed: one action may round otherwise


def test_the_way_is_learnt_from_returns_alone() -> None:
    task = task_of(GRID)  # the best mean return is -26/9
    fed = quick(task, Eggroll(population=32, batch="all", sigma=0.5, shaping="zscore", lr=Constant(1.0)), 12)
    before, after = (Return().measure(View(task, row)) for row in models(fed)[[0, -1]])
    assert before["test/return"] < -6 and after["test/return"] > -3.5 and after["test/success"] >= 8 / 9


def test_processes_change_no_bit() -> None:
    strategy = Eggroll(population=4, sigma=0.5, shaping="zscore")
    one, two = (run(task_of(GRID, 3), strategy, 2, plan="looped", processes=count) for count in (1, 2))
    two.worker.close()
    assert torch.equal(models(one)[-1], models(two)[-1]) and not torch.equal(models(one)[0], models(one)[-1])


def test_one_byte_learns_from_episodes_too() -> None:
    task = task_of(GRID)
    fed = run(task, OneByte(probes=2, batch="all", epsilon=0.3, lr=Constant(0.05)), 2)
    assert fed.worker.about["plan"] == "looped"
    assert not torch.equal(models(fed)[0], models(fed)[-1])


def test_what_has_no_meaning_is_refused() -> None:
    task = task_of(GRID)
    with pytest.raises(SettingError, match=r"task\.loss: `regret` has no gradient, and `fedavg` descends along it"):
        quick(task, FedAvg(train=steps()), 1)
    with pytest.raises(SettingError, match="cross_entropy is of classes, and episodes have returns; `regret`"):
        task_of(GRID, loss=CrossEntropy())
    with pytest.raises(SettingError, match="return is of episodes"):
        Return().check(replace(task, model=nn.Linear(1, 1)), FedAvg(), "evaluate.metrics.0")


@pytest.mark.parametrize(
    ("map", "message"),
    [
        (("..", ".G."), r"map\.1: has 3 places, and row 0 has 2"),
        ((".x", ".G"), r"map\.0: `x` means nothing; `\.` is free, `#` a wall, `G` a goal"),
        (("..",), "has no goal, `G`"),
        (("#G",), "from no place can a `G` be reached in 6 steps"),
    ],
)
def test_a_map_that_is_none_is_refused(map: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        GridWorld(map, 6).load(HERE)
