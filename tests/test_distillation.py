"""Clients with models of different architectures: what they exchange, learn and keep."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import TASKS, resumed, simulate, write
from tools import Until, classification, events, models, quadratics, steps
from torch import Tensor, nn

from fedsim.base.clock import ticks_per_second
from fedsim.base.errors import ScenarioError, SettingError
from fedsim.base.rows import Layout
from fedsim.codecs import row_bytes
from fedsim.codecs.plain import Float16
from fedsim.deploy.recorded import Recorded
from fedsim.engines.local import LocalEngine
from fedsim.engines.stacks import started
from fedsim.federation.federate import federate
from fedsim.federation.federation import Federation
from fedsim.federation.ledger import Ledger
from fedsim.gradients.looped import Looped
from fedsim.gradients.samples import Samples
from fedsim.gradients.stacked import Stacked
from fedsim.method.inbox import Inbox
from fedsim.method.strategy import Strategy
from fedsim.metrics.personal import OfClients, judged
from fedsim.metrics.view import View
from fedsim.run.building import assemble, build
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.settings.values import Count, Population
from fedsim.task.architectures import Architecture, cut, filled
from fedsim.task.loss import CrossEntropy
from fedsim.task.task import Task
from fedsim.world import Nature, World
from strategies.ditto import Ditto
from strategies.fedavg import FedAvg
from strategies.feddf import FedDF
from strategies.fedmd import FedMD

ALL = Rounds(cohort=Count())
LEARN = steps(3, 0.2, batch=4)


def small() -> nn.Module:
    return nn.Linear(6, 3)


def large() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def of(key: str, module: nn.Module) -> Architecture:
    with torch.random.fork_rng():
        torch.manual_seed(len(key))
        for one in module.parameters():
            nn.init.normal_(one, std=0.3)
    return Architecture.of(key, module)


def mixed(kinds: tuple[int, ...] = (0, 1, 0, 1), public: int = 10) -> Task:
    """A keyed linear problem whose nodes have small (21 numbers) and large models (53), or only the one of these that `kinds` says."""
    task = classification([7, 11, 9, 13][: len(kinds)])
    both = of("task.model", small()), of("task.models.big", large())
    first = both[kinds[0]]
    own = {"model": first.model, "layout": first.layout, "init": first.init, "public": task.test_inputs[:public]}
    if len({*kinds}) == 1:
        return replace(task, **own)
    return replace(task, **own, architectures=both, architecture=torch.tensor(kinds))


def ran(task: Task, strategy: Strategy, rounds: int, seed: int = 0, **engine: Any) -> Federation:
    """A federation that has run, by the looped plan if none is said."""
    worker = started(LocalEngine(**{"device": "cpu", "plan": "looped"} | engine), task, strategy, seed)
    per_second = ticks_per_second([1], None)
    nature = Nature(World(), Population(task.nodes, task.groups), seed, per_second)
    fed = federate(worker, nature, Ledger(per_second=per_second), seed)
    fed.watch = Until(rounds)
    try:
        fed.run()
    finally:
        worker.close()
    return fed


def own(fed: Federation, node: int) -> Tensor:
    """The model [d] that a node keeps."""
    memory = fed.flight.remembered(np.array([node]))
    assert memory is not None
    return memory["model"][0, : fed.task.stacks[fed.task.home[node]].layout.size]


# Rows of unequal lengths


def test_rows_of_models_are_cut_and_filled_and_others_stay() -> None:
    rows = {"model": torch.tensor([[1.0, 2.0, 3.0]]), "outputs": torch.ones(1, 3, 3), "count": torch.ones(1, 1)}
    short = cut(rows, 3, 2)
    assert short["model"].tolist() == [[1, 2]] and short["outputs"].shape == (1, 3, 3) and short["count"].shape == (1, 1)
    assert filled(short, 2, 3)["model"].tolist() == [[1, 2, 0]]
    one = torch.zeros(1, 3).expand(4, -1)
    assert cut({"model": one}, 3, 2)["model"].stride(0) == 0  # not copied


def test_each_node_begins_with_the_first_model_of_its_architecture() -> None:
    task = mixed()
    assert (task.width, task.firsts.shape, task.home.tolist()) == (53, (2, 53), [0, 1, 0, 1])
    assert torch.equal(task.firsts[0, :21], task.architectures[0].init) and not task.firsts[0, 21:].any()
    assert torch.equal(task.first_of(np.array([3, 0])), task.firsts[[1, 0]])


def test_outputs_are_the_model_s_own_in_any_company() -> None:
    task = mixed((1, 1, 1, 1))
    x = torch.stack([task.init, -task.init, 2 * task.init])
    inputs = task.public[:4].expand(3, -1, -1)
    samples = Samples(inputs, torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 4))
    stacked = Stacked(task, FedAvg().loss, 3, exact=True)
    found = stacked.outputs(x, samples)
    alone = [stacked.outputs(x[i : i + 1], Samples(*(one[i : i + 1] for one in samples[:3]))) for i in range(3)]
    assert torch.equal(found, torch.cat(alone))
    assert torch.allclose(found, Looped(task, FedAvg().loss, 3).outputs(x, samples), atol=1e-6)
    a, b, c, d = task.layout.views(x[1]).values()
    assert torch.allclose(found[1], (inputs[1] @ a.T + b).relu() @ c.T + d, atol=1e-6)


# By hand


def by_hand() -> tuple[Task, dict[str, Tensor]]:
    """One public sample 1; a model w x of two outputs, and one w x + b. Node 0 sends w = (2, 0), node 1 w = (0, 0), b = (0, 4)."""
    plain, biased = nn.Linear(1, 2, bias=False), nn.Linear(1, 2)
    for module in (plain, biased):
        for one in module.parameters():
            nn.init.zeros_(one)
    both = Architecture.of("task.model", plain), Architecture.of("task.models.biased", biased)
    x, y = torch.ones(2, 1), torch.tensor([0, 1])
    split = torch.arange(2), torch.tensor([0, 1, 2])
    task = Task(x, y, *split, x, y, None, plain, Layout.of(plain), both[0].init, CrossEntropy(), 2, public=torch.ones(1, 1))
    sent = torch.tensor([[2.0, 0, 0, 0], [0, 0, 0, 4.0]])
    return replace(task, architectures=both, architecture=torch.tensor([0, 1])), {"update": sent}


def news(task: Task, parts: dict[str, Tensor]) -> Inbox:
    share, zero = torch.full((2,), 0.5), torch.zeros(2)
    return Inbox(parts, share, torch.arange(2), zero, task.layout, 2, torch.arange(2), task=task)


def test_a_step_of_feddf() -> None:
    # Outputs (2, 0) and (0, 4), together (1, 2). The first model's own are too sure of class 0, the second's of class 1; the first step of
    # Adam is lr in the direction of each slope's sign.
    task, parts = by_hand()
    fused = FedDF(steps=1, lr=0.25).merge({"model": torch.zeros(2, 4)}, news(task, parts))["model"]
    assert torch.allclose(fused, torch.tensor([[1.75, 0.25, 0, 0], [0.25, -0.25, 0.25, 3.75]]), atol=1e-5)
    assert torch.equal(FedDF(steps=0).merge({"model": torch.zeros(2, 4)}, news(task, parts))["model"], parts["update"])


def test_models_of_two_architectures_come_to_agree() -> None:
    task, parts = by_hand()
    fused = FedDF(steps=150, lr=0.1).merge({"model": torch.zeros(2, 4)}, news(task, parts))["model"]
    outputs = torch.stack([fused[0, :2], fused[1, :2] + fused[1, 2:]])
    due = torch.tensor([1.0, 2.0]).softmax(0)
    assert torch.allclose(outputs.softmax(1), due.expand(2, -1), atol=0.01)


def test_the_consensus_is_the_mean_of_outputs_whatever_models_made_them() -> None:
    task, _ = by_hand()
    state = FedMD().start(torch.zeros(2, 4), task)
    assert state["consensus"].shape == (2, 1, 2)
    said = {"outputs": torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]])}
    assert FedMD().merge(state, news(task, said))["consensus"].tolist() == [[[1, 2]], [[1, 2]]]
    uneven = replace(news(task, said), weight=torch.tensor([0.75, 0.25]))
    assert FedMD(weights="samples").merge(state, uneven)["consensus"][0].tolist() == [[1.5, 1]]


@pytest.mark.parametrize(("distance", "after"), [("squared", [[0.5, 1.0], [0.5, 1.0, 0.5, 1.0]]), ("absolute", [[0.25] * 2, [0.25] * 4])])
def test_a_step_of_digesting(distance: Any, after: list[list[float]]) -> None:
    # Of models 0 towards (1, 2) at x = 1, rate 1/2: slopes of the mean square are -(1, 2), of the mean distance -(1/2, 1/2)
    task, _ = by_hand()
    strategy = FedMD(digest=1, digest_lr=0.5, distance=distance, train=steps(1, 0.0), schedule=ALL)
    fed = ran(task, strategy, 0)
    fed.state["consensus"] = torch.tensor([1.0, 2.0]).expand(2, 1, 2).clone()
    fed.watch = Until(1)
    fed.run()
    assert [own(fed, node).tolist() for node in (0, 1)] == after
    ends = [after[0], [a + b for a, b in zip(after[1][:2], after[1][2:], strict=True)]]
    assert torch.allclose(fed.state["consensus"][0, 0], torch.tensor(ends).mean(0))


# Reductions


def test_feddf_without_distillation_is_fedavg_in_bits() -> None:
    task = classification([7, 11, 9, 13])
    first, second = (ran(task, replace(one, train=LEARN, schedule=Rounds(cohort=Count(2))), 3) for one in (FedAvg(), FedDF(steps=0)))
    assert torch.equal(models(first), models(second))


def test_without_digesting_each_trains_alone_in_its_own_stack() -> None:
    together = ran(mixed(), FedMD(digest=0, train=LEARN, schedule=ALL), 3)
    for kind in (0, 1):
        alone = ran(mixed((kind,) * 4), Ditto(pull=0.0, train=LEARN, schedule=ALL), 3)
        for node in np.flatnonzero(together.task.home == kind).tolist():
            assert torch.equal(own(together, node), own(alone, node))
    learns = ran(mixed(), FedMD(train=LEARN, schedule=ALL), 3)
    assert not torch.equal(own(learns, 0), own(together, 0))


def test_architectures_average_apart() -> None:
    # Those who share one are a federation of their own: weights are shares of their samples
    fed = ran(mixed(), FedDF(steps=0, train=LEARN, schedule=ALL), 1)
    for kind, nodes in ((0, (0, 2)), (1, (1, 3))):
        alone = ran(mixed((kind,) * 4), Ditto(pull=0.0, train=LEARN, schedule=ALL), 1)
        share = fed.task.share[list(nodes)]
        due = sum(own(alone, node) * weight for node, weight in zip(nodes, share / share.sum(), strict=True))
        assert torch.allclose(fed.state["model"][kind, : len(due)], due, atol=1e-6)


# The same bits however it is computed, and what it costs


def same(one: Federation, other: Federation) -> None:
    for name, rows in one.state.items():
        assert torch.equal(rows, other.state[name])
    memory, others = (fed.flight.remembered(np.arange(4)) or {} for fed in (one, other))
    assert all(torch.equal(rows, others[name]) for name, rows in memory.items())


def test_processes_change_no_bit() -> None:
    strategy = FedMD(digest=3, train=LEARN, schedule=ALL)
    same(ran(mixed(), strategy, 2), ran(mixed(), strategy, 2, processes=2))


def test_stacked_rows_have_the_same_bits_in_any_company() -> None:
    task, strategy = mixed(), FedMD(digest=2, train=LEARN, schedule=ALL)
    one, two = (ran(task, strategy, 1, plan="stacked", chunk=chunk) for chunk in (1, 2))
    same(one, two)
    assert torch.allclose(one.state["consensus"], ran(task, strategy, 1).state["consensus"], atol=1e-4)


def test_bytes_are_those_of_outputs_or_of_each_one_s_model() -> None:
    fed = ran(mixed(), FedMD(train=LEARN, schedule=ALL), 1)
    assert fed.flight.up_bytes.tolist() == [row_bytes({"outputs": torch.zeros(1, 10, 3)})] * 4 == [80 + 10 * 3 * 4] * 4
    assert fed.down_bytes.tolist() == [row_bytes({"consensus": torch.zeros(1, 10, 3)})] * 4
    half = ran(mixed(), FedMD(train=LEARN, schedule=ALL, uplink=Float16(), downlink=Float16()), 1)
    wire = Float16().encode({"outputs": torch.zeros(1, 10, 3)}, {}, torch.zeros(1, dtype=torch.int64))
    assert half.flight.up_bytes.tolist() == [row_bytes(wire)] * 4 and row_bytes(wire) < 200
    assert torch.allclose(half.state["consensus"], fed.state["consensus"], atol=1e-2)
    fed = ran(mixed(), FedDF(steps=0, train=LEARN, schedule=ALL), 1)
    assert fed.flight.up_bytes.tolist() == [72 + 21 * 4, 72 + 53 * 4] * 2
    assert fed.down_bytes.tolist() == [row_bytes({"model": torch.zeros(1, size)}) for size in (21, 53)] * 2
    assert (events(fed, "arrival")["bytes_up"][np.argsort(events(fed, "arrival")["node"])] == fed.flight.up_bytes).all()


def test_the_time_of_a_job_counts_what_it_digests() -> None:
    fed = ran(mixed(), FedMD(digest=5, digest_batch=4, train=LEARN, schedule=ALL), 0)
    assert [one.tolist() for one in fed.flight.effort] == [[8, 8, 8, 8], [11 + 20, 11 + 20, 9 + 20, 12 + 20]]


# Judged, each by its own architecture


def test_each_client_is_judged_by_its_own_model() -> None:
    fed = ran(mixed(), FedMD(digest=3, train=LEARN, schedule=ALL), 2)
    task = replace(fed.task, test_owner=torch.arange(50) % 4)

    def kept(nodes: Tensor) -> tuple[Tensor, Tensor]:
        return torch.stack([nn.functional.pad(own(fed, node), (0, 53))[:53] for node in nodes.tolist()]), torch.zeros(len(nodes), 0)

    def right(node: int) -> Tensor:
        alone = task.stacks[task.home[node]]
        outputs = torch.func.functional_call(alone.model, alone.layout.views(own(fed, node)), (task.test_inputs,))
        return (outputs.argmax(1) == task.test_targets).double()

    view = OfClients(task, fed.state["model"][:1, :21], strategy=fed.strategy, personal=kept)
    nodes, all_right = torch.arange(4), torch.stack([right(node) for node in range(4)])
    due = torch.stack([all_right[node, node::4].mean() for node in range(4)])
    assert torch.allclose(judged(view, kept, nodes)[1], due) and torch.allclose(view.clients, due)
    assert torch.allclose(view.tests[1], all_right.mean(0, keepdim=True))
    assert isinstance(View(task, view.models).tests[0], Tensor)


# From a scenario

TEXT = """\
task:
  data: digits
  partition: {name: dirichlet, alpha: 0.5, nodes: 8}
  model: logistic
  models: {wide: {name: mlp, hidden: [8]}}
  public: 40
groups: {narrow: 3, wide: rest}
strategy: {name: fedmd, digest: 2}
train: {steps: 2, batch: 8, lr: 0.1}
schedule: {name: rounds, cohort: 4}
engine: {plan: looped}
stop: {rounds: 4}
track: none
"""


@pytest.mark.parametrize("strategy", ["fedmd, digest: 2", "feddf, steps: 2"])
def test_resumed_is_uninterrupted(tmp_path: Path, strategy: str) -> None:
    chosen = (f"strategy={{name: {strategy}}}", "uplink={name: ef14, inner: float16}")
    whole = simulate(tmp_path, *chosen, text=TEXT)
    simulate(tmp_path, *chosen, "stop.rounds=2", text=TEXT, into="half")
    half = resumed(tmp_path / "half", "stop.rounds=4")
    assert half.info["model"] == whole.info["model"]
    times = "time/wall_seconds"
    assert [one | {times: 0} for one in half.metrics] == [one | {times: 0} for one in whole.metrics]
    last = whole.metrics[-1]
    assert 0 < last["personal/accuracy"] <= 1 and "personal/gain" not in last  # no model is shared by all
    assert ("architectures/wide/accuracy" in last) == strategy.startswith("feddf")
    if strategy.startswith("feddf"):  # each of the 8 clients is judged by the model of its architecture
        three, five = (last[f"architectures/{name}/accuracy"] for name in ("model", "wide"))
        assert three != five and last["test/accuracy"] == pytest.approx((3 * three + 5 * five) / 8)
        assert last["clients/accuracy_mean"] == pytest.approx(last["personal/accuracy"])
    assert (whole.path / "model-wide.safetensors").exists()


def test_one_architecture_for_all_is_a_task_without_groups_models(tmp_path: Path) -> None:
    def task(*settings: str) -> Task:
        return build(load(write(tmp_path, TEXT), settings)[0], TASKS).fed.task

    alike, plain = task("task.models={wide: logistic}"), task("task.models=null")
    assert not alike.architectures and torch.equal(alike.init, plain.init) and alike.hash() == plain.hash()
    swapped = task("task.models={narrow: {name: mlp, hidden: [8]}, wide: {name: mlp, hidden: [8]}}", "task.model=lenet")
    assert not swapped.architectures and swapped.layout.size == 64 * 8 + 8 + 80 + 10
    assert len(task().inputs) + 40 == len(task("task.public=null", "strategy=fedavg", "task.models=null").inputs)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("strategy=fedavg",), "task.models.wide: group `wide` has a model of its own, and `fedavg` averages weights"),
        (("task.public=null",), "task.public: group `wide` has a model of its own, and `fedmd` exchanges outputs on public samples"),
        (("task.public=null", "strategy=feddf"), "task.public: group `wide` has a model of its own, and `feddf` exchanges outputs"),
        (("task.public=5000",), "task.public: 5,000 of 1,438 training samples: none is left"),
        (("task.models={broad: logistic}",), "task.models.broad: no group `broad`; there are narrow, wide"),
        (("task.models={wide: {name: mlp, hiden: [8]}}",), "unknown key `task.models.wide.hiden`; did you mean `task.models.wide.hidden`"),
        (("task.models={wide: char_lstm}",), "task.models.wide: samples of token numbers are needed"),
        (("evaluate={metrics: [accuracy, f1]}",), "evaluate.metrics.1: `f1` looks at a shared model, and groups have models of their own"),
        (("strategy=feddf", "evaluate={metrics: [gradient_norm]}"), "evaluate.metrics.0: `gradient_norm` looks at a shared model"),
        (("evaluate={metrics: [finetuned]}",), "evaluate.metrics.0: "),
        (("strategy=feddf", "downlink=float16"), "downlink: models of different lengths travel as they are"),
        (("strategy=feddf", "world.attackers={name: sign_flip, nodes: 2}"), "world.attackers: `sign_flip` forges messages that are alike"),
        (("strategy={name: feddf, average: median}",), "average `median` compares models of one architecture"),
        (("world.hosts={nodes: [0..7]}",), "world.hosts: machines share what all hear"),
        (("engine={name: ray}",), "engine.name: `ray` computes nodes of one model"),
        (("schedule=gossip",), "strategy: `fedmd` merges at a server"),
        (("privacy={clip: 1, noise: 1}",), "privacy: not where nodes have different models"),
        (("task.public={name: data, data: nowhere.csv}",), "task.public.data: no data `nowhere.csv`"),
        (("task.public={name: data, data: iris}",), "task.public"),
        (("task.public=0",), "task.public.samples: `0`: at least 1 is due"),
    ],
)
def test_bad_input(tmp_path: Path, settings: tuple[str, ...], said: str) -> None:
    with pytest.raises((SettingError, ScenarioError)) as found:
        build(load(write(tmp_path, TEXT), settings)[0], TASKS)
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("nn.Linear(64, 12)", r"gives outputs of shape \[12\], and that of `task.model` \[10\]"),
        ("nn.Linear(64, 10), nn.BatchNorm1d(10)", "has running statistics"),
    ],
)
def test_models_that_can_t_meet_are_refused(tmp_path: Path, layers: str, said: str) -> None:
    name = f"odd{len(layers)}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n\n\nclass Odd(nn.Sequential):\n    def __init__(self) -> None:\n"
        f"        super().__init__(nn.Flatten(), {layers})\n"
    )
    with pytest.raises(SettingError, match=f"task.models.wide: {said}"):
        build(load(write(tmp_path, TEXT), (f"task.models={{wide: {name}:Odd}}",))[0], TASKS)


def test_outputs_of_classes_are_exchanged_and_on_no_real_machine(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"task.data: `fedmd` exchanges outputs of classes"):
        FedMD().start(torch.zeros(1, 1), quadratics([1.0]))
    loaded = load(write(tmp_path, TEXT))[0]
    with pytest.raises(SettingError, match=r"task.models: on real machines all nodes have one model"):
        assemble(loaded, TASKS.get(loaded), field=Recorded)
    alike = load(write(tmp_path, TEXT), ("task.models=null",))[0]
    with pytest.raises(SettingError, match="strategy: `fedmd` leaves all models with clients"):
        assemble(alike, TASKS.get(alike), field=Recorded)
