"""Local training: batches, steps and their bits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import classification, quadratics
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.base.keys import fold, normal
from fedsim.gradients.looped import Looped
from fedsim.gradients.stacked import Stacked
from fedsim.method.local import Ascent, Local
from fedsim.method.train import Train
from fedsim.settings.values import Constant, Curve, Exponential
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


def local_of(task: Task, train: Train, nodes: list[int], turn: int = 1, chunk: int = 100, looped: bool = False) -> Local:
    """Jobs of nodes, sorted by falling number of steps as the engine does."""
    plan = Looped(task, FedAvg().loss, chunk) if looped else Stacked(task, FedAvg().loss, chunk, exact=True)
    ids = torch.tensor(nodes)
    steps = train.plan(task.counts[ids], train.batch_size(task))[0]
    ids = ids[torch.argsort(steps, descending=True, stable=True)]
    return Local(plan, task, train, ids, fold(0, "job", ids, torch.full_like(ids, turn)), np.zeros(len(ids), dtype=np.int64))


def seen(local: Local) -> dict[int, list[list[int]]]:
    """Samples of each batch of each node, padding left out."""
    out: dict[int, list[list[int]]] = {int(node): [] for node in local.nodes}
    _, samples, weight = local._table(0, int(local.steps.max()))
    at = 0
    for step in range(int(local.steps.max())):
        for row in range(int((local.steps > step).sum())):
            out[int(local.nodes[row])].append(samples[at][weight[at] > 0].tolist())
            at += 1
    assert at == len(samples)  # no row for a job that is done
    return out


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_each_epoch_visits_each_sample_once(counts: list[int], batch: int, epochs: int, turn: int) -> None:
    task = classification(counts)
    batches = seen(local_of(task, Train(epochs=epochs, batch=batch), list(range(len(counts))), turn))
    starts = task.starts.tolist()
    for node, (first, last) in enumerate(pairwise(starts)):
        a_pass = -(-(last - first) // min(batch, max(counts)))
        assert len(batches[node]) == epochs * a_pass
        for epoch in range(epochs):
            visited = [sample for one in batches[node][epoch * a_pass : (epoch + 1) * a_pass] for sample in one]
            assert sorted(visited) == list(range(first, last))


def test_batches_do_not_depend_on_who_else_works_or_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    task = classification([7, 30, 12, 1])
    train = Train(epochs=3, batch=5)
    together = seen(local_of(task, train, [0, 1, 2, 3]))
    for node in range(4):
        assert seen(local_of(task, train, [node]))[node] == together[node]
    local = local_of(task, train, [0, 1, 2, 3])
    whole, parts = local._table(0, 18), [local._table(a, a + 1) for a in range(18)]
    for one, steps in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(steps))


def test_other_turns_and_epochs_have_other_orders() -> None:
    task = classification([40])
    one, two = (seen(local_of(task, Train(epochs=2, batch=40), [0], turn))[0] for turn in (1, 2))
    assert one[0] != one[1]
    assert one[0] != two[0]


def test_steps_continue_into_new_epochs_and_half_an_epoch_is_half() -> None:
    task = classification([10])
    batches = seen(local_of(task, Train(steps=5, batch=4), [0]))[0]
    assert [len(one) for one in batches] == [4, 4, 2, 4, 4]
    assert len(seen(local_of(task, Train(epochs=0.5, batch=4), [0]))[0]) == 2  # 1.5 of 3, rounded up


def test_fractions_of_an_epoch_are_exact() -> None:
    for share, batches, steps in ((0.3, 50, 15), (1.2, 25, 30), (5.3, 90, 477), (0.01, 50, 1), (2, 7, 14)):
        assert Train(epochs=share, batch=1).plan(torch.tensor([batches]), 1)[0].item() == steps


def test_very_long_jobs_are_shuffled_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    task, train = classification([1, 2, 3]), Train(steps=60, batch=2)
    expected = local_of(task, train, [0, 1, 2]).descend(task.init.expand(3, -1))
    monkeypatch.setattr("fedsim.method.batching.MOST_SHUFFLES", 20)
    assert torch.equal(local_of(task, train, [0, 1, 2]).descend(task.init.expand(3, -1)), expected)


def test_samples_counts_what_the_batches_look_at() -> None:
    task = classification([10, 3, 25])
    for train in (Train(steps=5, batch=4), Train(epochs=2, batch=4), Train(epochs=0.3, batch=4), Train(steps=3, batch="all")):
        looked = seen(local_of(task, train, [0, 1, 2]))
        counted = train.samples(task.counts, train.batch_size(task)).tolist()
        assert counted == [sum(map(len, looked[node])) for node in range(3)]


def test_a_full_batch_is_all_samples_in_one_step() -> None:
    task = classification([3, 6])
    assert seen(local_of(task, Train(steps=2, batch="all"), [0, 1])) == {0: [[0, 1, 2]] * 2, 1: [[3, 4, 5, 6, 7, 8]] * 2}


def torch_loop(task: Task, local: Local, row: int, x: Tensor, options: dict[str, float], clip: float | None = None) -> Tensor:
    """Plain PyTorch on one node's batches."""
    model = nn.Linear(task.inputs.shape[1], task.classes)
    with torch.no_grad():
        for parameter, view in zip(model.parameters(), task.layout.views(x).values(), strict=True):
            parameter.copy_(view)
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for samples in seen(local)[int(local.nodes[row])]:
        optimizer.zero_grad()
        F.cross_entropy(model(task.inputs[samples]), task.targets[samples]).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(
    ("settings_", "options", "clip"),
    [
        ({}, {"lr": 0.1}, None),
        ({"momentum": 0.9}, {"lr": 0.1, "momentum": 0.9}, None),
        ({"weight_decay": 0.01}, {"lr": 0.1, "weight_decay": 0.01}, None),
        ({"clip": 0.2}, {"lr": 0.1}, 0.2),
        ({"clip": 0.3, "momentum": 0.5, "weight_decay": 0.1}, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}, 0.3),
    ],
)
def test_descent_equals_plain_pytorch(looped: bool, settings_: dict[str, float], options: dict[str, float], clip: float | None) -> None:
    task = classification([11, 4, 30])
    train = Train(epochs=2, batch=5, lr=Constant(0.1), **settings_)  # type: ignore[arg-type]
    local = local_of(task, train, [0, 1, 2], looped=looped)
    after = local.descend(task.init.expand(3, -1))
    for row in range(3):
        expected = torch_loop(task, local, row, task.init, options, clip)
        torch.testing.assert_close(after[row], expected, rtol=1e-5, atol=1e-6)


def test_a_dual_joins_the_slope_that_is_clipped() -> None:
    # Gradient -4, pull 2 x dual 3 joins it: 2, clipped to 1, and the pull to the anchor 5 is beside it: 0 - 0.5 (1 + 2 (0 - 5)) = 4.5
    local = local_of(quadratics([4.0]), Train(steps=1, batch="all", lr=Constant(0.5), clip=1.0), [0])
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert local.descend(zero, anchor=zero + 5, pull=2.0, dual=zero + 3).item() == 4.5
    plain = local_of(quadratics([4.0]), Train(steps=1, batch="all", lr=Constant(0.5)), [0])
    assert plain.descend(zero, anchor=zero + 5, pull=2.0, dual=zero + 3).item() == 4.0  # 0 - 0.5 (2 - 10)


def test_the_pull_is_a_proximal_gradient() -> None:
    # F = 1/2 |w - 4|^2 from 0 with pull 1 to anchor 2: w1 = 0 + 0.5 (4 - 0 + 2 - 0) = 3, then 3 + 0.5 (1 - 1) = 3
    local = local_of(quadratics([4.0]), Train(steps=2, batch="all", lr=Constant(0.5)), [0])
    after = local.descend(torch.zeros(1, 1, dtype=torch.float64), anchor=torch.full((1, 1), 2.0, dtype=torch.float64), pull=1.0)
    assert after.item() == 3.0


def test_rates_by_round_are_each_row_s_own() -> None:
    task = quadratics([1.0, 1.0])
    train = Train(steps=1, batch="all", lr=Exponential(start=0.5, factor=0.5))
    plan = Stacked(task, FedAvg().loss, 2, exact=True)
    ids = torch.tensor([0, 1])
    after = Local(plan, task, train, ids, fold(0, ids), np.array([0, 2])).descend(torch.zeros(2, 1, dtype=torch.float64))
    assert after[:, 0].tolist() == [0.5, 0.125]  # lr 0.5 and 0.125, gradient -1


def test_plain_steps_are_steps_along_the_flat_gradient() -> None:
    task = classification([11, 4, 30, 9])
    train = Train(epochs=2, batch=5)
    local = local_of(task, train, [0, 1, 2, 3])
    x = task.init.expand(4, -1).clone()
    for batch, y in local.batches(x):
        local.step(y, batch.gradient(y))
    torch.testing.assert_close(local.descend(task.init.expand(4, -1)), x, rtol=1e-6, atol=1e-7)


ASCENTS = [None, Ascent(0.2), Ascent(0.2, normalised=False), Ascent(0.3, mix=0.6), Ascent(0.0), Ascent(0.3, mix=0.0)]


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("ascent", ASCENTS)
@pytest.mark.parametrize("lr", [Constant(0.1), Exponential(start=0.1, factor=0.9)])
def test_the_fused_step_is_gradient_drift_decay_and_pull_each_on_its_own(looped: bool, ascent: Ascent | None, lr: Curve) -> None:
    task = classification([11, 4, 30])
    local = local_of(task, Train(epochs=2, batch=5, lr=lr, weight_decay=0.02), [0, 1, 2], looped=looped)
    start = task.init.expand(3, -1)
    drift, anchor = (0.1 * normal(fold(seed, torch.arange(3)), task.layout.size) for seed in (1, 2))
    fused = local.descend(start, anchor, 0.3, 0.7, drift, ascent)
    y, rate = start.clone(), local.lr
    for batch, part in local.batches(y):
        live = len(part)
        slope = 0.7 * (Ascent(0.0) if ascent is None else ascent).gradient(batch, part) + drift[:live]
        slope = slope + 0.02 * part + 0.3 * (part - anchor[:live])
        part -= (rate if isinstance(rate, float) else rate[:live]) * slope
    torch.testing.assert_close(fused, y, rtol=1e-5, atol=1e-6)
    for less, more in ((drift, drift + 0.3 * anchor), (None, 0.3 * anchor)):
        both = (local.descend(start, anchor, 0.3, 0.7, one, ascent, dual) for one, dual in ((less, anchor), (more, None)))
        torch.testing.assert_close(*both, rtol=1e-5, atol=1e-6)
    if ascent is not None and not ascent:
        assert torch.equal(fused, local.descend(start, anchor, 0.3, 0.7, drift))
    each = [local_of(task, local.train, [node]) for node in (2, 0, 1)]  # the order of rows is by falling steps
    alone = [one.descend(start[:1], anchor[i : i + 1], 0.3, 0.7, drift[i : i + 1], ascent) for i, one in enumerate(each)]
    if not looped:
        assert torch.equal(torch.cat(alone), fused)


def test_a_scale_of_numbers_is_each_parameter_s_own() -> None:
    local = local_of(quadratics([[4.0, 4.0]]), Train(steps=1, batch="all", lr=Constant(0.5)), [0])
    after = local.descend(torch.zeros(1, 2, dtype=torch.float64), scale=torch.tensor([[1.0, 0.5]]).double())
    assert after.tolist() == [[2, 1]]


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_length_of_a_job_is_what_weighs_a_constant_slope(momentum: float) -> None:
    task = quadratics([0.0, 0.0], samples=[3, 1])
    local = local_of(task, Train(epochs=2, batch=1, lr=Constant(0.25), momentum=momentum), [0, 1])
    flat = local.descend(torch.zeros(2, 1, dtype=torch.float64), scale=torch.zeros(2, 1).double(), drift=torch.ones(2, 1).double())
    assert torch.allclose(-flat, local.length, rtol=1e-12)
    assert momentum or local.length.tolist() == [[1.5], [0.5]]


def test_epochs_and_steps_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude"):
        Train(epochs=1, steps=1)
