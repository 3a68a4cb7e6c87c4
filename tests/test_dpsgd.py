"""Privacy of samples: clipping by hand, noise, batches by coins, the account against opacus, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_buffers import normed
from tools import classification, durations, federation, models, quadratics, quick, run, steps
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Rows
from fedsim.codecs import Srht
from fedsim.engines.local import LocalEngine
from fedsim.federation.federate import federate
from fedsim.federation.federation import Federation
from fedsim.method.attacks import Fgsm
from fedsim.method.batching import Work
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.privacy.dpsgd import Spending, coins, costliest
from fedsim.privacy.gaussian import Gaussian
from fedsim.privacy.spent import ORDERS, epsilon
from fedsim.schedule import Gossip, Rounds
from fedsim.settings.values import Constant, Count
from fedsim.task.task import Task
from fedsim.world import World
from strategies.adversarial import Adversarial
from strategies.dsgd import Dsgd
from strategies.eggroll import Eggroll
from strategies.fedavg import FedAvg
from strategies.fedld import FedLd
from strategies.fedprox import FedProx
from strategies.fedsam import FedSam
from strategies.one_byte import OneByte
from strategies.scaffold import Scaffold
from strategies.sketched import Sketched

ALL = Rounds(cohort=Count())
DELTA = 1e-5


def samples(clip: float = 1.0, noise: float | None = 1.0, **settings: Any) -> Gaussian:
    return Gaussian(clip, noise, unit="sample", **settings)


def fedavg(privacy: Gaussian | None, train: Train | None = None, **settings: Any) -> FedAvg:
    return FedAvg(train=train or steps(), privacy=privacy, **{"schedule": ALL} | settings)


def one_node(centres: Any, curvature: Any = 1.0) -> Task:
    """All quadratics are samples of one node."""
    task = quadratics(centres, curvature)
    return replace(task, starts=torch.tensor([0, len(task.inputs)]))


def spending(fed: Federation) -> Spending:
    found = fed.companion(Spending)
    assert found
    return found


# Gradients


def test_each_samples_gradient_is_clipped_by_hand() -> None:
    """At 0 the gradients are -(3, 4), -(0.3, 0.4) and -2 (0, 1): of length 5, 0.5 and 2; clipped to 1, their mean is that of
    (0.6, 0.8), (0.3, 0.4) and (0, 1)."""
    task = one_node([[3.0, 4.0], [0.3, 0.4], [0.0, 1.0]], [1.0, 1.0, 2.0])
    w = models(quick(task, fedavg(samples(1.0, 0)), 1))[1, 0]
    assert w.tolist() == pytest.approx([0.1 * 0.9 / 3, 0.1 * 2.2 / 3], rel=1e-12)


def logistic(x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """[N, d]: each sample's gradient of softmax regression at x [d], by its formula (p - onehot) input'."""
    weight, bias = x[:18].view(3, 6), x[18:]
    wrong = (inputs @ weight.T + bias).softmax(1) - nn.functional.one_hot(targets, 3)
    return torch.cat([(wrong[:, :, None] * inputs[:, None]).flatten(1), wrong], 1)


@pytest.mark.parametrize("plan", ["looped", "stacked"])
def test_a_linear_models_step_is_that_of_the_formula(plan: str) -> None:
    task = classification([7, 4])
    fed = federation(task, fedavg(samples(0.8, 0), weights="uniform"), 1, plan=plan)
    fed.run()
    expected, seen = list[Tensor](), list[float]()
    for node in range(2):
        at = slice(int(task.starts[node]), int(task.starts[node + 1]))
        slopes = logistic(task.init, task.inputs[at], task.targets[at])
        lengths = slopes.norm(dim=1, keepdim=True)
        seen += lengths.flatten().tolist()
        expected.append(-0.1 * (slopes * (0.8 / lengths).clamp(max=1)).mean(0))
    assert min(seen) < 0.8 < max(seen)
    assert torch.allclose(models(fed)[1, 0] - task.init, torch.stack(expected).mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", [FedAvg, Sketched])
def test_without_noise_and_clip_it_is_the_same_bits(kind: type[Strategy]) -> None:
    plain: Any = kind(train=Train(epochs=2, batch=4, momentum=0.5), schedule=ALL)
    task = classification([9, 5, 12])
    expected, found = (models(quick(task, one, 3)) for one in (plain, replace(plain, privacy=samples(math.inf, 0))))
    assert torch.equal(expected, found)
    wide = models(quick(task, replace(plain, privacy=samples(1e6, 0)), 3))
    assert torch.allclose(wide, expected, atol=1e-5) and not torch.equal(expected[0], expected[-1])


def test_noise_is_that_of_clips_over_the_expected_batch() -> None:
    """Gradients are 0: what moves is lr x z x C / B, with B the node's samples where it has less than a batch."""
    task = quadratics(torch.zeros(2, 4000), samples=[3, 20])
    train = Train(steps=1, batch=8, lr=Constant(0.1))
    moved = models(run(task, Dsgd(train=train, privacy=samples(0.5, 2.0)), 1, plan="looped"))[1]
    mixed = math.hypot(0.1 * 2 * 0.5 / 3, 0.1 * 2 * 0.5 / 8) / 2  # both have the mean
    assert moved[0].std().item() == pytest.approx(mixed, rel=0.03)
    assert abs(moved[0].mean().item()) < 4 * mixed / 4000**0.5


def test_noise_before_sketching_comes_out_longer_by_the_gain() -> None:
    """Var of a number of R' R xi is sigma^2 d / s."""
    task = quadratics(torch.zeros(1, 4096))
    moved = models(quick(task, Sketched(train=steps(), schedule=ALL, sketch=Srht(count=1024), privacy=samples(1.0, 1.0)), 4))
    assert moved.diff(dim=0)[0].var().item() == pytest.approx(0.1**2 * 4, rel=0.1)


def test_noise_differs_between_rounds_steps_gradients_of_a_step_and_nodes() -> None:
    """Gradients are next to 0, so noise is all there is."""
    one, two = (quadratics(torch.zeros(nodes, 4000), 1e-9) for nodes in (1, 2))
    sam = FedSam(train=steps(), schedule=ALL, ascent=1.0, privacy=samples())
    first, later = models(quick(one, fedavg(samples()), 2))[:, 0].diff(dim=0)
    pair, ascended, both = (
        models(quick(*what, 1))[1, 0] for what in [(one, fedavg(samples(), steps(2))), (one, sam), (two, fedavg(samples()))]
    )
    rows = torch.stack([first, later, pair - first, ascended, 2 * both - first])
    assert rows.std(1).tolist() == pytest.approx([0.1] * 5, rel=0.05)
    assert float((torch.corrcoef(rows) - torch.eye(5)).abs().max()) < 0.08


def test_the_bits_do_not_depend_on_who_is_computed_together() -> None:
    task, private = classification([9, 30, 12, 17]), fedavg(samples(), Train(epochs=2, batch=4))
    alone, together = (models(run(task, private, 3, plan="stacked", chunk=chunk)) for chunk in (1, 4))
    assert torch.equal(alone, together)


@pytest.mark.parametrize("strategy", [
    FedProx(pull=0.1), Scaffold(), FedSam(), Dsgd(), Sketched(sketch=Srht(fraction=0.5)), FedAvg(uplink=Srht(fraction=0.5)),
], ids=lambda one: one.name)  # fmt: skip
def test_methods_that_take_gradients_are_private_as_they_are(strategy: Strategy) -> None:
    schedule = Gossip() if strategy.kind == "peers" else ALL
    train = Train(steps=2, batch=4, momentum=0.9, clip=5.0, weight_decay=1e-3)
    settled = replace(strategy, train=train, schedule=schedule, privacy=samples())
    fed = quick(classification([20, 30, 25]), settled, 3)
    assert bool(models(fed)[-1].isfinite().all())
    assert spending(fed).epsilon == pytest.approx(epsilon(1 / strategy.gradients**0.5, DELTA, 6, 4 / 20), rel=1e-12)


def test_dropout_has_units_of_its_own_for_each_sample() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    fed = quick(classification([6, 8], model=model), fedavg(samples(1.0, 0)), 2)
    assert bool(models(fed)[-1].isfinite().all()) and not torch.equal(models(fed)[0], models(fed)[-1])


# Batches


def work(counts: list[int], steps: list[int]) -> Work:
    keys = fold(3, torch.arange(len(counts))).numpy()
    return Work(keys, np.array(counts), np.array(steps), np.ones(len(counts), dtype=np.int64))


def test_coins_are_fair_and_each_sample_falls_once_at_most() -> None:
    job, place, valid = coins(work([40, 10, 3], [3000] * 3), 8, 0, 3000)
    for node, (count, chance) in enumerate([(40, 0.2), (10, 0.8), (3, 1.0)]):
        rows, fell = place[job == node], valid[job == node]
        often = np.bincount(rows[fell], minlength=count)
        assert len(often) == count and (np.abs(often / 3000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 3000) + 1e-12).all()
        assert all(len(set(one[here])) == here.sum() for one, here in zip(rows, fell, strict=True))
        together = (rows[:, :, None] == np.array([0, 1]))[fell].sum() if node == 2 else None
        assert together in (None, 6000)
        sizes = fell.sum(1)
        assert sizes.var() == pytest.approx(count * chance * (1 - chance), rel=0.1, abs=1e-12)


def test_coins_do_not_depend_on_what_is_drawn_together() -> None:
    whole = work([40, 10, 30], [6, 6, 3])
    job, place, valid = coins(whole, 8, 0, 6)
    assert job.tolist() == [0, 1, 2] * 3 + [0, 1] * 3
    parts = [coins(whole, 8, 0, 2), coins(whole, 8, 2, 6)]
    found = [rows[here].tolist() for _, places, valids in parts for rows, here in zip(places, valids, strict=True)]
    assert found == [rows[here].tolist() for rows, here in zip(place, valid, strict=True)]
    one, alone, here = coins(Work(*(column[1:2] for column in whole)), 8, 3, 4)
    assert one.tolist() == [0] and alone[0][here[0]].tolist() == found[10]


def test_the_sum_is_divided_by_the_batch_expected_whoever_fell() -> None:
    """With equal samples a step is -lr g x fell / B, so a job's steps tell how many fell."""
    task = one_node([[1.0]] * 30)
    train = Train(steps=1, batch=10, lr=Constant(1e-6))
    w = models(quick(task, fedavg(samples(1.0, 1e-3), train), 200))[:, 0, 0]
    fell = w.diff() / 1e-6 * 10  # noise is a thousandth of a sample
    assert bool(((fell - fell.round()).abs() < 0.01).all()) and len(set(fell.round().tolist())) > 5
    assert float(fell.mean()) == pytest.approx(10, abs=4 * math.sqrt(30 / 3 * 2 / 3 / 200))


# Account


def opacus(noise: float, chance: float, count: int) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    for _ in range(count):
        accountant.step(noise_multiplier=noise, sample_rate=chance)
    return float(accountant.get_epsilon(DELTA, alphas=list(ORDERS)))


def test_the_worst_node_spends_what_opacus_says() -> None:
    """Three of five nodes a round: those with few samples have greater chances, those asked more often more steps."""
    fed = quick(classification([20, 30, 50, 80, 400]), fedavg(samples(noise=1.1), Train(steps=3, batch=4), schedule=Rounds(Count(3))), 12)
    times = spending(fed).times
    assert times.sum() == 36 and len(set(times.tolist())) > 1
    each = [opacus(1.1, 4 / count, 3 * int(often)) for count, often in zip([20, 30, 50, 80, 400], times, strict=True)]
    assert spending(fed).epsilon == pytest.approx(max(each), rel=1e-9)


def test_full_batches_are_not_amplified() -> None:
    fed = quick(classification([20, 30]), fedavg(samples(noise=5.0), steps(2)), 3)
    assert spending(fed).epsilon == epsilon(5.0, DELTA, 6)


@given(st.lists(st.tuples(st.integers(1, 500), st.sampled_from([0.01, 0.02, 0.05, 0.2, 0.7, 1.0])), min_size=1, max_size=12))
def test_the_costliest_node_is_found(nodes: list[tuple[int, float]]) -> None:
    count, chance = (np.array(column) for column in zip(*nodes, strict=True))
    cost, most, coin = costliest(1.1, DELTA, count, chance)
    assert cost == max(epsilon(1.1, DELTA, *node) for node in nodes) == epsilon(1.1, DELTA, most, coin)


def test_work_that_does_not_arrive_is_paid_for() -> None:
    slow = Rounds(Count(), wait_for=1)
    fed = quick(classification([20, 20]), fedavg(samples(), schedule=slow), 5, durations(1, 2))
    assert spending(fed).times.tolist() == [5, 5]


def test_planned_noise_spends_the_budget_and_no_more() -> None:
    private = fedavg(Gaussian(1.0, epsilon=4.0, unit="sample"), Train(epochs=1, batch=8))
    fed = looped_for(classification([20, 31, 64]), private, 10)
    assert 3.9 < spending(fed).epsilon <= 4
    assert fed.worker.privacy == samples(noise=spending(fed).noise)


def looped_for(task: Task, strategy: Strategy, rounds: int) -> Federation:
    """A run that is planned for so many rounds, and has done them."""
    like = federation(task, replace(strategy, privacy=None), rounds)
    worker = LocalEngine(device="cpu", plan="looped").start(task, strategy, 0)
    fed = federate(worker, like.nature, like.ledger, 0, rounds)
    fed.watch = like.watch
    fed.run()
    return fed


# What is refused


class Twice(FedAvg):
    """Trains twice on the same samples and says nothing of it."""

    def local_update(self, received: Rows, memory: Rows, local: Any) -> tuple[Rows, Rows]:
        return {"update": local.descend(local.descend(received["model"])) - received["model"]}, memory


class Greedy(FedAvg):
    """Takes two gradients of a batch and declares one."""

    def local_update(self, received: Rows, memory: Rows, local: Any) -> tuple[Rows, Rows]:
        x = received["model"].clone()
        for batch, y in local.batches(x):
            local.step(y, batch.gradient(y) + batch.gradient(y))
        return {"update": x - received["model"]}, memory


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (OneByte(schedule=ALL, privacy=samples()), r"privacy.unit: .*\(`one_byte`\) takes no gradients"),
        (Eggroll(schedule=ALL, privacy=samples()), r"privacy.unit: .*\(`eggroll`\) takes no gradients"),
        (FedLd(schedule=ALL, privacy=samples()), r"privacy.unit: .*\(`fedld`\) has a loss of whole batches"),
        (Adversarial(attack=Fgsm(radius=0.1), privacy=samples()), r"privacy.unit: .* looks at gradients with respect to their inputs"),
        (Twice(schedule=ALL, privacy=samples()), r"privacy.unit: .* goes through their batches more than once a job"),
        (Greedy(schedule=ALL, privacy=samples()), r"privacy.unit: .* asks for more gradients a step than it declares, 1"),
        (fedavg(samples(delta=0.1)), r"privacy.delta: 0.1 for 12 samples of one node; below 0.0833333"),
        (fedavg(Gaussian(1.0, epsilon=1.0, unit="sample")), r"privacy.epsilon: needs `stop.rounds`"),
    ],
)
def test_what_has_no_meaning_is_refused(strategy: Strategy, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        quick(classification([12, 7]), strategy, 1)


def test_running_statistics_are_refused() -> None:
    for keep in ("average", "local"):
        with pytest.raises(SettingError, match=r"privacy.unit: the model's running statistics \(BatchNorm\) are of samples"):
            quick(normed(keep=keep), fedavg(samples()), 1)


def test_an_endless_clip_needs_no_noise() -> None:
    for settings in ({"noise": 1.0}, {"noise": 0.0, "unit": "client"}):
        with pytest.raises(ValueError, match="`clip` must be finite"):
            Gaussian(clip=math.inf, **settings)  # type: ignore[arg-type]


def test_peers_hide_their_samples_but_not_themselves() -> None:
    peers = Dsgd(train=steps(), privacy=samples())
    quick(classification([12, 7]), peers, 1, World())
    with pytest.raises(SettingError, match="privacy: noise is added at a server"):
        quick(classification([12, 7]), replace(peers, privacy=Gaussian(1.0, 1.0)), 1)
