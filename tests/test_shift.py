"""Shifts by hand: which samples change, on which nodes, in which rounds, and how clients are judged then."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from launch import TEXT, refused, simulate, write
from tools import classification, quick, steps
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.shift import Bound, Drift, Facts, Gathered, Shift, bind, shifted
from fedsim.data.shift_kinds import Noise, PermuteLabels, Rotate, RotateLabels, Scale, SwapLabels
from fedsim.method.local import Local
from fedsim.metrics.view import View
from fedsim.scenario import load
from fedsim.scenario.leaves import read
from fedsim.scenario.leaves import write as written
from fedsim.settings.choice import EVERYONE, Choice
from fedsim.settings.values import Linear, PerNode, Population
from fedsim.task.task import Task
from strategies.fedavg import FedAvg

SIX = Population(6, {"often": range(2), "rare": range(2, 6)})
FACTS = Facts((2,), True, 3)


def gathered(labels: Any, node: Any, round: Any = 0, x: Tensor | None = None) -> Gathered:
    """Row i is of node[i]; samples are numbered through."""
    y = torch.tensor(labels)
    inputs = torch.arange(y.numel() * 2.0).view(*y.shape, 2) if x is None else x
    number, rows = torch.arange(y.numel()).view(y.shape), torch.tensor(node)
    return Gathered(inputs, y, number, rows, torch.as_tensor(round).expand(len(rows)))


def bound(*shifts: Shift, facts: Facts = FACTS, people: Population = SIX, seed: int = 0) -> tuple[Bound, ...]:
    return bind(shifts, facts, people, fold(seed))


def labels(shift: Shift, of: Gathered, **more: Any) -> Any:
    return shifted(bound(shift, **more), of).targets.tolist()


# Choosing nodes


@pytest.mark.parametrize(
    ("text", "nodes"),
    [("all", [0, 1, 2, 3, 4, 5]), ("even", [0, 2, 4]), ("odd", [1, 3, 5]), ("rare", [2, 3, 4, 5]), ("1..3", [1, 2, 3]), ("4", [4])],
)
def test_nodes_are_chosen_by_a_word(text: str, nodes: list[int]) -> None:
    choice = read(text, Choice)
    assert np.flatnonzero(choice.mask(SIX, fold(0))).tolist() == nodes and written(choice, Choice) == text


def test_a_share_of_the_nodes_is_drawn() -> None:
    third = read("33.3 %", Choice)
    chosen = {tuple(np.flatnonzero(third.mask(SIX, fold(seed)))) for seed in range(200)}
    assert len(chosen) == 15 and written(third, Choice) == "33.3 %"  # all pairs of six
    assert read("0.5", Choice) == Choice(share=0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [("0-4", "a range is `0..4`"), ("4..2", "holds nothing"), ("0 %", "chooses no node"), ("1.5", "is no share"), ("-1", "-1")],
)
def test_choices_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("..", r"\.\.")):
        read(text, Choice)


# Labels


def test_swapped_labels_are_those_of_the_pair_on_the_chosen_nodes() -> None:
    of = gathered([[0, 1, 2, 0], [0, 1, 2, 0]], [2, 3])
    assert labels(SwapLabels((0, 1), nodes=Choice("even")), of) == [[1, 0, 2, 1], [0, 1, 2, 0]]
    assert labels(SwapLabels((2, 1), nodes=Choice(ids=range(3, 6))), of) == [[0, 1, 2, 0], [0, 2, 1, 0]]
    assert labels(SwapLabels((0, 1), share=0.0), of) == of.targets.tolist()
    assert of.targets.tolist() == [[0, 1, 2, 0]] * 2  # nothing in place


def test_a_share_of_the_samples_is_swapped_the_same_ones_each_time() -> None:
    of = gathered(np.tile([0, 1, 2, 2], (2, 2500)).tolist(), [0, 1])
    swap = bound(SwapLabels((0, 1), 0.4))
    new = shifted(swap, of).targets
    changed = new != of.targets
    assert not changed[of.targets == 2].any()
    assert changed[of.targets < 2].double().mean().item() == pytest.approx(0.4, abs=5 * (0.24 / 10_000) ** 0.5)
    order = torch.randperm(10_000, generator=torch.Generator().manual_seed(0))
    again = shifted(swap, Gathered(of.inputs[:, order], of.targets[:, order], of.number[:, order], of.node, of.round + 7))
    assert torch.equal(again.targets, new[:, order])
    same_samples = replace(of, number=of.number[:1].expand(2, -1))  # shared by two nodes: each has its own lot
    first, second = shifted(swap, same_samples).targets
    assert not torch.equal(first, second)


def test_labels_turn_round_or_are_permuted() -> None:
    of = gathered([[0, 1, 2]] * 6, range(6))
    assert labels(RotateLabels(2, Choice("odd")), of) == [[0, 1, 2], [2, 0, 1]] * 3
    own = labels(PermuteLabels(), of)
    assert all(sorted(row) == [0, 1, 2] for row in own) and len({tuple(row) for row in own}) > 1
    many = Population(300)
    rows = labels(PermuteLabels(kinds=2), gathered([[0, 1, 2]] * 300, range(300)), people=many)
    assert len({tuple(row) for row in rows}) == 2


# Features


def test_images_are_turned_by_node() -> None:
    x = torch.tensor([[1.0, 2], [3, 4]]).expand(3, 1, 1, 2, 2)  # [m, B, channels, height, width]
    of = gathered([[0], [0], [0]], [0, 1, 5], x=x)
    turn = Rotate(PerNode({"often": PerNode((90, 180)), "rare": PerNode(-90)}))
    new = shifted(bound(turn, facts=Facts((1, 2, 2), True, 3)), of).inputs[:, 0, 0].tolist()
    assert new == [[[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


def test_numbers_are_scaled_by_node() -> None:
    of = gathered([[0, 0]] * 2, [1, 4], x=torch.ones(2, 2, 2))
    scale = Scale(PerNode(Linear(1.0, 6.0)), PerNode(0.5), Choice("even"))  # node 4 has factor 5
    assert shifted(bound(scale), of).inputs.tolist() == [[[1, 1]] * 2, [[5.5, 5.5]] * 2]


def test_noise_is_drawn_once_for_node_and_sample() -> None:
    of = gathered([[0] * 5000] * 3, [0, 3, 5], x=torch.zeros(3, 5000, 2))
    noise = bound(Noise(PerNode(Linear(0.0, 5.0))))
    new = shifted(noise, of).inputs
    assert new.std((1, 2)).tolist() == pytest.approx([0, 3, 5], rel=0.03)
    assert abs((new[1] / 3 * new[2] / 5).mean()) < 0.05
    assert torch.equal(shifted(noise, of.rows(torch.tensor([1]))).inputs[0], new[1])
    part = replace(of, inputs=of.inputs[:, 7:9], targets=of.targets[:, 7:9], number=of.number[:, 7:9], round=of.round + 3)
    assert torch.equal(shifted(noise, part).inputs, new[:, 7:9])


# Drift


def shares(drift: Drift, until: int) -> list[float]:
    return drift.share(torch.arange(until)).tolist()  # type: ignore[no-any-return]


def test_drift_comes_at_once_step_by_step_or_again_and_again() -> None:
    swap = SwapLabels((0, 1))
    assert shares(Drift(swap, start=2), 5) == [0, 0, 1, 1, 1]
    assert shares(Drift(swap, start=1, over=4), 7) == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert shares(Drift(swap, start=1, lasts=2), 5) == [0, 1, 1, 0, 0]
    assert shares(Drift(swap, start=1, lasts=1, every=3), 8) == [0, 1, 0, 0, 1, 0, 0, 1]
    assert shares(Drift(swap, over=2, lasts=3, every=4), 6) == [0, 0.5, 1, 0, 0, 0.5]


def test_drift_changes_samples_in_its_rounds_and_a_turned_sample_stays_turned() -> None:
    of = gathered([[0, 1], [0, 1]], [0, 2], round=torch.tensor([1, 2]))
    assert labels(Drift(SwapLabels((0, 1), nodes=Choice("even")), start=2), of) == [[0, 1], [1, 0]]
    slow = bound(Drift(Scale(PerNode(2.0)), over=10))
    one = gathered([[0] * 4000], [0], x=torch.ones(1, 4000, 2))
    turned = [shifted(slow, replace(one, round=torch.tensor([r]))).inputs[0, :, 0] == 2 for r in range(11)]
    assert [t.double().mean().item() for t in turned] == pytest.approx(np.arange(11) / 10, abs=0.04)
    assert all((before <= after).all() for before, after in pairwise(turned))


# In training


def shifted_task(*shifts: Shift, counts: Any = (9, 7, 8)) -> Task:
    task = classification(counts)
    return replace(task, shifts=bound(*shifts, facts=Facts((6,), True, 3), people=Population(len(counts))))


def test_training_on_shifted_samples_is_training_on_samples_that_are_so() -> None:
    shift = [SwapLabels((0, 2), nodes=Choice(ids=range(1, 2))), Scale(PerNode(Linear(1.0, 3.0)))]
    task, factor = shifted_task(*shift), torch.tensor([1.0, 2, 3])
    y, mine = task.targets.clone(), task.samples[9:16]
    y[mine] = torch.tensor([2, 1, 0])[y[mine]]
    inputs = task.inputs[:24] * factor.repeat_interleave(torch.tensor([9, 7, 8]))[:, None]
    plain = replace(task, shifts=(), inputs=inputs, targets=y)
    for method in (FedAvg(train=steps(3)), FedAvg(train=steps(5, batch=4, momentum=0.5))):
        ours, theirs = quick(task, method, rounds=3), quick(plain, method, rounds=3)
        assert torch.equal(ours.state["model"], theirs.state["model"])


def test_the_drift_of_a_job_is_that_of_its_round() -> None:
    task = shifted_task(Drift(SwapLabels((0, 1)), start=2))
    nodes, seen = torch.tensor([0, 1]), []
    for rounds in ([1, 2], [2, 1]):
        local = Local(SimpleNamespace(masks=False), task, steps(1), nodes, fold(0, nodes), np.array(rounds))  # type: ignore[arg-type]
        [(batch,)] = list(local.batches())
        seen.append(batch.targets)
    plain = task.targets[task.samples[torch.stack([torch.arange(9), 9 + torch.arange(9).clamp(max=6)])]]
    swapped = torch.tensor([1, 0, 2])[plain]
    assert torch.equal(seen[0], torch.stack([plain[0], swapped[1]])) and torch.equal(seen[1], torch.stack([swapped[0], plain[1]]))


def test_grouping_changes_nothing() -> None:
    task = shifted_task(Noise(PerNode(0.3)), Drift(SwapLabels((0, 1), 0.5), over=3), counts=(9, 7, 8, 3, 5))
    models = [quick(task, FedAvg(train=steps(4, batch=2)), rounds=3, chunk=chunk).state["model"] for chunk in (1, 2, 5)]
    assert torch.equal(models[0], models[1]) and torch.equal(models[0], models[2])


def test_shifts_are_part_of_the_tasks_hash_and_move_with_it() -> None:
    task = shifted_task(Scale())
    assert task.hash() != replace(task, shifts=()).hash() and task.hash() == shifted_task(Scale()).hash()
    assert task.move("cpu").shifts[0].values.tolist() == [[1, 0]] * 3


# Judging clients


def says(task: Task, always: int) -> Tensor:
    """[1, d]: a model that says one class whatever it sees."""
    model = torch.zeros(1, task.layout.size)
    task.layout.views(model)["bias"][0, always] = 5.0
    return model


def test_clients_are_judged_on_labels_as_they_have_them() -> None:
    task = shifted_task(Drift(SwapLabels((0, 1), nodes=Choice(ids=range(1))), start=5))
    mix = task.label_counts().double() / task.counts[:, None]
    before, after = (View(task, says(task, 0), round).clients for round in (4, 5))
    assert after[1:].tolist() == pytest.approx(mix[1:, 0].tolist()) and before[1:].tolist() == after[1:].tolist()
    # Node 0 is judged on 100 test samples with its mix of labels: counts are within one of 100 x mix
    assert before[0].item() == pytest.approx(mix[0, 0].item(), abs=0.011)
    assert after[0].item() == pytest.approx(mix[0, 1].item(), abs=0.011)
    assert View(task, says(task, 0), 5).tests[1].mean() == View(replace(task, shifts=()), says(task, 0)).tests[1].mean()


def test_clients_with_test_samples_of_their_own_are_judged_on_those() -> None:
    owner = torch.arange(50) % 4 - 1
    task = replace(shifted_task(SwapLabels((0, 1), nodes=Choice("odd"))), test_owner=owner)
    whole = [(task.test_targets[owner == i] == (1 if i == 1 else 0)).double().mean().item() for i in range(3)]
    assert View(task, says(task, 0)).clients.tolist() == pytest.approx(whole)
    peers = torch.cat([says(task, 0), says(task, 1), says(task, 2)])
    rows = [(task.test_targets[owner == i] == c).double().mean().item() for i, c in ((0, 0), (1, 0), (2, 2))]
    assert View(task, peers).clients.tolist() == pytest.approx(rows)
    assert View(task, peers, slab=3).clients.tolist() == pytest.approx(rows)


def test_features_are_shifted_for_the_judged_client_only() -> None:
    """A model that says class 1 where the first number is above 0, on samples of ones: turned round by factor -1."""
    task = classification([5, 5])
    x, y = torch.ones_like(task.test_inputs), torch.ones_like(task.test_targets)
    task = replace(task, test_inputs=x, test_targets=y, targets=torch.ones_like(task.targets))
    flip = bound(Scale(PerNode(-1.0), nodes=Choice(ids=range(1, 2))), facts=Facts((6,), True, 3), people=Population(2))
    model = torch.zeros(1, task.layout.size)
    task.layout.views(model)["weight"][0, 1, 0] = 1.0
    assert View(replace(task, shifts=flip), model).clients.tolist() == [1, 0]
    assert View(task, model).clients.tolist() == [1, 1]


# Bad input


@pytest.mark.parametrize(
    ("shift", "facts", "said"),
    [
        (SwapLabels((0, 3)), FACTS, "task.shift.0.pair: class 3 of 3"),
        (SwapLabels((1, 1)), FACTS, "task.shift.0.pair: class 1 with itself"),
        (SwapLabels((0, 1)), Facts((2,), True, 0), "task.shift.0.name: swap_labels changes classes"),
        (SwapLabels((0, 1), nodes=Choice("rear")), FACTS, "task.shift.0.nodes: no group `rear` .*often, rare"),
        (SwapLabels((0, 1), nodes=Choice(ids=range(4, 7))), FACTS, "task.shift.0.nodes: node 6 of 6"),
        (Rotate(), FACTS, "task.shift.0.name: square images are needed"),
        (Rotate(), Facts((1, 8, 9), True, 3), "task.shift.0.name: square images are needed"),
        (Rotate(PerNode(45)), Facts((1, 8, 8), True, 3), "task.shift.0.degrees: 45 is no multiple of 90"),
        (Noise(PerNode(1.0)), Facts((2,), False, 3), "task.shift.0.name: noise changes numbers, and the samples are tokens"),
        (Scale(PerNode((1.0, 2.0))), FACTS, "task.shift.0.factor: a list of 2 values for 6 nodes"),
        (Drift(SwapLabels((0, 3))), FACTS, "task.shift.0.inner.pair: class 3 of 3"),
        (Drift(Noise(PerNode((1.0, 2.0)))), FACTS, "task.shift.0.inner.sigma: a list"),
        (
            Drift(
                Scale(nodes=Choice("often ")),
            ),
            FACTS,
            "task.shift.0.inner.nodes: no group",
        ),
    ],
)
def test_shifts_that_do_not_fit(shift: Shift, facts: Facts, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        bound(shift, facts=facts)


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ("{name: swap_labels, pair: [0, 11]}", "small.yaml:1:125: task.shift.0.pair: class 11 of 10"),
        ("{name: swap_labels}", "task.shift.0.pair: is needed"),
        ("{name: swap_label}", "unknown shift `swap_label`; did you mean `swap_labels`?"),
        ("{name: drift, inner: {name: noise, sigma: 1}, every: 3}", "task.shift.0: `every` needs a `lasts`"),
        ("{name: noise, sigma: -1}", "task.shift.0.sigma: `-1`: at least 0 is due"),
        ("{name: rotate, nodes: 0..8}", "task.shift.0.nodes: node 8 of 8"),
    ],
)
def test_what_users_get_wrong(folder: Path, shift: str, said: str) -> None:
    text = TEXT.replace("model: logistic", f"model: logistic, shift: [{shift}]")
    assert said in refused("validate", write(folder, text).name)


def test_a_scenario_with_shifts_runs_and_is_written_down(folder: Path) -> None:
    text = TEXT.replace(
        "model: logistic",
        "model: logistic, shift: [{name: rotate, degrees: [0, 90, 180, 270, 0, 90, 180, 270]}, "
        "{name: drift, inner: {name: swap_labels, pair: [0, 1], share: 40 %, nodes: odd}, start: 2, lasts: 1, every: 2}]",
    )
    run = simulate(folder, text=text)
    [again] = load(run.path / "scenario.yaml")
    swap = SwapLabels((0, 1), 0.4, Choice("odd"))
    turn = Rotate(PerNode((0, 90, 180, 270) * 2), EVERYONE)
    assert again.scenario.task.shift == (turn, Drift(swap, 2, lasts=1, every=2)) and again.hash == run.info["hash"]
    plain = simulate(folder, into="plain")
    assert plain.info["data"] != run.info["data"] and plain.info["model"] != run.info["model"]
    # The first two rounds are before the drift
    early = [
        simulate(folder, f"stop.rounds={n}", *extra, text=text, into=f"{n}{len(extra)}")
        for n in (2, 7)
        for extra in ((), ("task.shift.1.start=9",))
    ]
    models = [one.info["model"] for one in early]
    assert models[0] == models[1] and models[2] != models[3]
