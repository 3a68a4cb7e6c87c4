"""SAF and MESA: the trajectory loss by hand, against plain torch over several jobs of a client, and without it FedAvg."""

from math import log
from typing import Any

import numpy as np
import pytest
import torch
from test_local import seen
from tools import classification, federation, models, quadratics, steps
from tools import quick as run
from torch import Tensor
from torch.nn import functional as F

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.gradients.looped import Looped
from fedsim.method.local import Local
from fedsim.method.train import Train
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count
from fedsim.task.task import Task
from strategies.fedavg import FedAvg
from strategies.mesa import Mesa
from strategies.saf import Saf, Trajectory

TRAIN = Train(epochs=2, batch=3, lr=Constant(0.5), momentum=0.5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_by_hand(temperature: float) -> None:
    # softmax of z0 / T = (ln 3, 0) is (3/4, 1/4), of z = 0 (1/2, 1/2): KL = 3/4 ln 3/2 - 1/4 ln 2, times T^2; the second does not count
    targets = torch.tensor([[0.0, 1, temperature * log(3), 0], [1, 0, 7, 0]])
    found = Saf(strength=2.0, temperature=temperature).loss(
        classification([2], classes=2), torch.zeros(2, 2), targets, torch.tensor([0.25, 0.75])
    )
    apart = 0.75 * log(1.5) - 0.25 * log(2)
    assert found.item() == pytest.approx(log(2) + 0.25 * 2 * temperature**2 * apart, rel=1e-6)


def test_the_same_outputs_are_not_apart_and_the_least_that_there_is() -> None:
    task, weight = classification([4]), torch.full((4,), 0.25)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(200).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0])
    found = []
    for earlier in (z.detach(), z.detach() + torch.tensor([1.0, 0, 0])):
        targets = torch.cat([labels[:, None], torch.ones(4, 1), earlier], 1)
        found.append(Saf().loss(task, z, targets, weight) - Saf().loss(task, z, labels, weight))
    [slope] = torch.autograd.grad(found[0], z)
    assert abs(found[0].item()) < 1e-12 < found[1].item() and slope.abs().max() < 1e-12


def test_without_strength_they_are_fedavg_in_bits() -> None:
    task, schedule = classification([7, 11, 9, 13]), Rounds(Count(2))
    plain = models(run(task, FedAvg(train=TRAIN, schedule=schedule), 4))
    for method in (Saf, Mesa):
        fed = run(task, method(train=TRAIN, schedule=schedule, strength=0.0), 4)
        assert torch.equal(models(fed), plain)
        assert fed.flight.remembered(np.arange(4)) == {}


def jobs(strategy: Trajectory, task: Task) -> list[tuple[Local, Tensor, Tensor]]:
    """Of two nodes' three jobs each, from models of their own: what it works with, the model of before and that of after."""
    found = list[tuple[Local, Tensor, Tensor]]()
    memory = strategy.remembered(task.init.expand(2, -1), task)
    for turn in range(3):
        start, nodes = torch.stack([task.init + turn, task.init - turn]), torch.tensor([1, 0])
        key = fold(0, "job", nodes, torch.full_like(nodes, turn))
        local = Local(Looped(task, strategy.loss, 100), task, strategy.train, nodes, key, np.zeros(2, dtype=np.int64))
        parts, memory = strategy.local_update({"model": start}, memory, local)
        found.append((local, start, start + parts["update"]))
    return found


def step(task: Task, strategy: Trajectory, x: Tensor, velocity: Tensor, batch: list[int], earlier: Tensor | None) -> tuple[Tensor, Tensor]:
    """One, by plain autograd and torch's own divergence."""
    y = x.clone().requires_grad_()
    z = said(task, y, batch)
    loss = F.cross_entropy(z, task.targets[batch])
    if earlier is not None:
        now, was = (z / strategy.temperature).log_softmax(1), (earlier / strategy.temperature).softmax(1)
        loss = loss + strategy.strength * strategy.temperature**2 * F.kl_div(now, was, reduction="batchmean")
    [slope] = torch.autograd.grad(loss, y)
    velocity = 0.5 * velocity + slope
    return x - 0.5 * velocity, velocity


def said(task: Task, x: Tensor, batch: list[int]) -> Tensor:
    views = task.layout.views(x)
    return task.inputs[batch] @ views["weight"].T + views["bias"]


@pytest.mark.parametrize(("ago", "after"), [(1, 0), (2, 0), (3, 4)])
def test_saf_compares_with_what_the_client_said_so_many_of_its_own_epochs_ago(ago: int, after: int) -> None:
    task, strategy = classification([4, 8]), Saf(train=TRAIN, ago=ago, after=after, strength=0.7, temperature=2.0)
    found = jobs(strategy, task)
    for row in range(2):
        epochs: dict[int, list[Tensor]] = {}
        compared = 0
        for local, start, end in found:
            x, velocity = start[row], torch.zeros_like(start[row])
            for batch in seen(local)[int(local.nodes[row])]:
                past = [epochs.setdefault(one, []) for one in batch]
                assert len({len(one) for one in past}) == 1
                due = len(past[0]) >= ago and len(past[0]) > after
                earlier = torch.stack([one[-ago] for one in past]) if due else None
                compared += due
                for one, now in zip(past, said(task, x, batch), strict=True):
                    one.append(now)
                x, velocity = step(task, strategy, x, velocity, batch, earlier)
            torch.testing.assert_close(end[row], x, rtol=1e-5, atol=1e-5)
        assert compared


def test_mesa_compares_with_the_mean_of_the_client_s_models() -> None:
    task, strategy = classification([4, 8]), Mesa(train=TRAIN, after=1, decay=0.75, strength=0.7, temperature=2.0)
    found = jobs(strategy, task)
    for row in range(2):
        mean, done = found[0][1][row], 0
        for local, start, end in found:
            x, velocity = start[row], torch.zeros_like(start[row])
            for batch in seen(local)[int(local.nodes[row])]:
                earlier = said(task, mean, batch) if done // int(local.per_epoch[row]) > 1 else None
                x, velocity = step(task, strategy, x, velocity, batch, earlier)
                mean, done = 0.75 * mean + 0.25 * x, done + 1
            torch.testing.assert_close(end[row], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", [Saf(ago=1, after=0), Mesa(after=0, decay=0.9)], ids=lambda one: one.name)
def test_they_give_the_same_bits_in_processes_and_chunks(strategy: Trajectory) -> None:
    task = classification([3, 40, 7, 1, 22])
    method: Any = type(strategy)(**vars(strategy) | {"train": Train(batch=4), "schedule": Rounds(Count(4))})
    whole = run(task, method, 3).state["model"]
    for engine in ({"processes": 2}, {"chunk": 2}):
        fed = federation(task, method, 3, plan="looped", **engine)
        fed.run()
        fed.worker.close()
        assert torch.equal(fed.state["model"], whole)


def test_where_there_are_no_classes_it_is_refused() -> None:
    with pytest.raises(SettingError, match="`saf` compares the outputs of classes") as error:
        federation(quadratics([1.0]), Saf(train=steps()), 1)
    assert error.value.key == "task.data"
