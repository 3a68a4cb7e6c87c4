"""Optimizers of local training: torch's numbers, whatever rows they stand in; moments that nodes keep; what differs by node."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import write
from test_local import local_of, seen
from tools import classification, events, federation, quadratics, quick, run, same
from torch import Tensor, nn
from torch.nn import functional as F

from fedsim.base.errors import ScenarioError, SettingError
from fedsim.base.rows import Rows
from fedsim.method.moments import kept
from fedsim.method.optimizers import Adagrad, Adam, AdamW, Optimizer, Sgd
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Cosine, Count, Exponential, Linear, Pareto, PerNode, Ramp, Uniform, Warmup
from fedsim.world import Compute, World
from strategies.ditto import Ditto
from strategies.fedavg import FedAvg
from strategies.pfedme import PFedMe
from strategies.scaffold import Scaffold

CASES: list[tuple[Optimizer, type[torch.optim.Optimizer], dict[str, Any], dict[str, Any]]] = [
    (Adam(), torch.optim.Adam, {}, {}),
    (
        Adam(beta1=0.5, beta2=0.9, eps=1e-3),
        torch.optim.Adam,
        {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
        {"weight_decay": 0.1},
    ),
    (AdamW(), torch.optim.AdamW, {}, {}),
    (Adagrad(), torch.optim.Adagrad, {}, {}),
]


def by_torch(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batches: list[list[int]]) -> Tensor:
    """A node's model after these batches."""
    for samples in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x[samples]), y[samples]).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(("own", "torchs", "options", "settings"), CASES, ids=lambda one: getattr(one, "__name__", None))
def test_steps_are_torch_s_also_by_default_and_in_a_second_job_that_keeps(
    own: Optimizer, torchs: Any, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    task = classification([11, 4, 30])
    train = Train(epochs=2, batch=5, optimizer=own, state="keep", **settings)
    local = local_of(task, train, [0, 1, 2])
    assert local.lr == torchs(nn.Linear(1, 1).parameters(), **options).defaults["lr"]
    once = local.descend(task.init.expand(3, -1))
    again = local_of(task, train, [0, 1, 2], turn=2)
    again.moments = local.moments
    twice = again.descend(once)
    for row in range(3):
        model = nn.Linear(6, 3)
        torch.nn.utils.vector_to_parameters(task.init.clone(), model.parameters())
        optimizer = torchs(model.parameters(), **options)
        for job, found in ((local, once), (again, twice)):
            expected = by_torch(model, optimizer, task.inputs, task.targets, seen(job)[int(job.nodes[row])])
            torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("optimizer", [Adam(), AdamW(), Adagrad()], ids=lambda one: one.name)
@pytest.mark.parametrize("size", [1, 37, 4099])
def test_rows_have_the_same_bits_in_any_company(optimizer: Optimizer, size: int) -> None:
    lot = torch.Generator().manual_seed(0)
    x, *slopes = (torch.randn(5, size, generator=lot) for _ in range(4))
    rate = torch.tensor([[0.1], [0.01], [0.02], [0.3], [0.1]])
    together, alone = x.clone(), [row[None].clone() for row in x]
    moments = optimizer.moments(x)
    each = [optimizer.moments(row) for row in alone]
    for live, slope in zip((5, 5, 3), slopes, strict=True):
        optimizer.move(together[:live], slope[:live], {name: rows[:live] for name, rows in moments.items()}, rate[:live])
        for i in range(live):
            optimizer.move(alone[i], slope[i, None], each[i], rate[i, None])
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("optimizer", [Adam(), AdamW(), Adagrad(), Adam(beta1=0, beta2=0.5)], ids=repr)
@pytest.mark.parametrize("rate", [0.1, "each"])
def test_other_devices_take_the_same_steps(optimizer: Optimizer, rate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lot = torch.Generator().manual_seed(0)
    x, *slopes = (torch.randn(3, 7, generator=lot) for _ in range(4))
    lr = torch.tensor([[0.1], [0.01], [0.02]]) if rate == "each" else rate
    found = []
    for device in ("cpu", "another"):
        y, moments = x.clone(), optimizer.moments(x)
        with monkeypatch.context() as patch:
            if device == "another":
                patch.setattr("fedsim.method.optimizers.FUSED", ())
            for slope in slopes:
                optimizer.move(y, slope, moments, lr, 0.1 if optimizer.decoupled else 0.0)
        found.append(y)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_two_steps_of_adam_by_hand() -> None:
    # F = 1/2 (w - 4)^2 at w = 0: slope -4, m / sqrt(v) = -1, so w = lr = 1; then slope -3, beta1 = 0, beta2 = 1/2:
    # v = (16 / 4 + 9 / 2) / (3 / 4) = 34 / 3, w = 1 + 3 / sqrt(34 / 3)
    train = Train(steps=2, batch="all", lr=Constant(1.0), optimizer=Adam(beta1=0, beta2=0.5, eps=0))
    after = local_of(quadratics([4.0]), train, [0]).descend(torch.zeros(1, 1, dtype=torch.float64))
    assert after.item() == pytest.approx(1 + 3 / (34 / 3) ** 0.5, rel=1e-15)


def test_the_slope_is_the_sum_of_gradient_pull_and_drift() -> None:
    # gradient -4 x scale 1/2, pull 1 x (0 - 2), drift 5: 1, and adagrad's first step is lr against its sign
    train = Train(steps=1, batch="all", lr=Constant(0.5), optimizer=Adagrad(eps=0))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    after = local_of(quadratics([4.0]), train, [0]).descend(zero, anchor=zero + 2, pull=1.0, scale=0.5, drift=zero + 5)
    assert after.item() == -0.5


KEEP = Train(epochs=1, batch=4, lr=Constant(0.05), optimizer=Adam(), state="keep")


def test_moments_are_kept_by_the_nodes_that_worked_and_change_the_next_job() -> None:
    task = classification([9, 4, 30, 1])
    fed = run(task, FedAvg(schedule=Rounds(Count(2)), train=KEEP), 3)
    reset = run(task, FedAvg(schedule=Rounds(Count(2)), train=Train(epochs=1, batch=4, lr=Constant(0.05), optimizer=Adam())), 3)
    assert not torch.equal(fed.state["model"], reset.state["model"])
    every = torch.arange(4).numpy()
    memory = fed.flight.remembered(every)
    assert memory is not None
    assert set(memory) == {"optimizer mean", "optimizer square", "optimizer steps"}
    assert int(fed.flight.turn.sum()) == 6
    assert memory["optimizer steps"][:, 0].tolist() == (fed.flight.turn * [3, 1, 8, 1]).tolist()


EIGHT = replace(KEEP, state="keep_8bit")


@pytest.mark.parametrize("train", [KEEP, EIGHT, Train(batch=4, momentum=0.9, state="keep")], ids=["adam", "8 bits", "momentum"])
def test_what_is_kept_is_the_same_in_processes_and_chunks(train: Train) -> None:
    task, strategy = classification([3, 40, 7, 1, 22, 5]), FedAvg(schedule=Rounds(Count(4)), train=train)
    whole = run(task, strategy, 4, plan="stacked").state["model"]
    for engine in ({"processes": 2}, {"chunk": 2}, {"chunk": 1}):
        fed = federation(task, strategy, 4, plan="stacked", **engine)
        fed.run()
        fed.worker.close()
        assert torch.equal(fed.state["model"], whole)


@pytest.mark.parametrize("optimizer", [Adam(), AdamW(), Adagrad(), Sgd()], ids=lambda one: one.name)
def test_moments_in_8_bits_are_a_quarter_and_as_near_as_half_a_cell(optimizer: Optimizer) -> None:
    task, momentum = quadratics(torch.linspace(-3, 5, 5000)[None]), 0.9 * isinstance(optimizer, Sgd)
    train = Train(steps=3, batch="all", lr=Constant(0.05), optimizer=optimizer, momentum=momentum, state="keep")
    found, stored = list[Rows](), list[int]()
    for one in (train, replace(train, state="keep_8bit")):
        memory = run(task, FedAvg(train=one), 1, plan="looped").flight.remembered(torch.arange(1).numpy())
        assert memory is not None
        found.append(kept(memory, torch.float64))
        stored.append(sum(rows[0].nbytes for name, rows in memory.items() if name != "optimizer steps"))
    exact, near = found
    assert list(near) == list(exact) and stored[1] == len([name for name in exact if name != "steps"]) * (5000 + 3 * 4)
    assert stored[0] == 8 * 5000 * len([name for name in exact if name != "steps"])  # of float64; of float32 half of it
    for name, rows in exact.items():
        cell = 0.00351563 if name == "square" else 0.00703126
        assert near[name].dtype == rows.dtype and (name != "steps" or torch.equal(near[name], rows))
        for at in (slice(0, 2048), slice(2048, 4096), slice(4096, None)) if name != "steps" else ():
            assert ((near[name][:, at] - rows[:, at]).abs() <= cell * rows[:, at].abs().max() + 1e-7 * rows[:, at].abs()).all()


def test_adam_with_moments_in_8_bits_goes_where_it_goes_in_32() -> None:
    # 60 jobs of 5 steps on 1/2 a |w - b|^2, a = 2, of 3,000 numbers: how far both are from b, and from each other
    task = quadratics(torch.linspace(0.5, 2, 3000)[None], 2.0)
    train = Train(steps=5, batch="all", lr=Constant(0.02), optimizer=Adam(), state="keep")
    ends = [quick(task, FedAvg(train=one), 60).state["model"] for one in (train, replace(train, state="keep_8bit"))]
    first, apart = task.inputs[:, 1:].norm(), (ends[0] - ends[1]).norm()
    assert (ends[0] - task.inputs[:, 1:]).norm() < 0.01 * first and 0 < apart < 0.01 * first


def test_momentum_that_is_kept_is_one_long_job() -> None:
    # F = 1/2 w^2 from 1: two jobs of one step are one of two steps
    task = quadratics([1.0])
    short, long = (Train(steps=steps, batch="all", lr=Constant(0.25), momentum=0.5, state="keep") for steps in (1, 2))
    assert torch.equal(run(task, FedAvg(train=short), 2).state["model"], run(task, FedAvg(train=long), 1).state["model"])


@pytest.mark.parametrize(
    ("strategy", "train", "key"),
    [
        (Scaffold(), Train(optimizer=Adam()), "train.optimizer"),
        (Scaffold(), Train(momentum=0.5, state="keep"), "train.state"),
        (Ditto(), KEEP, "train.state"),
    ],
)
def test_methods_with_other_needs_refuse(strategy: Strategy, train: Train, key: str) -> None:
    with pytest.raises(SettingError, match="the method") as error:
        federation(classification([4, 4]), type(strategy)(train=train))
    assert error.value.key == key


def test_plain_steps_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"`pfedme` knows plain steps only; leave out train\.optimizer"):
        PFedMe(train=Train(optimizer=Adam()))


def test_work_and_rates_that_differ_by_node() -> None:
    # F_i = 1/2 (w - 1)^2 from 0: after k steps of rate r, w = 1 - (1 - r)^k
    task = quadratics([1.0, 1.0, 1.0, 1.0])
    train = Train(steps=PerNode((1, 2, 3, 1)), batch="all", lr=PerNode(Linear(0.125, 0.5)))
    fed = federation(task, FedAvg(schedule=Rounds(Count(4)), train=train), 1)
    assert fed.flight.steps.tolist() == [1, 2, 3, 1]
    fed.run()
    ends = [0.125, 1 - 0.75**2, 1 - 0.625**3, 0.5]
    assert fed.state["model"].item() == pytest.approx(sum(ends) / 4, rel=1e-12)
    assert fed.ledger.steps == 7


def test_epochs_by_group_and_drawn_rates_are_the_seed_s() -> None:
    task = classification([8, 8, 8, 8])
    task.groups = {"slow": range(2), "fast": range(2, 4)}
    train = Train(epochs=PerNode({"slow": PerNode(0.5), "fast": PerNode(3.0)}), batch=4, lr=PerNode(Uniform(0.1, 0.2)))
    fed, other = (federation(task, FedAvg(train=train), 1, seed=seed) for seed in (0, 1))
    assert fed.flight.steps.tolist() == [1, 1, 6, 6]
    assert fed.flight.effort[1].tolist() == [4, 4, 24, 24]  # samples, which the time of a job follows
    rates = [one.strategy.train.lr.value for one in (fed, other)]
    assert rates[0] != rates[1]
    assert all(0.1 <= rate < 0.2 for rate in rates[0])


def test_one_number_for_all_is_what_it_was() -> None:
    assert Train(epochs=PerNode(2.0), lr=PerNode(0.1)) == Train(epochs=2.0, lr=Constant(0.1))
    assert Train().lr == Constant(0.05)
    assert Train(lr=Exponential(0.1, 0.5), optimizer=Adam()).lr == Exponential(0.1, 0.5)


def test_a_job_s_time_is_that_of_its_node_s_work() -> None:
    world = World(compute=Compute(step=same(1)))
    fed = run(quadratics([1.0, 1.0]), FedAvg(train=Train(steps=PerNode((1, 3)), batch="all")), 1, world)
    assert sorted(events(fed)["work"][events(fed)["work"] > 0].tolist()) == [1, 3]


def read(folder: Path, train: str) -> Train:
    [loaded] = load(write(folder, f"{SCENARIO}train: {train}\n"))
    [again] = load(write(folder, loaded.resolved, "again.yaml"))
    assert again.scenario.strategy == loaded.scenario.strategy
    found: Train = loaded.scenario.strategy.train
    return found


def test_what_differs_is_read_written_and_read_again(folder: Path) -> None:
    each = read(folder, "{epochs: {slow: 1, fast: 5}, lr: {0..2: 0.1, 3: 0.5}, optimizer: {name: adam, beta1: 0.5}, state: keep}")
    assert each.epochs == PerNode({"slow": PerNode(1.0), "fast": PerNode(5.0)})
    assert each.lr == PerNode({"0..2": PerNode(0.1), "3": PerNode(0.5)})
    assert each.optimizer == Adam(beta1=0.5) and each.state == "keep"
    assert read(folder, "{steps: {name: linear, from: 1, to: 3}}").steps == PerNode(Linear(1, 3))
    assert read(folder, "{lr: {name: linear, from: 1, to: 3}}").lr == PerNode(Linear(1.0, 3.0))
    assert read(folder, "{lr: {name: linear, start: 1, end: 3, rounds: 5}}").lr == Ramp(1.0, 3.0, 5)
    assert read(folder, "{lr: {name: warmup, rounds: 4, then: 0.5}}").lr == Warmup(4, Constant(0.5))


def test_one_layer_over_another(folder: Path) -> None:
    def lr(*settings: str) -> Any:
        text = f"{SCENARIO}train: {{lr: {{slow: 0.1, fast: 0.2}}, optimizer: adam}}\n"
        return load(write(folder, text), settings)[0].scenario.strategy.train.lr

    assert lr("train.lr.slow=0.3") == PerNode({"slow": PerNode(0.3), "fast": PerNode(0.2)})
    assert lr("train.lr=0.3") == Constant(0.3)
    assert lr("train.lr={name: cosine, start: 1, rounds: 3}") == Cosine(1.0, 3)
    assert lr("train.lr=0.3", "train.lr={slow: 1, fast: 2}") == PerNode({"slow": PerNode(1.0), "fast": PerNode(2.0)})
    assert lr("train.lr={name: cosine, start: 1, rounds: 3}", "train.lr.rounds=4") == Cosine(1.0, 4)
    assert lr("train.lr=null") == Constant(0.001)


def test_another_optimizer_has_its_own_defaults_where_a_method_has_some(folder: Path) -> None:
    (folder / "slowly.py").write_text(
        "from dataclasses import dataclass, field\nfrom fedsim.method.train import Train\nfrom fedsim.settings.values import Constant\n"
        "from strategies.fedavg import FedAvg\n\n@dataclass(frozen=True)\nclass Slowly(FedAvg):\n"
        "    train: Train = field(default_factory=lambda: Train(epochs=3, lr=Constant(0.3)))\n"
    )
    for train, lr in (("{batch: 4}", 0.3), ("{optimizer: adam}", 0.001), ("{optimizer: adam, lr: 0.3}", 0.3)):
        text = SCENARIO.replace("fedprox", "slowly:Slowly")
        [loaded] = load(write(folder, f"{text}train: {train}\n"))
        assert (loaded.scenario.strategy.train.epochs, loaded.scenario.strategy.train.lr) == (3.0, Constant(lr))


SCENARIO = """
task: {data: digits, partition: {name: iid, nodes: 4}, model: logistic}
groups: {slow: 50 %, fast: rest}
strategy: fedprox
stop: {rounds: 1}
track: none
"""


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("{optimizer: adan}", "train.optimizer: unknown optimizer `adan`; did you mean `adam`?"),
        ("{optimizer: adam, momentum: 0.9}", "train.momentum: is sgd's; `adam` has moments of its own"),
        ("{state: keep}", "train.state: plain sgd has nothing to keep; set `momentum`, or another `optimizer`"),
        ("{epochs: {slow: 1, fats: 5}}", "train.epochs: unknown group `fats`; did you mean `fast`?"),
        ("{epochs: [1, 2]}", "train.epochs: one value is due, not a list: nodes differ by group, by range"),
        ("{lr: [0.1, 0.2]}", "train.lr: one value is due, not a list: nodes differ by group, by range"),
        ("{lr: {slow: -1, fast: 1}}", "train.lr.slow: `-1`: at least 0 is due"),
        ("{lr: {slow: 1}}", "train.lr: no value for group `fast`"),
        ("{lr: {slow: 1, fats: 1}}", "train.lr: unknown group `fats`; did you mean `fast`?"),
        ("{lr: {name: linear, from: -1, to: 1}}", "train.lr.from: `-1`: at least 0 is due"),
        ("{lr: {name: linear, start: 1, ends: 2, rounds: 3}}", "unknown key `train.lr.ends`; did you mean `train.lr.end`?"),
        ("{steps: {name: linear, from: 0, to: 3}}", "train.steps.from: `0`: at least 1 and"),
        ("{lr: {name: warmup, rounds: 3}}", "train.lr.then: is needed (what follows)"),
    ],
)
def test_bad_training_is_named(folder: Path, train: str, said: str) -> None:
    with pytest.raises(ScenarioError) as error:
        load(write(folder, f"{SCENARIO}train: {train}\n"))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"epochs": PerNode((1.0, 2.0, 3.0))}, "train.epochs: a list of 3 values for 2 nodes"),
        ({"lr": PerNode((0.1, -0.1))}, "train.lr: node 1 gets -0.1; 0 or more is due"),
        ({"steps": PerNode(Pareto(1, 0.01))}, "train.steps: node 0 gets"),
    ],
)
def test_numbers_of_nodes_that_make_no_sense_are_named(train: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Train(**train).fitted(quadratics([1.0, 1.0]), 0)
