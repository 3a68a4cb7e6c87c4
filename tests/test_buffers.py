"""Running statistics travel with models, are averaged by samples or kept local, are billed, and strategies never see them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from test_stacking import MODELS, task_of
from tools import durations, events, federation, quick, run, steps
from torch import Tensor, nn

from fedsim.base.keys import fold
from fedsim.base.rows import BUFFERS, Rows
from fedsim.codecs import Float16, row_bytes
from fedsim.federation.buffers import Buffers, statistics_of
from fedsim.gradients.looped import Looped
from fedsim.method.inbox import Inbox
from fedsim.method.local import Local
from fedsim.metrics.metrics import Average, TestLoss
from fedsim.metrics.view import View
from fedsim.models.own import OwnModel
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds
from fedsim.settings.values import Count
from fedsim.task.task import Task
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

TRAIN = steps(2, batch=3)
ALL = Rounds(cohort=Count())  # all


@dataclass(frozen=True)
class Watching(FedAvg):
    """Fails where statistics are shown to it."""

    name = "watching"

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        assert BUFFERS not in received and BUFFERS not in memory
        return super().local_update(received, memory, local)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        assert BUFFERS not in state and BUFFERS not in inbox.parts
        return super().merge(state, inbox)


def normed(counts: tuple[int, ...] = (6, 3, 9), keep: Any = "average") -> Task:
    task = task_of(*MODELS[0], counts)
    task.keep_buffers = keep
    return task


def job(task: Task, node: int, turn: int, x: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
    """One job alone, from model and statistics; both of after."""
    at = torch.tensor([node])
    plan = Looped(task, FedAvg().loss, 1)
    local = Local(plan, task, TRAIN, at, fold(0, "job", at, torch.tensor([turn])), np.zeros(1, dtype=np.int64), buffers[None].clone())
    after = local.descend(x[None])[0]
    assert local.buffers is not None
    return after, local.buffers[0]


def test_a_server_averages_by_samples_and_nodes_start_from_that() -> None:
    task = normed()
    fed = quick(task, Watching(train=TRAIN, schedule=ALL), 2)
    x, buffers = task.init, task.first_buffers
    for turn in (1, 2):
        ends, kept = zip(*(job(task, node, turn, x, buffers) for node in range(3)), strict=True)
        weight = torch.tensor([6.0, 3, 9]) / 18
        x, buffers = weight @ torch.stack(ends), weight @ torch.stack(kept)
    torch.testing.assert_close(statistics_of(fed)[0], buffers)
    torch.testing.assert_close(fed.state["model"][0], x)


def test_local_statistics_stay_with_their_node_and_the_average_is_evaluated() -> None:
    task = normed(keep="local")
    fed = quick(task, Watching(train=TRAIN, schedule=ALL), 2)
    x, own = task.init, [task.first_buffers] * 3
    for turn in (1, 2):
        ends, own = (list(part) for part in zip(*(job(task, node, turn, x, own[node]) for node in range(3)), strict=True))
        weight = torch.tensor([6.0, 3, 9]) / 18
        x = weight @ torch.stack(ends)
    torch.testing.assert_close(statistics_of(fed)[0], weight @ torch.stack(own))
    memory = fed.flight.memory.get(np.arange(3), fed.flight.fresh)
    torch.testing.assert_close(memory[BUFFERS], torch.stack(own))
    torch.testing.assert_close(fed.state["model"][0], x)


def test_bytes_count_statistics_that_are_sent() -> None:
    sent = {
        keep: events(quick(normed(keep=keep), FedAvg(train=TRAIN, schedule=ALL), 1), "dispatch", "arrival") for keep in ("average", "local")
    }
    task = normed()
    both = {"model": task.init[None], BUFFERS: task.first_buffers[None]}
    for keep, down in (("average", both), ("local", {"model": task.init[None]})):
        up = {"update" if name == "model" else name: rows for name, rows in down.items()}
        assert set(sent[keep]["bytes_down"].tolist()) == {row_bytes(down), 0}
        assert set(sent[keep]["bytes_up"].tolist()) == {row_bytes(up), 0}
    half = federation(normed(), FedAvg(train=TRAIN, uplink=Float16(), downlink=Float16()), 1, plan="looped")
    assert half.flight.up_bytes == row_bytes({"update": task.init[None].half(), BUFFERS: task.first_buffers[None]})
    assert half.down_bytes == row_bytes({"model": task.init[None].half(), BUFFERS: task.first_buffers[None]})
    assert half.down_bytes < row_bytes(both)


@pytest.mark.parametrize("order", ["adapt_then_combine", "combine_then_adapt"])
def test_peers_mix_statistics_after_their_jobs(order: Any) -> None:
    task = normed()
    fed = quick(task, Dsgd(train=TRAIN, schedule=Gossip(), order=order), 2)
    matrix = torch.full((3, 3), 1 / 3)
    x, buffers = task.init.expand(3, -1), task.first_buffers.expand(3, -1)
    for turn in (1, 2):
        ends, kept = (torch.stack(part) for part in zip(*(job(task, node, turn, x[node], buffers[node]) for node in range(3)), strict=True))
        x, buffers = (matrix @ ends if order == "adapt_then_combine" else matrix @ x + ends - x), matrix @ kept
    torch.testing.assert_close(statistics_of(fed), buffers)
    torch.testing.assert_close(fed.state["model"], x)
    assert fed.flight.peer_bytes == row_bytes({"model": task.init[None], BUFFERS: task.first_buffers[None]})


def test_peers_that_keep_their_own_do_not_mix_them() -> None:
    task = normed(keep="local")
    fed = quick(task, Dsgd(train=TRAIN, schedule=Gossip()), 1)
    kept = [job(task, node, 1, task.init, task.first_buffers)[1] for node in range(3)]
    torch.testing.assert_close(statistics_of(fed), torch.stack(kept))
    assert fed.flight.peer_bytes == row_bytes({"model": task.init[None]})


@pytest.mark.parametrize("keep", ["average", "local"])
@pytest.mark.parametrize("schedule", [Buffered(size=2), Pairwise()])
def test_the_same_bits_however_jobs_are_grouped(schedule: Any, keep: Any) -> None:
    found = []
    for chunk in (1, 3):
        task = task_of(*MODELS[0], (4, 3, 5, 6, 4))
        task.keep_buffers = keep
        strategy = Dsgd(train=TRAIN, schedule=schedule) if schedule.peers else FedAvg(train=TRAIN, schedule=schedule)
        fed = run(task, strategy, 6, world=durations(5, 4, 3, 2, 1), chunk=chunk, plan="stacked")
        found.append((fed.state["model"], statistics_of(fed)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert (found[0][1][:, 5:10] > 0).all()  # variances


def test_dropout_gives_the_same_bits_however_jobs_are_grouped() -> None:
    found = []
    for chunk in (1, 3):
        task = task_of(OwnModel(lambda: nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 3))), (6,), (4, 3, 5, 6, 4))
        fed = run(task, FedAvg(train=TRAIN, schedule=Buffered(size=2)), 6, world=durations(5, 4, 3, 2, 1), chunk=chunk)
        found.append(fed.state["model"])
    assert torch.equal(*found)


def test_evaluation_uses_running_statistics_as_torch_does() -> None:
    task = normed()
    fed = quick(task, FedAvg(train=TRAIN, schedule=ALL), 2)
    module = MODELS[0][0].build((6,), 3)
    views = task.layout.views(fed.state["model"][0]) | task.buffers.views(statistics_of(fed)[0])
    module.load_state_dict(views, strict=False)
    expected = nn.functional.cross_entropy(module.eval()(task.test_inputs).detach(), task.test_targets)
    found = TestLoss().measure(View(task, fed.state["model"], buffers=statistics_of(fed)))["test/loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)
    twice = View(task, fed.state["model"].expand(2, -1), buffers=statistics_of(fed) * torch.tensor([[0.5], [1.5]]))
    assert Average().measure(twice)["average/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_models_without_statistics_carry_nothing() -> None:
    task = task_of(*MODELS[2], (4, 3))
    fed = quick(task, FedAvg(train=TRAIN, schedule=ALL), 1)
    assert statistics_of(fed).shape == (1, 0) and fed.companion(Buffers) is None
    assert fed.down_bytes == row_bytes({"model": task.init[None]})
    assert list(fed.flight.like) == ["update"]
