"""Methods that keep models of the clients' own, and how those are judged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from launch import call, write
from tools import classification, models, quadratics, steps
from tools import quick as run
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout
from fedsim.method.local import Local
from fedsim.method.split import body, columns, layers
from fedsim.method.train import Train
from fedsim.metrics.personal import Personal, judged, summary
from fedsim.metrics.view import View
from fedsim.run.building import Tasks, build
from fedsim.run.folders import RunFolder, find_runs
from fedsim.scenario import load
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count
from strategies.apfl import Apfl
from strategies.ditto import Ditto
from strategies.fedavg import FedAvg
from strategies.fedbn import FedBN
from strategies.fedper import FedPer
from strategies.fedrep import FedRep
from strategies.ifca import Ifca
from strategies.pfedme import PFedMe

ALL, TWO = Rounds(cohort=Count()), Rounds(cohort=Count(2))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def own(fed: Any, nodes: list[int]) -> Tensor:
    """Their own models [k, d]."""

    at = np.array(nodes)
    heard = {name: rows.expand(len(at), *rows.shape[1:]) for name, rows in fed.strategy.broadcast(fed.state).items()}
    found: Tensor = fed.strategy.personal(heard, fed.flight.remembered(at), fed.task)
    return found


# Reductions: the shared model in bits

SAME = [Ditto(pull=0.3), Apfl(own=0.7), FedPer(layers=0), Ifca(clusters=1)]


@pytest.mark.parametrize("strategy", SAME, ids=lambda one: one.name)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_shared_model_is_that_of_fedavg(strategy: FedAvg, momentum: float) -> None:
    if momentum and isinstance(strategy, Apfl):
        pytest.skip("apfl knows plain steps only")
    task, train = classification([7, 11, 9, 13], model=mlp()), steps(5, 0.1, batch=4, momentum=momentum)
    first, second = (run(task, replace(one, train=train, schedule=TWO), 3) for one in (FedAvg(), strategy))
    assert torch.allclose(models(first), models(second), atol=1e-6)
    assert models(second)[-1].ne(models(second)[0]).all()


@pytest.mark.parametrize("strategy", [Ditto(pull=0.3), Apfl(own=0.7)], ids=lambda one: one.name)
def test_in_bits_too(strategy: FedAvg) -> None:
    task, train = classification([7, 11, 9, 13], model=mlp()), steps(5, 0.1, batch=4)
    first, second = (run(task, replace(one, train=train, schedule=TWO), 3) for one in (FedAvg(), strategy))
    assert torch.equal(models(first), models(second))


# By hand


def test_ditto_comes_to_rest_between_its_own_optimum_and_the_shared_model() -> None:
    # F_i = a_i/2 (v - b_i)^2: at rest a_i (v - b_i) = pull (w - v), so v = (a_i b_i + pull w) / (a_i + pull)
    a, b = torch.tensor([1.0, 2.0]).double(), torch.tensor([-3.0, 6.0]).double()
    fed = run(quadratics(b, a), Ditto(train=steps(3, 0.1), schedule=ALL, pull=0.5), 200)
    w = fed.state["model"].item()
    assert torch.allclose(own(fed, [0, 1])[:, 0], (a * b + 0.5 * w) / (a + 0.5), atol=1e-9)


def test_a_step_of_pfedme() -> None:
    # b = 8, lambda 1, own_lr 1/2, two inner steps from w = 0: theta 4, then 4 - (4 - 8 + 4)/2 = 4; w = 0 - 1/4 (0 - 4) = 1
    fed = run(quadratics([8.0]), PFedMe(train=steps(1, 0.25), schedule=ALL, pull=1.0, inner=2, own_lr=0.5), 1)
    assert (fed.state["model"].item(), own(fed, [0]).item()) == (1.0, 4.0)


def test_the_time_of_a_job_of_pfedme_is_that_of_all_its_gradients() -> None:
    fed = run(quadratics([8.0]), PFedMe(train=steps(3, 0.25), schedule=ALL, inner=4), 1)
    assert fed.flight.effort[0].tolist() == [12]


def test_a_step_of_apfl() -> None:
    # b = 8, lr 1/2, own 1/4: w 0 -> 4; mixture 0, slope -8: v 0 -> 0 + 1/2 1/4 8 = 1; used: 1/4 1 + 3/4 4 = 3.25
    fed = run(quadratics([8.0]), Apfl(train=steps(1, 0.5), schedule=ALL, own=0.25), 1)
    assert (fed.state["model"].item(), own(fed, [0]).item()) == (4.0, 3.25)


def test_apfl_learns_how_much_of_its_own_it_needs() -> None:
    # Its share grows where its own model lies against the slope of the mixture
    fed = run(quadratics([8.0, -8.0]), Apfl(train=steps(2, 0.05), schedule=ALL, own=0.2, adaptive=True), 40)
    mix = fed.flight.remembered(torch.tensor([0, 1]).numpy())["mix"][:, 0]
    assert (mix > 0.9).all() and own(fed, [0, 1])[:, 0].tolist() == pytest.approx([8, -8], abs=0.5)


def test_two_clusters_find_two_centres() -> None:
    start = Ifca().start(torch.tensor([[1.0, 2.0, 4.0]]), quadratics([1.0]))["models"]
    assert start.shape == (1, 2, 3) and start[0, 0].tolist() == [1.0, 2.0, 4.0] and not torch.equal(start[0, 1], start[0, 0])
    strategy = Apart(train=steps(2, 0.3), schedule=ALL)
    fed = run(quadratics([-5.0, 6.0, -5.0, 6.0]), strategy, 30)
    assert sorted(fed.state["models"][0, :, 0].tolist()) == pytest.approx([-5, 6], abs=1e-6)
    assert own(fed, [0, 1, 2, 3])[:, 0].tolist() == pytest.approx([-5, 6, -5, 6], abs=1e-6)


class Apart(Ifca):
    """Begins at -1 and 1."""

    def start(self, x: Tensor, task: Any) -> Any:
        return {"models": torch.stack([x - 1, x + 1], 1)}


# What is whose

SHAPES = {"0.weight": (5, 6), "0.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}


def test_layers_of_a_row() -> None:
    layout = Layout(SHAPES)
    assert layers(layout) == ["0", "2"] and (body(layout, 1), body(layout, 0)) == (35, 53)
    assert columns(layout, frozenset(["2"])).sum() == 18
    with pytest.raises(SettingError, match="2 layers are the client's own, and the model has 2: nothing would be shared"):
        body(layout, 2)


def test_heads_stay_and_are_not_sent() -> None:
    task = classification([7, 11, 9], model=mlp())
    fed = run(task, FedPer(train=steps(4, 0.2), schedule=ALL), 3)
    whole = run(task, FedAvg(train=steps(4, 0.2), schedule=ALL), 1)
    assert fed.flight.up_bytes == whole.flight.up_bytes - 4 * 18 and fed.down_bytes == whole.down_bytes - 4 * 18
    mine = own(fed, [0, 1, 2])
    assert torch.equal(mine[:, :35], fed.state["base"].expand(3, -1)) and (mine[0, 35:] != mine[1, 35:]).all()
    assert torch.equal(models(fed)[-1][0, 35:], task.init[35:])


def test_fedrep_moves_first_the_head_then_the_base() -> None:
    task = classification([8], model=mlp())
    fed = run(task, FedRep(train=steps(4, 0.2), schedule=ALL, head=1.0), 1)
    assert torch.equal(models(fed)[-1], models(fed)[0]) and (own(fed, [0])[0, 35:] != task.init[35:]).any()
    fed = run(task, FedRep(train=steps(4, 0.2), schedule=ALL, head=0.0), 1)
    assert torch.equal(own(fed, [0])[0, 35:], task.init[35:]) and (fed.state["base"][0] != task.init[:35]).any()
    first = FedRep(train=steps(1, 0.2, momentum=0.9), schedule=ALL, head=1.0)
    both = run(task, replace(first, train=steps(2, 0.2, momentum=0.9), head=0.5), 1)  # a step each
    assert torch.equal(own(both, [0])[0, 35:], own(run(task, first, 1), [0])[0, 35:])


def test_fedbn_keeps_normalisation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.b(torch.relu(self.norm(self.a(x))))
            return found

    task = classification([7, 11, 9], model=Net())
    fed = run(task, FedBN(train=steps(4, 0.2), schedule=ALL), 2)
    norm = columns(task.layout, frozenset(["norm"]))
    mine = own(fed, [0, 1])
    assert run(task, FedAvg(train=steps(4, 0.2), schedule=ALL), 1).flight.up_bytes - fed.flight.up_bytes == 4 * 8
    assert torch.equal(mine[0, ~norm], mine[1, ~norm]) and (mine[0, norm] != mine[1, norm]).any()
    assert torch.equal(models(fed)[-1][0, norm], task.init[norm])
    with pytest.raises(SettingError, match="this model has none"):
        run(classification([7], model=mlp()), FedBN(train=steps(), schedule=ALL), 1)


# How they are judged


def view(task: Any, rows: Tensor, **settings: Any) -> View:
    def given(nodes: Tensor) -> tuple[Tensor, Tensor]:
        return rows[nodes], rows.new_zeros(len(nodes), 0)

    return View(task, task.init[None], personal=given, **settings)


def test_own_models_are_judged_on_data_like_their_own() -> None:
    task = classification([20, 30, 10])
    rows = task.init + 0.5 * torch.randn(3, task.layout.size, generator=torch.Generator().manual_seed(0))
    shared, found = view(task, rows), summary(view(task, rows), view(task, rows).personal, "personal")
    each = torch.stack([View(task, rows[at][None]).clients[at] for at in range(3)])
    assert found["personal/accuracy"] == pytest.approx(float(each.mean()), abs=1e-12)
    assert found["personal/accuracy_worst_10"] == pytest.approx(float(each.min()), abs=1e-12)
    assert found["personal/accuracy_std"] == pytest.approx(float(each.std(correction=0)), abs=1e-12)
    assert found["personal/gain"] == pytest.approx(float((each - shared.clients).mean()), abs=1e-12)


def test_on_their_own_test_samples_where_there_are_some() -> None:
    task = classification([20, 30, 10, 5])
    owner = torch.arange(50) % 5 % 4  # node 0 has twice as many
    owner[owner == 3] = -1  # nobody's; node 3 has none
    task = replace(task, test_owner=owner)
    rows = task.init + 0.5 * torch.randn(4, task.layout.size, generator=torch.Generator().manual_seed(1))
    losses, right = judged(view(task, rows), view(task, rows).personal, torch.tensor([2, 0, 3]))
    for place, node in enumerate((2, 0)):
        loss, hits = View(task, rows[node][None]).predict(rows[node], rows.new_zeros(0))
        assert right[place] == pytest.approx(float(hits[owner == node].mean())) and losses[place] == pytest.approx(
            float(loss[owner == node].mean()), rel=1e-6
        )
    assert right[2].isnan()


@pytest.mark.parametrize("owned", [False, True])
def test_of_very_many_clients_some_are_judged(monkeypatch: pytest.MonkeyPatch, owned: bool) -> None:
    for module in ("fedsim.task.task", "fedsim.metrics.view"):
        monkeypatch.setattr(f"{module}.SOME", 2)
    task = classification([9, 4, 7, 6, 8])
    if owned:
        task = replace(task, test_owner=torch.arange(50) % 5)
    rows = task.init + 0.5 * torch.randn(5, task.layout.size, generator=torch.Generator().manual_seed(3))
    nodes = task.some()
    each = [View(task, rows[at][None]) for at in nodes.tolist()]
    right = [one.clients[at] if owned else one.by_labels(torch.tensor([at]))[0] for one, at in zip(each, nodes.tolist(), strict=True)]
    found = summary(view(task, rows), view(task, rows).personal, "personal")
    shared = view(task, rows).clients[nodes] if owned else view(task, rows).by_labels(nodes)
    assert len(nodes) == 2 and nodes.tolist() != [0, 1]  # the places of those judged are not their numbers
    assert found["personal/accuracy"] == pytest.approx(float(torch.stack(right).mean()), abs=1e-12)
    assert found["personal/gain"] == pytest.approx(float((torch.stack(right) - shared).mean()), abs=1e-12)


def test_models_that_do_not_stack_are_judged_alike() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > -1e9 else x

    plain, odd = classification([9, 9]), classification([9, 9], model=Branching(6, 3))
    rows = plain.init + torch.randn(2, plain.layout.size, generator=torch.Generator().manual_seed(2))
    first, second = (judged(view(task, rows), view(task, rows).personal, torch.tensor([0, 1])) for task in (plain, odd))
    assert torch.allclose(first[0], second[0], atol=1e-6) and torch.equal(first[1], second[1])


TEXT = """name: own
task: {data: digits, partition: {name: pathological, classes: 2, nodes: 6}, model: {name: mlp, hidden: [16]}}
strategy: fedper
train: {epochs: 2, lr: 0.1}
schedule: {name: rounds, cohort: all}
groups: {few: 2, rest: rest}
stop: {rounds: 3}
track: none
"""


def test_a_run_tells_them_by_itself(folder: Any) -> None:
    assert call("run", write(folder, TEXT).name).exit_code == 0
    [run] = find_runs(["own"])
    last = run.metrics[-1]
    assert last["personal/accuracy"] > 0.8 > last["clients/accuracy_mean"] and last["personal/gain"] > 0
    assert {"personal/groups/few/accuracy", "personal/accuracy_worst_10"} <= last.keys()


def test_a_method_that_keeps_none_is_named(folder: Any) -> None:
    result = call("run", write(folder, TEXT.replace("fedper", "fedavg")).name, "evaluate.metrics=[personal]")
    assert result.exit_code == 2 and "`fedavg` keeps no model of a client's own" in result.stderr
    assert not (folder / "runs").exists() and Personal().name == "personal"


def test_fine_tuning_needs_a_gradient(folder: Any) -> None:
    text = TEXT.replace("fedper", "eggroll")
    for settings, said in (
        (["task.loss=integer_cross_entropy"], "`integer_cross_entropy`"),
        (["task.model=integer_mlp", "task.loss=cross_entropy"], "the model"),
    ):
        told = call("validate", write(folder, text).name, "evaluate.metrics=[finetuned]", "train=null", *settings)
        assert told.exit_code == 2 and f"evaluate.metrics.0: trains along a gradient, and {said} has none" in told.stderr


def test_fine_tuning_by_hand(folder: Any) -> None:
    """All samples in one batch: one step of the shared model along the client's own gradient, and the run goes on as if nothing were."""
    text = TEXT.replace("fedper", "fedavg").replace("epochs: 2", "batch: all")
    tuned = "evaluate.metrics=[accuracy, loss, {name: finetuned, lr: 2.0}]"
    assert call("run", write(folder, text).name).exit_code == 0
    assert call("run", write(folder, text).name, tuned).exit_code == 0
    first, second = (RunFolder(path) for path in sorted((folder / "runs/own").glob("2*")))
    assert first.info["model"] == second.info["model"]
    assert {"finetuned/accuracy", "finetuned/gain"} <= second.metrics[-1].keys() and "finetuned/gain" not in second.metrics[1]
    [loaded] = load(folder / "small.yaml", [tuned])
    made = build(loaded, Tasks())
    made.fed.run()
    task, x = made.fed.task, made.fed.state["model"]
    plan, node = made.fed.worker.plan, torch.tensor([3])
    local = Local(plan, task, Train(batch="all"), node, node, np.zeros(1, dtype=np.int64))
    [[batch]] = list(local.batches())
    models = made._view().tuned(Train(epochs=1, batch="all", lr=Constant(2.0)), node)[0]
    assert torch.allclose(models, x - 2.0 * batch.gradient(x.clone()), atol=1e-6)
