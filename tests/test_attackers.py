"""Attackers by hand: what they send instead, where it is seen, and what stays as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import TEXT, call, refused, resumed, same, simulate, write
from tools import classification, durations, federation, models, quadratics, quick, steps
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.shift import Facts, Gathered
from fedsim.data.shift_kinds import FlipLabels
from fedsim.federation.lies import Lies
from fedsim.method.average import Krum, Median, MultiKrum
from fedsim.metrics.view import View
from fedsim.schedule import Buffered, Gossip, Rounds
from fedsim.settings.choice import Choice
from fedsim.settings.values import Count
from fedsim.world import Alie, Attackers, Gaussian, InnerProduct, LabelFlip, Liars, SignFlip, World
from fedsim.world import attackers as module
from strategies.fedasync import FedAsync
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff

ALL = Rounds(Count())
LAST = Choice(ids=range(3, 4))
UPDATES = [[1.0, -2.0], [3.0, 0.0], [2.0, 4.0], [10.0, 10.0]]  # the last is an attacker's


def forged(attackers: Attackers, rows: Any = UPDATES, false: Any = (3,), job: int = 0) -> Any:
    """What reaches the hearer of messages of nodes 0, 1, ..."""
    x = torch.tensor(rows, dtype=torch.float64)
    mask = np.isin(np.arange(len(x)), false)
    nodes = np.arange(len(x))
    return Liars(attackers, mask, fold(7)).heard({"update": x}, nodes, nodes + job)["update"]


# What is sent


def test_a_flipped_sign() -> None:
    assert forged(SignFlip(nodes=LAST)).tolist() == [*UPDATES[:3], [-10, -10]]
    assert forged(SignFlip(nodes=LAST, factor=0.5), false=(0, 3)).tolist() == [[-0.5, 1], *UPDATES[1:3], [-5, -5]]


def test_a_little_is_the_honest_mean_less_some_deviations() -> None:
    # mean 2 and 2/3, variance 2/3 and 56/9
    expected = [2 - 1.5 * (2 / 3) ** 0.5, 2 / 3 - 1.5 * (56 / 9) ** 0.5]
    assert forged(Alie(nodes=LAST, z=1.5))[3].tolist() == pytest.approx(expected, rel=1e-15)
    assert forged(Alie(nodes=LAST, z=0))[3].tolist() == pytest.approx([2, 2 / 3])


def test_how_many_deviations() -> None:
    # 50 messages, 10 false: 16 more make a majority of 26; Phi(0.2533) = 24 / 40 are kept on this side
    assert Alie.deviations(50, 10) == pytest.approx(0.2533471031)
    # 10, 4: 2 more; Phi(0.4307) = 4 / 6. 10, 1: 5 of 9 are more than half: nobody to spare
    assert Alie.deviations(10, 4) == pytest.approx(0.4307272993)
    assert Alie.deviations(10, 1) == 0
    assert Alie.deviations(10, 6) == pytest.approx(0.6744897502)  # a majority already: one of 4 further out
    assert Alie.deviations(5, 3) == Alie.deviations(1, 1) == Alie.deviations(4, 4) == 0


def test_all_attackers_send_the_same() -> None:
    found = forged(Alie(nodes=LAST), rows=[[float(i)] for i in range(7)], false=(1, 2, 3))
    # honest 0, 4, 5, 6: mean 3.75, variance 77/4 - 3.75^2; one supporter of 4: Phi(z) = 3/4
    assert found[1:4, 0].tolist() == pytest.approx([3.75 - 0.6744897502 * (77 / 4 - 3.75**2) ** 0.5] * 3)
    assert found[[0, 4, 5, 6], 0].tolist() == [0, 4, 5, 6]


def test_inner_product_manipulation() -> None:
    assert forged(InnerProduct(nodes=LAST, epsilon=3.0))[3].tolist() == pytest.approx([-6, -2])


@pytest.mark.parametrize(("attackers", "expected"), [(Alie(nodes=LAST, z=1.0), 2.0), (InnerProduct(nodes=LAST, epsilon=0.5), -1.5)])
def test_among_attackers_only_it_is_of_what_they_would_have_sent(attackers: Attackers, expected: float) -> None:
    assert forged(attackers, [[4.0], [2.0]], (0, 1)).tolist() == [[expected]] * 2  # mean 3, deviation 1
    assert forged(attackers, [[4.0]], (0,)).item() == pytest.approx(4 if isinstance(attackers, Alie) else -2)


def test_noise_is_drawn_for_each_message() -> None:
    rows = torch.zeros(4, 10_000)
    found = forged(Gaussian(nodes=LAST, sigma=3.0), rows.tolist(), (1, 3))
    assert found[[0, 2]].eq(0).all() and found[1].std() == pytest.approx(3, rel=0.05) and abs(found[3].mean()) < 0.15
    assert not torch.equal(found[1], found[3]) and torch.equal(found, forged(Gaussian(nodes=LAST, sigma=3.0), rows.tolist(), (1, 3)))
    assert not torch.equal(found[1], forged(Gaussian(nodes=LAST, sigma=3.0), rows.tolist(), (1, 3), job=4)[1])


@pytest.mark.parametrize("kind", [SignFlip, Gaussian, Alie, InnerProduct])
def test_slabs_change_nothing_and_rows_are_not_written_to(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.linspace(-1, 1, 7 * 30).view(7, 30)
    before, false = rows.clone(), np.array([True, False] * 3 + [True])
    liars = Liars(kind(nodes=LAST), false, fold(1))
    whole = liars.heard({"update": rows, "many": rows.view(7, 5, 6), "number": torch.arange(7)[:, None]}, np.arange(7), np.arange(7))
    assert torch.equal(rows, before) and whole["many"].shape == (7, 5, 6) and whole["number"].flatten().tolist() == [*range(7)]
    assert torch.equal(whole["update"][1::2], rows[1::2]) and not (whole["update"][::2] == rows[::2]).all(1).any()
    monkeypatch.setattr(module, "SLAB", 40)
    again = liars.heard({"update": rows}, np.arange(7), np.arange(7))
    assert torch.allclose(whole["update"], again["update"], atol=1e-7)


def test_labels_are_flipped() -> None:
    labels = Gathered(torch.zeros(1, 5, 2), torch.tensor([[0, 1, 2, 3, 4]]), torch.arange(5)[None], torch.tensor([0]), torch.tensor([0]))
    assert FlipLabels().change(labels, torch.zeros(1, 0), Facts((2,), True, 5), fold(0)).targets.tolist() == [[4, 3, 2, 1, 0]]


# In runs


def liar(kind: Any, **settings: Any) -> World:
    return World(attackers=kind(nodes=LAST, **settings))


def test_a_round_by_hand() -> None:
    # updates half of the way to 2, 4, 6 and 8; sign flip: (1 + 2 + 3 - 4) / 4; inner product: (6 - 2) / 4
    task, strategy = quadratics([2.0, 4.0, 6.0, 8.0]), FedAvg(train=steps(lr=0.5), schedule=ALL)
    assert quick(task, strategy, 1, world=liar(SignFlip)).state["model"].item() == 0.5
    assert quick(task, strategy, 1, world=liar(InnerProduct, epsilon=1.0)).state["model"].item() == 1
    assert quick(task, replace(strategy, average=Median()), 1, world=liar(SignFlip)).state["model"].item() == 1.5


def test_how_often_an_average_takes_a_lie_for_good() -> None:
    """Updates 1, 1.2, 5, 15 and a lie between the first two, 1.1, which Krum takes; then 0.45 and 0.65, 4.45, 14.45, and a lie of 1.65."""
    task, strategy = quadratics([2.0, 2.4, 10.0, -2.2, 30.0]), FedAvg(train=steps(lr=0.5), schedule=ALL)
    for average, expected in ((Krum(1), [2, 1]), (MultiKrum(1), [8, 2]), (Median(), [0, 0])):  # of five, the last is never among four
        lies = quick(task, replace(strategy, average=average), 2, world=liar(SignFlip)).companion(Lies)
        assert lies and [lies.chosen, int(lies.false)] == expected
        assert lies.share == (expected[1] / expected[0] if expected[0] else None)


def test_in_a_buffer_statistics_are_of_the_same_merge() -> None:
    # nodes 0 and 3 fill each buffer. Honest 1, then (2 - 0.25) / 2; the attacker sends -1/2 of it each time: a quarter of it is merged
    world = replace(durations(1, 50, 60, 2), attackers=InnerProduct(nodes=LAST, epsilon=0.5))
    strategy = FedBuff(train=steps(lr=0.5), schedule=Buffered(size=2, restart="merge"))
    fed = quick(quadratics([2.0, 4.0, 6.0, 8.0]), strategy, seconds=4, world=world)
    assert models(fed)[:, 0, 0].tolist() == [0, 0.25, 0.25 + 0.875 / 4]


def test_a_single_arrival_is_a_merge_of_its_own() -> None:
    task, settings = quadratics([2.0, 4.0, 6.0, 8.0]), {"train": steps(lr=0.5)}
    times = durations(1, 2, 3, 4)
    runs = [
        models(quick(task, FedAsync(**settings), seconds=4, world=world))  # type: ignore[arg-type]
        for world in (times, replace(times, attackers=Alie(nodes=LAST)), replace(times, attackers=SignFlip(nodes=LAST)))
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_attackers_are_drawn_by_seed() -> None:
    third = World(attackers=SignFlip(nodes=Choice(share=0.3)))
    masks = {tuple(federation(quadratics([1.0] * 10), FedAvg(), 1, third, seed).nature.liars.false) for seed in range(20)}  # type: ignore[union-attr]
    assert {sum(mask) for mask in masks} == {3} and len(masks) > 10


def updates(task: Any, nodes: int) -> Tensor:
    return models(quick(task, FedAvg(train=steps(2, 0.3), schedule=Rounds(Count(nodes))), 1))[1]


def test_label_flip_trains_on_flipped_labels_and_is_judged_by_the_true_ones() -> None:
    task = classification([20])
    liars = Liars(LabelFlip(nodes=Choice("all")), np.array([True]), fold(0))
    turned = replace(task, targets=2 - task.targets)
    assert torch.equal(updates(liars.poisoned(task), 1), updates(turned, 1)) and not torch.equal(updates(task, 1), updates(turned, 1))
    judged = [View(one, task.init[None]).clients for one in (task, liars.poisoned(task))]
    assert torch.equal(*judged)
    nobody = Liars(LabelFlip(nodes=LAST), np.array([False]), fold(0))
    assert torch.equal(updates(nobody.poisoned(task), 1), updates(task, 1))


def test_label_flip_needs_classes() -> None:
    liars = Liars(LabelFlip(nodes=LAST), np.array([True, False]), fold(0))
    with pytest.raises(SettingError, match=r"world.attackers: flip_labels changes classes, and the targets are not one class a sample"):
        liars.poisoned(quadratics([1.0, 2.0]))


def test_peers_hear_no_server() -> None:
    with pytest.raises(
        SettingError, match=r"world.attackers: `sign_flip` changes what a server hears; .* `label_flip` has a meaning there"
    ):
        quick(quadratics([1.0] * 4), FedAvg(train=steps(), schedule=Gossip()), 1, world=liar(SignFlip))
    quick(classification([5] * 4), FedAvg(train=steps(), schedule=Gossip()), 1, world=liar(LabelFlip))


# In scenarios

LYING = TEXT.replace("world:", "world:\n  attackers: {name: gaussian, nodes: 25 %, sigma: 0.1}")


def test_who_lies_is_written_down(folder: Path) -> None:
    run = simulate(folder, text=LYING)
    found = run.info["attackers"]
    assert (found["name"], found["count"], len(found["nodes"])) == ("gaussian", 2, 2)
    line = f"gaussian on 2 of 8 nodes: {found['nodes'][0]}, {found['nodes'][1]}"
    assert line in (run.path / "log.txt").read_text() and line in call("validate", write(folder, LYING).name).stdout
    assert "attackers  gaussian on 2 of 8 nodes" in call("inspect", str(run.path)).stdout
    assert "attackers" not in simulate(folder, into="honest").info


def test_where_all_flip_labels_the_model_is_that_of_flipped_data(folder: Path) -> None:
    flipped = simulate(folder, text=TEXT.replace("world:", "world:\n  attackers: {name: label_flip, nodes: all}"))
    shifted = simulate(folder, "task.shift=[{name: flip_labels}]", into="shifted")
    assert flipped.info["model"] == shifted.info["model"] != simulate(folder, into="honest").info["model"]
    found = [run.info["final"]["clients/accuracy_mean"] for run in (flipped, shifted)]
    assert found[0] < found[1]  # judged by the true labels


def test_lies_are_the_same_after_a_resume(folder: Path) -> None:
    text = LYING.replace("strategy: fedavg", "strategy: {name: fedavg, average: {name: krum, attackers: 0}}")
    whole = simulate(folder, "stop.rounds=6", text=text, into="whole")
    assert 0 <= whole.info["final"]["attackers/chosen"] < 1
    simulate(folder, "stop.rounds=3", "checkpoint.every=1 rounds", text=text)
    same(whole, resumed(folder / "run", "stop.rounds=6"))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{name: alie}", "world.attackers.nodes: is needed"),
        ("{nodes: 10 %}", "world.attackers: `name` is needed"),
        ("{name: allie, nodes: 10 %}", "unknown attackers `allie`; did you mean `alie`?"),
        ("{name: alie, nodes: 9}", "world.attackers.nodes: node 9 of 8 (the first is 0)"),
        ("{name: alie, nodes: often}", "world.attackers.nodes: no group `often`"),
        ("{name: alie, nodes: 10 %, z: -1}", "world.attackers.z: `-1`: at least 0 is due"),
        ("{name: sign_flip, nodes: 10 %, factor: 0}", "world.attackers.factor: `0`: above 0 is due"),
    ],
)
def test_what_users_get_wrong(folder: Path, written: str, said: str) -> None:
    assert said in refused("run", write(folder, TEXT.replace("world:", f"world:\n  attackers: {written}")).name)
