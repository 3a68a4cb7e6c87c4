"""Just One Byte and MeZO: oracles of the specification."""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tools import classification, durations, events, federation, models, quadratics, quick, run, steps
from torch import Tensor

from fedsim.base.errors import RunError, SettingError
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout, Rows
from fedsim.codecs import Identity
from fedsim.codecs.scalar import Log8Byte, Log16NineBit
from fedsim.gradients.samples import Samples
from fedsim.gradients.stacked import Stacked
from fedsim.method.inbox import Inbox
from fedsim.method.local import Local
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count, Exponential
from fedsim.task.loss import total
from fedsim.task.task import Task
from fedsim.world import World
from fedsim.world.availability import Timetable
from strategies.fedavg import FedAvg
from strategies.one_byte import OneByte

LOG: list[tuple[int, Inbox]] = []


@dataclass(frozen=True)
class Logged(OneByte):
    """Writes down what is merged."""

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        LOG.append((inbox.round, replace(inbox, parts={name: rows.clone() for name, rows in inbox.parts.items()})))
        return super().merge(state, inbox)


def logged(task: Task, strategy: OneByte, rounds: int, world: World | None = None) -> tuple[Any, list[Inbox]]:
    """A run, and its log of scalars."""
    LOG.clear()
    fed = federation(task, strategy, rounds, world, plan="looped")
    LOG.clear()  # of the probing merge
    fed.run()
    return fed, [inbox for _, inbox in LOG]


def alike(nodes: int, samples: int = 12) -> Task:
    """All machines have the same samples."""
    task = classification([samples])
    return replace(task, samples=torch.arange(samples).repeat(nodes), starts=torch.arange(nodes + 1) * samples)


def directions(shared: Tensor, probes: list[int], like: Tensor) -> Tensor:
    keys = torch.stack([fold(shared, "probe", probe) for probe in probes])
    return normal(keys, like.shape[-1]).to(like.dtype)


def test_a_probe_of_a_quadratic_is_the_slope_along_its_direction() -> None:
    # f = a/2 |w - b|^2 at 0: the central difference is z . (-a b) for any eps
    task, b = quadratics([[1.0, -2, 3]], 4.0), torch.tensor([1.0, -2, 3]).double()
    for epsilon in (1e-3, 0.5, 10.0):
        fed, [inbox] = logged(task, Logged(epsilon=epsilon, uplink=Identity(), probes=2), 1)
        z = directions(inbox.shared[0], [0, 1], b)
        assert torch.allclose(inbox["slopes"][0], z @ (-4 * b), rtol=1e-9)
        lr = 1e-3
        assert torch.allclose(fed.state["model"][0], -lr / 2 * (inbox["slopes"][0] @ z), rtol=1e-9)


def test_one_machine_without_codec_is_mezo_step_by_step() -> None:
    task = classification([9])
    fed, log = logged(task, Logged(uplink=Identity(), batch="all", lr=Exponential(0.1, 0.5)), 4)
    w, x, y = task.init.clone(), task.inputs, task.targets

    def loss(row: Tensor) -> Tensor:
        parts = task.layout.views(row)
        return torch.nn.functional.cross_entropy(x @ parts["weight"].T + parts["bias"], y)

    for round, inbox in enumerate(log):
        z = directions(inbox.shared[0], [0], w)[0]
        slope = (loss(w + 1e-3 * z) - loss(w - 1e-3 * z)) / 2e-3
        w = w - 0.1 * 0.5**round * slope * z
    assert torch.allclose(fed.state["model"][0], w, atol=1e-4)
    assert (w - task.init).norm() > 0.1


@pytest.mark.parametrize("codec", [Log8Byte(), Log16NineBit(), Identity()])
@pytest.mark.parametrize(("machines", "probes"), [(6, 1), (3, 2), (2, 3)])
def test_machines_times_probes_are_one_machine_with_all_probes_bit_by_bit(codec: Any, machines: int, probes: int) -> None:
    settings: dict[str, Any] = {"uplink": codec, "lr": Constant(0.3), "batch": 5}
    one = quick(alike(1), OneByte(probes=6, **settings), 4)
    many = quick(alike(machines), OneByte(probes=probes, **settings), 4)
    assert torch.equal(models(one), models(many))
    assert not torch.equal(models(one)[0], models(one)[-1])


def test_both_sides_of_all_probes_are_one_stack() -> None:
    """Four machines with three probes: one call with 24 rows, whose bits are those of either side alone."""
    task, asked = alike(4), list[tuple[Tensor, Any]]()

    class Watched(Stacked):
        def loss(self, x: Tensor, samples: Any) -> Tensor:
            asked.append((x, samples))
            return super().loss(x, samples)

    plan = Watched(task, total, 100, exact=True)
    nodes = torch.arange(4)
    local = Local(plan, task, OneByte(batch=5).train, nodes, fold(1, nodes), np.zeros(4, dtype=np.int64), shared=fold(2, nodes * 0))
    found = OneByte(probes=3, batch=5).local_update({"model": task.init.expand(4, -1)}, {}, local)[0]["slopes"]
    [(x, samples)] = asked
    assert len(x) == 4 * OneByte(probes=3).copies == 24 and torch.equal(samples.inputs[:12], samples.inputs[12:])
    sides = [
        Stacked(task, total, 100, exact=True).loss(x[at], Samples(*(one[at] for one in samples[:3]))) for at in (slice(12), slice(12, 24))
    ]
    assert torch.equal(found.flatten(), (sides[0] - sides[1]) / 2e-3)


def test_grouping_changes_no_bit() -> None:
    strategy = OneByte(probes=2, lr=Constant(0.3), batch=5)
    first, second = (run(alike(5), strategy, 3, chunk=chunk, plan="stacked") for chunk in (100, 2))
    assert torch.equal(models(first), models(second))


def test_replicas_that_join_by_weights_or_by_the_log_are_the_live_model_bit_by_bit() -> None:
    """Machine 3 joins in round 4, machine 0 leaves in round 6; an observer that never probes applies all that it hears."""
    world = durations(1, 1, 1, 1).compute, Timetable(joins={"3": Fraction(5, 2)}, leaves={"0": Fraction(9, 2)})
    fed, log = logged(alike(4), Logged(lr=Constant(0.3), batch=5), 8, World(compute=world[0], availability=world[1]))
    assert [len(inbox.sender) for inbox in log] == [3, 3, 3, 4, 4, 3, 3, 3]
    live, strategy = models(fed), OneByte(lr=Constant(0.3), batch=5)

    def replayed(model: Tensor, rounds: range) -> Tensor:
        state = {"model": model.clone()}
        for round in rounds:
            wire = Log8Byte().encode(
                {"slopes": log[round]["slopes"]}, {}, torch.zeros(1, dtype=torch.int64)
            )  # what travelled: decoding is idempotent
            parts = Log8Byte().decode(wire, {}, torch.zeros(1, dtype=torch.int64))[0]
            state = strategy.merge(state, replace(log[round], parts=parts))
        return state["model"]

    for end in (3, 6, 8):
        assert torch.equal(replayed(live[0], range(end)), live[end]), "by the log from the first model"
    assert torch.equal(replayed(live[3], range(3, 8)), live[8]), "by the weights of round 3"
    assert not torch.equal(replayed(live[0], range(1, 8)), live[8]), "a log that lacks a round is another model"


def test_bytes_are_the_scalars() -> None:
    fed = quick(alike(4), OneByte(probes=5, batch=3), 7)
    assert fed.ledger.bytes_up == 7 * 4 * 5
    assert fed.ledger.bytes_down == 6 * 4 * (3 * 5)  # before the first round there is nothing to hear
    dense = quick(alike(4), FedAvg(schedule=Rounds(cohort=Count())), 1)
    assert dense.ledger.bytes_up > 4 * 4 * fed.task.layout.size


def test_mean_and_root_of_the_number_of_probes() -> None:
    mean, root = (quick(alike(4), OneByte(normalise=rule, uplink=Identity()), 1).state["model"] for rule in ("mean", "sqrt"))
    assert torch.allclose(root - models_start(4), 2 * (mean - models_start(4)), atol=1e-6)


def models_start(nodes: int) -> Tensor:
    return alike(nodes).init[None]


def test_second_moments_of_probes() -> None:
    """E z z'g = g; E |z z'g|^2 = (d + 2) |g|^2; of the mean of N probes (d + N + 1) / N |g|^2."""
    size, number = 8, 4
    z = normal(fold(1, torch.arange(40_000)), size).double()
    g = torch.tensor([1.0, 0, 2, 0, 0, -1, 0, 3]).double()
    estimate = (z @ g)[:, None] * z
    assert torch.allclose(estimate.mean(0), g, atol=0.15)
    assert (estimate**2).sum(1).mean() / (g @ g) == pytest.approx(size + 2, rel=0.03)
    means = estimate.view(-1, number, size).mean(1)
    assert (means**2).sum(1).mean() / (g @ g) == pytest.approx((size + number + 1) / number, rel=0.05)


def test_it_learns() -> None:
    fed = quick(classification([40] * 4), OneByte(probes=8, lr=Constant(0.2), batch="all"), 60)
    task = fed.task
    parts = task.layout.views(fed.state["model"][0])
    right = (task.test_inputs @ parts["weight"].T + parts["bias"]).argmax(1) == task.test_targets
    assert right.float().mean() > 0.85


def test_a_loss_that_is_no_number_names_machine_and_probe() -> None:
    task = quadratics([0.0, 1.0])
    task.inputs[1, 1] = float("nan")
    with pytest.raises(RunError, match="round 1: machine 1, probe 0: the loss is not a number"):
        quick(task, OneByte(), 1)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(SettingError, match="train: `one_byte` does not train"):
        OneByte(train=steps(3))
    statistics = torch.nn.Sequential(torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    task = replace(classification([9]), buffers=Layout({"0.running_mean": (6,)}), first_buffers=torch.zeros(6), model=statistics)
    with pytest.raises(SettingError, match=r"task\.model: has running statistics"):
        OneByte().start(task.init[None], task)
    strategy = OneByte(probes=3)
    assert replace(strategy, train=strategy.train) == strategy  # as a scenario that was written down has it


def test_it_takes_the_time_of_its_samples() -> None:
    fed = quick(alike(2), OneByte(probes=3, batch=4), 2, durations(1, 2))
    assert events(fed, "dispatch")["steps"].tolist() == [3, 3, 3, 3]
