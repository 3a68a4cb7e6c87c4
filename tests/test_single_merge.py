"""A single merge: Zhu et al. 2026. Models are merged once, running statistics are those of the merged model, and when peers talk."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_stacking import MODELS, task_of
from tools import classification, events, federation, models, quadratics, quick, run, steps
from torch import Tensor, nn

from fedsim.base.keys import fold, permutation
from fedsim.base.rows import BUFFERS
from fedsim.codecs import row_bytes
from fedsim.federation.buffers import statistics_of
from fedsim.metrics.metrics import Accuracy, Average, Mergeability, TestLoss
from fedsim.metrics.view import View
from fedsim.models.own import OwnModel
from fedsim.schedule import Gossip
from fedsim.settings.values import Constant, Cosine, Curve, Every, Points, Ramp, Steps
from fedsim.settings.values import Exponential as Falling
from fedsim.task.task import Task
from fedsim.topology import Complete, Ring, Topology
from fedsim.topology.changing import Alone, FinalMerge, RandomPulls, Sequence
from fedsim.topology.graphs import DirectedRing, Exponential
from strategies.dsgd import Dsgd

A = torch.tensor([1.0, 2, 1, 0.5]).double()
B = torch.tensor([[1.0, 0], [-2, 3], [4, 1], [0.5, -5]]).double()
PULLS = RandomPulls(Constant(0.2))


def dsgd(topology: Topology, count: int = 2, lr: float = 0.1, **settings: Any) -> Dsgd:
    return Dsgd(train=steps(count, lr, **settings), schedule=Gossip(topology))


def until(*parts: Topology, switch: tuple[int, ...]) -> Sequence:
    return Sequence(parts=parts, switch=tuple(Every(rounds=one) for one in switch))


# Merging


def test_a_complete_graph_in_each_round_keeps_all_alike_and_is_the_large_batch() -> None:
    x = models(quick(quadratics(B, A), dsgd(Complete(), 1), 6))
    assert torch.allclose(x, x[:, :1], rtol=0, atol=1e-14)
    mean = torch.zeros(2).double()
    for now in x[1:, 0]:
        mean = mean - 0.1 * (A[:, None] * (mean - B)).mean(0)
        assert torch.allclose(now, mean, rtol=1e-13, atol=1e-15)


def test_merging_twice_is_merging_once() -> None:
    fed = quick(quadratics(B, A), dsgd(FinalMerge(PULLS)), 5)
    merged, last = fed.state["model"].clone(), Complete().mixing(4, 0, fold(0))
    assert float((merged - merged.mean(0)).abs().max()) < 1e-15
    fed.mix(last)
    assert torch.allclose(fed.state["model"], merged, rtol=1e-14)


def alone(rounds: int, a: Tensor) -> Tensor:
    """The merged model [2] of peers that never talked, by the closed form x_i = b_i + (1 - lr a_i)^t (x_0 - b_i)."""
    return (B - (1 - 0.1 * a[:, None]) ** (2 * rounds) * B).mean(0)


def test_equal_curvature_merges_whatever_the_centres_and_unequal_does_not() -> None:
    """With one Hessian the mean of those who are alone is gradient descent on the mean problem; with several it ends elsewhere."""
    for curvature in (torch.ones(4).double(), A):
        fed = quick(quadratics(B, curvature), dsgd(FinalMerge(Alone())), 40)
        assert torch.allclose(fed.state["model"], alone(40, curvature).expand(4, -1), rtol=1e-12)
    optimum = (A[:, None] * B).sum(0) / A.sum()
    assert torch.allclose(alone(40, torch.ones(4).double()), B.mean(0), atol=2e-3)
    assert (alone(400, A) - optimum).norm() > 0.5
    pulls = quick(quadratics(B, A), dsgd(FinalMerge(PULLS)), 400).state["model"][0]
    assert (pulls - optimum).norm() < (alone(400, A) - optimum).norm()


@pytest.mark.parametrize(("topology", "keeps"), [(Ring(), True), (Exponential(), True), (Complete(), True), (PULLS, False)])
def test_the_mean_stays_where_columns_sum_to_one(topology: Topology, keeps: bool) -> None:
    first = B.clone()
    drift = []
    for step in range(8):
        mixed = topology.mixing(4, step, fold(0, "topology")) @ first
        drift.append(float((mixed.mean(0) - first.mean(0)).norm()))
    assert (max(drift) < 1e-15) == keeps


def test_transfers_are_nodes_times_the_pulls() -> None:
    """m sum_r rho_r, within the deviation of coins; the final merge is m (m - 1) more."""
    rounds, nodes = 200, 8
    one = quick(quadratics(torch.zeros(nodes, 1)), dsgd(PULLS, 1), 1).flight.peer_bytes
    free = quick(quadratics(torch.zeros(nodes, 1)), dsgd(PULLS, 1), rounds).ledger.bytes // one
    assert abs(free - 0.2 * nodes * rounds) < 4 * math.sqrt(nodes * rounds * 0.16)
    merged = quick(quadratics(torch.zeros(nodes, 1)), dsgd(FinalMerge(PULLS), 1), rounds).ledger.bytes // one
    assert merged - free == nodes * (nodes - 1)
    window = until(PULLS, Complete(), PULLS, switch=(50, 55))
    dense = quick(quadratics(torch.zeros(nodes, 1)), dsgd(window, 1), rounds)
    heard = [window.mixing(nodes, step, dense.key("topology")).heard.sum() for step in range(rounds)]
    assert dense.ledger.bytes // one == sum(heard) and heard[50:55] == [nodes * (nodes - 1)] * 5


def test_renaming_nodes_renames_results() -> None:
    """With a matrix that knows no names; lots are each node's own."""
    turn = torch.tensor([2, 0, 3, 1])
    x, y = (models(quick(quadratics(B[at], A[at]), dsgd(FinalMerge(Complete())), 4)) for at in (torch.arange(4), turn))
    assert torch.allclose(y, x[:, turn], rtol=1e-12, atol=1e-15)


# When peers talk: the official schedules of pulls (r_start 0.2, r_end 31) over 300 rounds, as curves and sequences


@pytest.mark.parametrize(
    ("curve", "at", "values"),
    [
        (Constant(0.2), (0, 150, 299), [0.2, 0.2, 0.2]),
        (Ramp(0.2, 31.0, 300), (0, 150, 299, 300), [0.2, 15.6, 0.2 + 30.8 * 299 / 300, 31]),
        (Cosine(0.2, 300, 31.0), (0, 75, 150, 300), [0.2, 31 - 15.4 * (1 + math.cos(math.pi / 4)), 15.6, 31]),
        (Falling(31.0, math.exp(-10 / 300), 0.2), (0, 30, 300), [31, 0.2 + 30.8 / math.e, 0.2 + 30.8 * math.exp(-10)]),
        (Steps(0.2, 155.0, (299,)), (0, 298, 299, 300), [0.2, 0.2, 31, 31]),
        (Points((270, 299), (0.2, 16.0)), (0, 270, 299, 300), [0.2, 0.2, 16, 16]),  # instead of log10(1 + 9 p^80)
    ],
    ids=["fixed", "linear", "cosine", "slow_decrease", "truncate", "slow_grow"],
)
def test_schedules_of_pulls(curve: Curve, at: tuple[int, ...], values: list[float]) -> None:
    assert curve.at(np.array(at)).tolist() == pytest.approx(values, rel=1e-12)
    heard = RandomPulls(curve).mixing(32, at[-1], fold(0)).heard
    assert {math.floor(values[-1]), math.ceil(values[-1])} >= set(heard.tolist())


def test_a_window_and_switches_late() -> None:
    window = until(PULLS, Complete(), PULLS, switch=(270, 285))
    assert [window.mixing(32, step, fold(0)).uniform for step in (0, 269, 270, 284, 285, 299)] == [False, False, True, True, False, False]
    for first, then in ((Ring(), Complete()), (DirectedRing(), Complete()), (Complete(), Ring()), (Complete(), RandomPulls(Constant(1.0)))):
        late = until(first, then, switch=(285,))
        for step, part in ((0, first), (284, first), (285, then), (299, then)):
            assert np.array_equal(late.mixing(32, step, fold(0)).weights.toarray(), part.mixing(32, step, fold(0)).weights.toarray())
    left = DirectedRing().mixing(5, 0, fold(0)).weights.toarray()
    assert left[2].tolist() == [0, 0.5, 0.5, 0, 0]  # half of oneself, half of the one before


# Running statistics of the merged model


def normed(counts: tuple[int, ...] = (70, 9, 33), keep: Any = "average") -> Task:
    task = task_of(*MODELS[0], counts)
    task.keep_buffers = keep
    return task


def by_torch(task: Task, model: Tensor, batches: list[Tensor]) -> Tensor:
    """Statistics [b] by torch's own layers: reset, no momentum, all batches."""
    module = MODELS[0][0].build((6,), 3)
    module.load_state_dict(task.layout.views(model), strict=False)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.reset_running_stats()
            part.momentum = None
    with torch.no_grad():
        for batch in batches:
            module.train()(batch)
    found = dict(module.named_buffers())
    return task.buffers.join({name: found[name].float() for name in task.buffers.names})


@pytest.mark.parametrize("keep", ["average", "local"])
def test_a_final_merge_takes_statistics_anew_from_each_nodes_data(keep: Any) -> None:
    task = normed(keep=keep)
    fed = quick(task, dsgd(FinalMerge(PULLS), batch=2), 3)
    assert torch.allclose(fed.state["model"], fed.state["model"][:1], atol=1e-7)
    own = []
    for node in range(3):
        places = permutation(fold(fed.key("statistics", 3), node), int(task.counts[node]))[:64]  # 32 batches of 2
        inputs = task.inputs[task.sample(torch.tensor(node), places)]
        own.append(by_torch(task, fed.state["model"][node], [part for part in torch.split(inputs, 2) if len(part) > 1]))
    expected = torch.stack(own)
    counted = task.buffers.slices[next(name for name in task.buffers.names if name.endswith("tracked"))]
    assert expected[:, counted].flatten().tolist() == [32, 4, 16]
    found = statistics_of(fed)
    expected = expected.mean(0).expand(3, -1) if keep == "average" else expected
    rest = torch.ones(task.buffers.size, dtype=torch.bool)
    rest[counted] = False
    torch.testing.assert_close(found[:, rest], expected[:, rest], rtol=1e-4, atol=1e-5)


def test_statistics_that_travel_are_billed_when_they_are_taken_anew() -> None:
    bytes_of = {}
    for statistics in ("recomputed", "averaged"):
        fed = quick(normed(), dsgd(FinalMerge(Alone(), statistics)), 2)  # type: ignore[arg-type]
        bytes_of[statistics] = fed.ledger.bytes
        assert len(events(fed, "mix")["node"]) == 3 * (2 + 1 + (statistics == "recomputed"))
    row = row_bytes({BUFFERS: normed().first_buffers[None]})
    assert bytes_of["recomputed"] - bytes_of["averaged"] == 3 * 2 * row


@pytest.mark.parametrize("statistics", ["recomputed", "averaged"])
def test_without_such_layers_nothing_is_taken_anew(statistics: Any) -> None:
    task = classification([9, 4, 7])
    fed = quick(task, dsgd(FinalMerge(Ring(), statistics)), 3)
    same = quick(task, dsgd(FinalMerge(Ring())), 3)
    assert torch.equal(fed.state["model"], same.state["model"]) and fed.ledger.bytes == same.ledger.bytes


def test_dropout_rests_while_statistics_are_taken_and_all_is_as_before_afterwards() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.BatchNorm1d(9), nn.Linear(9, 3))

    task = task_of(OwnModel(model), (6,), (8, 8))
    before = [part.training for part in task.model.modules()]
    fed = quick(task, dsgd(FinalMerge(Alone()), batch=8), 1)
    assert [part.training for part in task.model.modules()] == before
    views = task.layout.views(fed.state["model"][0])
    hidden = [task.inputs[task.sample(torch.tensor(node), torch.arange(8))] @ views["0.weight"].T + views["0.bias"] for node in (0, 1)]
    found = task.buffers.views(statistics_of(fed)[0])
    torch.testing.assert_close(found["2.running_mean"], torch.stack([one.mean(0) for one in hidden]).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["2.running_var"], torch.stack([one.var(0) for one in hidden]).mean(0), rtol=1e-4, atol=1e-6)


# Mergeability along the run


def test_mergeability_is_of_a_model_that_nobody_has() -> None:
    task = classification([20, 20, 20])
    fed = quick(task, dsgd(PULLS, 5, 0.5), 6)
    view = View(task, fed.state["model"])
    found, average = Mergeability().measure(view), Average().measure(view)
    assert found["mergeability/accuracy"] == average["average/accuracy"] and found["mergeability/loss"] == average["average/loss"]
    assert found["mergeability/gap"] == pytest.approx(average["average/accuracy"] - Accuracy().measure(view)["test/accuracy"])
    one = View(task, fed.state["model"][:1])
    assert Mergeability().measure(one)["mergeability/gap"] == 0
    assert Mergeability().measure(View(quadratics(B), B)).keys() == {"mergeability/loss"}


def test_mergeability_has_statistics_of_the_merged_model_and_touches_nobody() -> None:
    task = normed()
    fed = federation(task, dsgd(PULLS, batch=4), 3, plan="looped")
    fed.run()
    kept = fed.state["model"].clone(), statistics_of(fed).clone()
    view = View(task, fed.state["model"], buffers=statistics_of(fed))
    found = Mergeability(batches=3).measure(view)
    assert torch.equal(fed.state["model"], kept[0]) and torch.equal(statistics_of(fed), kept[1])
    merged = fed.state["model"].mean(0)
    order = permutation(fold(0, "statistics"), 112)[: 3 * 128]
    expected = by_torch(task, merged, [task.inputs[task.samples[order]]])  # type: ignore[index]
    loss = TestLoss().measure(View(task, merged[None], buffers=expected[None]))["test/loss"]
    assert found["mergeability/loss"] == pytest.approx(loss, rel=1e-4)
    assert found == Mergeability(batches=3).measure(view)
    assert found["mergeability/loss"] != Average().measure(view)["average/loss"]


def test_the_stacked_plan_merges_the_same() -> None:
    found = [run(normed(), dsgd(FinalMerge(PULLS), batch=2), 3, chunk=chunk, plan="stacked") for chunk in (1, 3)]
    assert torch.equal(found[0].state["model"], found[1].state["model"]) and torch.equal(statistics_of(found[0]), statistics_of(found[1]))
