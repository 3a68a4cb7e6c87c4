"""FAL: what it reduces to, the closed form on linear models, and that nothing but job and step decides its random numbers."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import refused, write
from test_plans import task_of
from tools import classification, federation, models, quick, run, same, steps
from torch import Tensor, nn

from fedsim.base.keys import fold
from fedsim.gradients.looped import Looped
from fedsim.gradients.stacked import Stacked
from fedsim.method.attacks import Attack, Fgsm, Pgd
from fedsim.method.local import Batch
from fedsim.models import Mlp
from fedsim.run.runfolder import write_scenario
from fedsim.scenario import load
from fedsim.schedule import Gossip, Rounds
from fedsim.settings.values import Constant, Count
from fedsim.task.task import Task
from fedsim.world import Compute, World
from strategies.adversarial import Adversarial
from strategies.fedavg import FedAvg

ALL = Rounds(cohort=Count())
FIRM = Pgd("linf", 0.2, steps=3)


def fal(attack: Attack = FIRM, **settings: Any) -> Adversarial:
    return Adversarial(**{"schedule": ALL, "train": steps(3, 0.1, batch=4)} | settings, attack=attack)


@pytest.mark.parametrize("attack", [Pgd(radius=0), Fgsm(radius=0), Pgd(steps=0, random_start=False)])
def test_an_attack_that_moves_nothing_is_fedavg_in_bits(attack: Attack) -> None:
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4, momentum=0.5)
    for one in (train, replace(train, momentum=0.0)):
        plain = FedAvg(weights="uniform", schedule=ALL, train=one)
        assert torch.equal(models(run(task, fal(attack, train=one), 3)), models(run(task, plain, 3)))
    assert not torch.equal(models(quick(task, fal(train=train), 3)), models(quick(task, plain, 3)))


def robust_loss(row: Tensor, task: Task, at: slice, rho: float) -> Tensor:
    """Mean of log(1 + exp(-(margin - rho |w|_1))) of a linear model with two classes, whose w is the difference of its two rows."""
    views = task.layout.views(row)
    w, b = views["weight"][1] - views["weight"][0], views["bias"][1] - views["bias"][0]
    margin = (2 * task.targets[at] - 1) * (task.inputs[at] @ w + b) - rho * w.abs().sum()
    return nn.functional.softplus(-margin).mean()


def gradient_descent(task: Task, parts: list[slice], rho: float, rounds: int, local: int, lr: float) -> Tensor:
    """FAL with full batches by the closed form of the worst case: the mean of models that each went `local` steps."""
    x = task.init.clone()
    for _ in range(rounds):
        ends = []
        for part in parts:
            y = x.clone()
            for _ in range(local):
                given = y.clone().requires_grad_()
                y = y - lr * torch.autograd.grad(robust_loss(given, task, part, rho), given)[0]
            ends.append(y)
        x = torch.stack(ends).mean(0)
    return x


@pytest.mark.parametrize("local", [1, 4])
def test_on_linear_models_it_descends_the_exact_robust_loss(local: int) -> None:
    """Each local step's worst case is that of the client's own current model: with the server's, four steps would end elsewhere."""
    task, train = classification([6, 6, 6], classes=2), steps(local, 0.3, batch="all")
    parts = [slice(0, 6), slice(6, 12), slice(12, 18)]
    expected = gradient_descent(task, parts, 0.2, 5, local, 0.3)
    for attack in (Fgsm(radius=0.2), Pgd(radius=0.2, steps=8, step=0.05)):
        found = run(task, fal(attack, train=train), 5).state["model"][0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_one_full_step_of_equal_clients_is_centralized_adversarial_descent() -> None:
    task, train = classification([6, 6, 6], classes=2), steps(1, 0.3, batch="all")
    union = gradient_descent(task, [slice(0, 18)], 0.2, 6, 1, 0.3)
    torch.testing.assert_close(run(task, fal(Fgsm(radius=0.2), train=train), 6).state["model"][0], union, rtol=1e-5, atol=1e-6)
    alone = classification([18], classes=2)
    torch.testing.assert_close(run(alone, fal(Fgsm(radius=0.2), train=train), 6).state["model"][0], union, rtol=1e-5, atol=1e-6)


def test_one_client_s_step_is_adversarial_training_of_a_network() -> None:
    """By torch alone, with an attack of three steps and one step on what it made, held constant."""
    task = task_of(Mlp(hidden=(8,)), (6,))
    alone = replace(task, samples=torch.arange(19), starts=torch.tensor([0, 19]))
    module = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.utils.vector_to_parameters(task.init, module.parameters())
    loss, x = nn.CrossEntropyLoss(), task.inputs[:19]
    moved = x.clone()
    for _ in range(3):
        given = moved.clone().requires_grad_()
        [slope] = torch.autograd.grad(nn.functional.cross_entropy(module(given), task.targets[:19], reduction="sum"), given)
        moved = x + (moved + 0.1 * slope.sign() - x).clamp(-0.2, 0.2)
    loss(module(moved), task.targets[:19]).backward()
    expected = task.init - 0.5 * torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    strategy = fal(Pgd(radius=0.2, steps=3, step=0.1, random_start=False), train=steps(1, 0.5, batch="all"))
    torch.testing.assert_close(run(alone, strategy, 1).state["model"][0], expected, rtol=1e-5, atol=1e-6)


def test_grouping_changes_no_bit_and_plans_agree() -> None:
    task, strategy = classification([3, 12, 7, 1, 9, 5]), fal(Pgd("l2", 0.5, steps=3, restarts=2))
    expected = run(task, strategy, 3).state["model"]
    for chunk in (1, 2, 5):
        assert torch.equal(run(task, strategy, 3, chunk=chunk).state["model"], expected)
    alone = quick(task, strategy, 3).state["model"]
    assert torch.equal(quick(task, strategy, 3, processes=2).state["model"], alone)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(run(task, strategy, 3, seed=1).state["model"], expected)


def test_padding_is_not_touched_and_each_step_has_its_own_start() -> None:
    task = classification([3, 12, 7])
    weight = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4])
    job, x = fold(0, torch.arange(2)), task.init.expand(2, -1)
    inputs, targets = task.inputs[:8].view(2, 4, 6), task.targets[:8].view(2, 4)
    for plan in (Looped(task, FedAvg().loss, 2), Stacked(task, FedAvg().loss, 2, exact=True)):
        batch = Batch(plan, inputs, targets, weight, job, 0)
        found = FIRM.on(batch, x).inputs
        assert torch.equal(found[0, 2:], inputs[0, 2:]) and (found[0, :2] != inputs[0, :2]).any() and (found[1] != inputs[1]).any()
        starts = Pgd(radius=0.2, steps=0)
        first, again, later = (starts.on(replace(batch, number=number), x).inputs - inputs for number in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, later) and not torch.equal(first[0, :2], first[1, :2])


def test_a_learning_rate_of_0_moves_no_model() -> None:
    task = classification([6, 6])
    end = run(task, fal(train=replace(steps(3, 0.1, batch=4), lr=Constant(0.0))), 2).state["model"]
    assert torch.equal(end[0], task.init)


def test_a_box_is_written_as_it_is_read(folder: Path) -> None:
    for box, value in (("[0, 1.5]", (0.0, 1.5)), ("none", None), ("auto", "auto")):
        known = {"data": "digits", "model": "", "attack": f"{{box: {box}}}", "metric": "robust"}
        [loaded] = load(write(folder, SCENARIO.format(**known)))
        again = folder / "again"
        again.mkdir(exist_ok=True)
        write_scenario(again, loaded.resolved, loaded.own)
        [same_one] = load(again / "scenario.yaml")
        for scenario in (loaded.scenario, same_one.scenario):
            assert isinstance(scenario.strategy, Adversarial) and scenario.strategy.attack.box == value


def test_the_order_of_clients_changes_the_sum_s_last_bits_alone() -> None:
    task, strategy = classification([6, 6, 6]), fal(Fgsm(radius=0.2), train=steps(4, 0.3))
    turned = replace(task, samples=task.samples.roll(6))  # type: ignore[union-attr]
    torch.testing.assert_close(run(turned, strategy, 3).state["model"], run(task, strategy, 3).state["model"], rtol=1e-5, atol=1e-6)


def test_peers_train_adversarially_too() -> None:
    task = classification([6, 9, 4])
    found = quick(task, fal(schedule=Gossip()), 2).state["model"]
    assert found.shape == (3, task.layout.size) and found.isfinite().all()
    assert not torch.equal(found, quick(task, fal(Pgd(radius=0), schedule=Gossip()), 2).state["model"])


@pytest.mark.parametrize(
    ("attack", "gradients"),
    [
        (Pgd(steps=7), 8),
        (Pgd(steps=3, restarts=2), 1 + 2 * (3 + 1)),
        (Pgd(steps=3, keep="best"), 1 + 3 + 1 + 1),
        (Pgd(steps=0), 1),
        (Fgsm(), 2),
        (Fgsm(radius=0), 1),
        (Pgd(radius=0, restarts=4), 1),
    ],
)
def test_a_step_takes_as_long_as_the_gradients_that_are_really_taken(
    attack: Attack, gradients: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    for name in ("gradient", "input_gradient", "descend"):
        real = getattr(Looped, name)
        monkeypatch.setattr(Looped, name, lambda *given, real=real: (taken.append(1), real(*given))[1])
    task = classification([4])
    fed = federation(task, fal(attack, train=steps(1)), 1, durations_of_steps("0.5"), plan="looped")
    taken.clear()
    fed.run()
    assert len(taken) == gradients and fed.now == gradients * Fraction("0.5") * fed.nature.per_second


def durations_of_steps(seconds: str) -> World:
    return World(compute=Compute(step=same(seconds)))


SCENARIO = """
task: {{data: {data}, partition: {{name: iid, nodes: 3}}{model}}}
strategy: {{name: adversarial, attack: {attack}}}
evaluate: {{metrics: [accuracy, loss, {metric}]}}
stop: {{rounds: 2}}
track: none
"""


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"attack": "{radius: -0.1}"}, "strategy.attack.radius: `-0.1`: at least 0 is due"),
        ({"attack": "{box: [0.5, 1]}"}, "strategy.attack.box: training samples go from 0 to 1, out of the box"),
        ({"attack": "{box: [1, 0]}"}, "`box` goes from the least to the greatest number, not from 1 to 0"),
        ({"attack": "{name: pgd, norm: l1}"}, "`l1` is none of linf, l2"),
        ({"attack": "{name: pdg}"}, "unknown attack `pdg`; did you mean `pgd`?"),
        ({"attack": "{steps: 0, restarts: 3, random_start: false}"}, "`restarts` differ by their random start"),
        ({"metric": "{name: robust, attack: {box: [0.5, 1]}}"}, "evaluate.metrics.2.attack.box: training samples go from 0 to 1"),
        ({"metric": "robust, {name: robust, attack: fgsm}"}, "several `robust` metrics need a `label` each"),
        ({"data": "words.txt", "model": ", model: char_lstm"}, "strategy.attack: an attack moves samples by small numbers"),
    ],
)
def test_bad_input_is_one_error_before_anything_starts(written: dict[str, str], message: str, folder: Path) -> None:
    (folder / "words.txt").write_text("to be or not to be that is the question\n" * 40)
    known = {"data": "digits", "model": "", "attack": "pgd", "metric": "robust"}
    file = write(folder, SCENARIO.format(**known | written))
    assert message in " ".join(refused("run", file.name).split())
