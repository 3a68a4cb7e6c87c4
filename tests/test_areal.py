"""AReaL: its objective by hand, episodes acted by lot and interrupted, and what staleness does and does not change."""

from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from tools import classification, durations, models, quick, run
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Rows
from fedsim.codecs.blocks import Blocks8
from fedsim.data.environments import Cartpole, Environment, GridWorld
from fedsim.data.partition import Iid
from fedsim.method.inbox import Inbox
from fedsim.method.rollout import STEPS, acted, begun, blank, chances, kept
from fedsim.models import Logistic, Mlp
from fedsim.privacy.gaussian import Gaussian
from fedsim.schedule import Buffered, Rounds
from fedsim.settings.values import Count
from fedsim.task.build import build_task
from fedsim.task.settings import TaskSettings
from fedsim.task.task import Task
from strategies.areal import Areal, advantages, surrogate

GRID = GridWorld(("..#.", ".#..", "...G"), steps=8)
POLE = Cartpole(episodes=12, tests=4, steps=12, spread=0.15)


def task_of(data: Environment, nodes: int = 1, **settings: Any) -> Task:
    return build_task(TaskSettings(data, **({"model": Logistic(), "partition": Iid(nodes=nodes)} | settings)), 0, {}, Path())


def test_the_objective_by_hand() -> None:
    # pi_prox = (1/2, 1/2), pi_behav = (1/4, 3/4): w_b = 2 and 2/3; pi = (.65, .35): u = 1.3 and .7, clipped to 1.2 and .8
    u, w_b = torch.tensor([1.3, 0.7]), torch.tensor([2.0, 2 / 3])
    assert surrogate(u, torch.tensor([1.0, 1.0]), 0.2, w_b).tolist() == pytest.approx([2 * 1.2, 0.7 * 2 / 3])
    assert surrogate(u, torch.tensor([-1.0, -1.0]), 0.2, w_b).tolist() == pytest.approx([-2 * 1.3, -0.8 * 2 / 3])
    u.requires_grad_()  # beyond the clip nothing pulls further; back it always pulls
    assert torch.autograd.grad(surrogate(u, torch.tensor([1.0, 1.0]), 0.2, w_b).sum(), u)[0].tolist() == pytest.approx([0, 2 / 3])
    assert torch.autograd.grad(surrogate(u, torch.tensor([-1.0, -1.0]), 0.2, w_b).sum(), u)[0].tolist() == pytest.approx([-2, 0])


def test_advantages_by_hand() -> None:
    # rewards (1, 1, 1) and (1): G = (1.75, 1.5, 1) and (1, 0, 0), less means 1.375, .75, .5: .375, .75, .5 and -.375; their deviation
    reward = torch.tensor([[1.0, 1, 1], [1, 0, 0]])
    found = advantages(reward, reward > 0, 0.5)
    deviation = torch.tensor([0.375, 0.75, 0.5, -0.375]).std(correction=0).item()
    assert found[0].tolist() == pytest.approx([0.375 / deviation, 0.75 / deviation, 0.5 / deviation])
    assert found[1, 0].item() == pytest.approx(-0.375 / deviation)
    assert advantages(torch.ones(2, 3), torch.ones(2, 3) > 0, 1.0).abs().max() == 0  # all alike


def tossed(task: Task, right: float) -> Tensor:
    """[1, d]: a policy that goes right with this probability, whatever it sees."""
    parts = {name: torch.zeros(1, *shape) for name, shape in task.layout.shapes.items()}
    parts["turn.policy.1.bias"][0, 1] = log(right / (1 - right))
    return task.layout.join(parts)


def started(task: Task, jobs: int, episodes: int, round: int = 0) -> Rows:
    like = task.init.expand(jobs, -1)
    return begun(blank(task, like, episodes), task.inputs[:episodes].expand(jobs, -1, -1), torch.full((jobs,), round))


def test_actions_are_drawn_as_the_policy_says_and_steps_follow_the_equations() -> None:
    world = Cartpole(episodes=300, steps=12, spread=0.15)
    task = task_of(world)
    after, over = acted(task, tossed(task, 0.8), torch.tensor([3]), started(task, 1, 300), torch.ones(1, 300) > 0, 12)
    length, action = after["length"][0].long(), after["action"][0]
    live = torch.arange(12) < length[:, None]
    assert over.all() and 0 < (length < 12).sum() < 300
    assert action[live].mean().item() == pytest.approx(0.8, abs=0.03)  # of about 3,000
    assert after["behaviour"][0][live].tolist() == pytest.approx(torch.where(action == 1, log(0.8), log(0.2))[live].tolist(), abs=1e-6)
    assert all(after[name][0][~live].abs().sum() == 0 for name in STEPS)
    state = task.inputs
    for t in range(12):
        assert torch.equal(after["seen"][0, :, t][live[:, t]], state[live[:, t]])
        state, _, ends = world.step(state, action[:, t].long())
        assert torch.equal(ends[live[:, t]] | (t == 11), length[live[:, t]] == t + 1)


@pytest.mark.parametrize("world", [POLE, GRID], ids=["cartpole", "grid_world"])
def test_jobs_episodes_are_those_of_each_alone_in_bits(world: Any) -> None:
    task = task_of(world, model=Mlp((8,)))
    x, keys, there = task.init + torch.arange(3)[:, None] * 0.1, fold(1, torch.arange(3)), torch.ones(3, 5) > 0
    before = started(task, 3, 5)
    whole = acted(task, x, keys, before, there, 9)[0]
    each = [acted(task, x[i : i + 1], keys[i : i + 1], {n: r[i : i + 1] for n, r in before.items()}, there[:1], 9)[0] for i in range(3)]
    assert all(torch.equal(rows, torch.cat([one[name] for one in each])) for name, rows in whole.items())
    assert not torch.equal(whole["action"][0], whole["action"][1])


def test_an_interrupted_episode_goes_on_and_its_steps_keep_their_probabilities() -> None:
    task = task_of(Cartpole(episodes=6, steps=12, spread=0.01))
    before, there = started(task, 1, 6, round=4), torch.ones(1, 6) > 0
    half, over = acted(task, tossed(task, 0.5), torch.tensor([1]), before, there, 5)
    assert not over.any() and (half["length"] == 5).all()
    half = begun(kept(~over, half), -task.inputs[:6][None], torch.tensor([9]))  # nothing to begin
    after, over = acted(task, tossed(task, 0.9), torch.tensor([2]), half, there, 7)
    assert all(torch.equal(after[name][:, :, :5], half[name][:, :, :5]) for name in STEPS) and (after["born"] == 4).all()
    told, live = after["behaviour"].exp(), torch.arange(12) < after["length"][..., None]
    assert told[:, :, :5].flatten().tolist() == pytest.approx([0.5] * 30)
    late = live[:, :, 5:]
    assert set(told[:, :, 5:][late].mul(10).round().tolist()) <= {1, 9} and late.sum() >= 6
    assert torch.equal(over, (after["length"] == 12) | (after["state"][..., 0].abs() > 2.4) | (after["state"][..., 2].abs() > 0.2094395))
    fresh = begun(kept(~over, after), task.inputs[:6][None], torch.tensor([9]))
    assert torch.equal(fresh["born"], torch.where(over, 9.0, 4.0)) and torch.equal(fresh["length"] == 0, over)


def news(task: Task, exact: bool) -> Inbox:
    """Episodes of two clients under the first model; with the server's own probabilities for it, or those of a policy a bit off."""
    x, there = task.init.expand(2, -1), torch.ones(2, 4) > 0
    found, over = acted(task, x, fold(2, torch.arange(2)), started(task, 2, 4), there, 12)
    assert over.all()
    log_pi = chances(task, task.layout.views(task.init), found["seen"]).gather(-1, found["action"].long()[..., None])[..., 0]
    parts = found | {"behaviour": log_pi if exact else log_pi - 0.3 * (found["action"] - 0.5)}
    return Inbox(parts, torch.full((2,), 0.5), torch.arange(2), torch.zeros(2), task.layout, task=task)


def test_naive_is_decoupled_in_bits_where_the_policies_are_one() -> None:
    task = task_of(POLE)
    both = Areal(lr=0.01), Areal(lr=0.01, objective="naive")
    first = both[0].start(task.init[None].clone(), task)
    for exact in (True, False):
        one, two = (strategy.merge({name: rows.clone() for name, rows in first.items()}, news(task, exact)) for strategy in both)
        assert torch.equal(one["model"], two["model"]) == exact and not torch.equal(one["model"], first["model"])
        assert one["told"][0, 2].item() == pytest.approx(1 if exact else 1.161834, rel=1e-5)  # e^.15
    capped = Areal(lr=0.01, cap=0.5).merge(dict(first), news(task, False))
    assert torch.equal(capped["model"], first["model"])


def test_a_merge_without_an_end_of_an_episode_changes_nothing() -> None:
    task, state = task_of(POLE), {"model": torch.ones(1, 10)}
    parts = blank(task, task.init.expand(2, -1), 4)
    assert Areal().merge(state, replace(news(task, True), parts=parts)) is state


def test_episodes_that_no_client_can_have_had_are_left_out() -> None:
    task, strategy = task_of(POLE), Areal(lr=0.01)
    good, first = news(task, True), strategy.start(task.init[None].clone(), task)
    parts = {name: rows.clone() for name, rows in good.parts.items()}
    parts["length"][1] = torch.tensor([-3.0, 13.0, torch.nan, 5.0])  # 12 steps at most
    parts["action"][1, 3] = 2  # of 0 and 1
    one, two = (
        strategy.merge({name: rows.clone() for name, rows in first.items()}, replace(good, parts=rows))["model"]
        for rows in (parts, {name: rows[:1] for name, rows in parts.items()})
    )
    assert torch.equal(one, two) and not torch.equal(one, first["model"])


def test_no_staleness_is_synchronous_in_bits() -> None:
    task, world = task_of(POLE, 3), durations(1, "1.5", 9)
    fed = run(task, Areal(episodes=3, lr=0.01, schedule=Buffered(3, max_staleness=0)), 4, world)
    rounds = run(task, Areal(episodes=3, lr=0.01, schedule=Rounds(Count())), 4, world)
    assert torch.equal(models(fed), models(rounds)) and len(models(fed).unique(dim=0)) == 5
    assert fed.strategy.measure(fed.state, task)["rollout/age"] == 0


def test_steps_are_as_old_as_admitted_and_older_where_episodes_are_interrupted() -> None:
    task, world = task_of(POLE, 3), durations(1, 1, 5)
    ages: dict[int | None, float] = {}
    for interrupt in (None, 3):
        fed = run(task, Areal(episodes=3, schedule=Buffered(1, max_staleness=2), interrupt=interrupt), 12, world)
        ages[interrupt] = 0
        for _ in range(6):
            fed.watch.rounds += 1
            fed.run()
            ages[interrupt] = max(ages[interrupt], fed.strategy.measure(fed.state, task)["rollout/age"])
    assert ages[None] == 2 < ages[3]
    seconds = [int(Areal(interrupt=one).effort({}, task)[0][0]) for one in (None, 3, 99)]
    assert seconds == [12, 3, 12]  # steps, which `world.compute`'s time of a step follows


def test_the_way_is_learnt() -> None:
    task = task_of(GRID, 2)
    fed = quick(task, Areal(episodes=8, lr=0.03, schedule=Rounds(Count())), 8)
    outputs = (torch.func.functional_call(task.model, task.layout.views(x), (task.inputs,)) for x in models(fed)[[0, -1], 0])
    before, after = (float(one[:, 0].mean()) for one in outputs)
    assert before < -6 and after > -3.5  # the best mean return is -26/9


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(SettingError, match=r"task\.data: `areal` learns from episodes, and these samples begin none; `cartpole`"):
        quick(classification([4]), Areal(), 1)
    with pytest.raises(SettingError, match="privacy: is of updates, and clients of `areal` send their episodes"):
        Areal(privacy=Gaussian(clip=1.0, noise=1.0))
    with pytest.raises(
        SettingError, match="uplink: `blocks8` changes numbers, and clients of `areal` send actions and lengths of episodes"
    ):
        Areal(uplink=Blocks8())
    with pytest.raises(SettingError, match=r"train: `areal` does not train"):
        quick(task_of(GRID), Areal(train=replace(Areal().train, batch=3)), 1)
