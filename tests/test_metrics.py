"""Measures of models whose predictions are seen at a glance."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tools import quadratics
from torch import Tensor, nn

import fedsim.metrics.view as views
import fedsim.task.task as tasks
from fedsim.base.rows import Layout
from fedsim.metrics.metrics import Accuracy, Average, Clients, Consensus, Groups, Mergeability, Metric, Nodes, TestLoss
from fedsim.metrics.view import View
from fedsim.task.loss import CrossEntropy
from fedsim.task.task import Task

EVERY: list[Metric] = [Accuracy(), TestLoss(), Clients(), Groups(), Nodes(), Consensus(), Average(), Mergeability()]


def logits(always: int, scale: float = 5.0) -> list[float]:
    """A model of three parameters, its outputs for any sample: it says class `always`."""
    return [scale * (always == c) for c in range(3)]


class Says(nn.Module):
    """Outputs w + x: x = 0 leaves the choice to the model, a large entry of x makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.w + x


def task(labels: Sequence[Sequence[int]], tests: Sequence[int], owner: Sequence[int] | None = None, x: Tensor | None = None) -> Task:
    """Node i has the labels[i]; test samples of the given classes, at x = 0 by default."""
    y, counts, model = torch.tensor([c for own in labels for c in own]), torch.tensor([len(own) for own in labels]), Says()
    inputs = torch.zeros(len(tests), 3) if x is None else x
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    whose = None if owner is None else torch.tensor(owner)
    data = (torch.zeros(len(y), 3), y, torch.arange(len(y)), starts, inputs, torch.tensor(tests), whose)
    return Task(*data, model, Layout.of(model), torch.zeros(3), CrossEntropy(), 3)


def measure(metric: Metric, of: Task, *models: list[float], slab: int = 4096) -> dict[str, float]:
    return metric.measure(View(of, torch.tensor(models, dtype=torch.float32), slab=slab))


def test_accuracy_and_loss_by_hand() -> None:
    two = task([[0]], [0, 0, 2, 1])
    assert measure(Accuracy(), two, logits(0)) == {"test/accuracy": 0.5}
    # -log softmax of (0, 0, 0) is log 3 for any class; of (log 2, 0, 0) it is log 2 twice, then log 4 twice
    assert measure(TestLoss(), two, [0, 0, 0])["test/loss"] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-6)
    assert measure(TestLoss(), two, [torch.tensor(2.0).log().item(), 0, 0])["test/loss"] == pytest.approx(1.5 * 0.6931472, rel=1e-6)


def test_peers_count_by_their_mean() -> None:
    """And by the worst of them, and by the mean of their models, which says class 1."""
    peers = [logits(0), logits(1), logits(1), logits(2)]
    of = task([[0]] * 4, [0, 0, 2, 1, 1, 1, 1, 1])
    found = measure(Accuracy(), of, *peers)
    assert found == {"test/accuracy": (2 + 5 + 5 + 1) / 32, "nodes/accuracy_worst": 1 / 8, "average/accuracy": 5 / 8}
    assert measure(Nodes(), of, *peers) == {"nodes/accuracy_mean": 13 / 32, "nodes/accuracy_worst": 1 / 8}
    assert measure(Nodes(), of, logits(0)) == {"nodes/accuracy_mean": 1 / 4, "nodes/accuracy_worst": 1 / 4}


@pytest.mark.parametrize("slab", [1, 2, 3, 7])
def test_slabs_change_nothing(slab: int) -> None:
    of = task([[0]], [0, 1, 2, 0, 1, 2, 2], x=torch.arange(21.0).reshape(7, 3).sin())
    for metric in EVERY:
        assert measure(metric, of, [0.1, 0.2, 0.0], slab=slab) == pytest.approx(measure(metric, of, [0.1, 0.2, 0.0]), rel=1e-6)


# The test set has class 0 right by x in 3 of 4 samples, class 1 in 1 of 2, class 2 never
SEEN = [0, 0, 0, 0, 1, 1, 2]
X = 9 * torch.eye(3)[[0, 0, 0, 1, 1, 2, 0]]


def test_clients_by_their_mix_of_labels() -> None:
    of = task([[0], [1, 1], [0, 1, 1, 1], [2, 2, 0]], SEEN, x=X)
    view = View(of, torch.zeros(1, 3))
    assert view.clients.tolist() == pytest.approx([3 / 4, 1 / 2, (3 / 4 + 3 / 2) / 4, 1 / 4], rel=1e-15)
    found = Clients().measure(view)
    assert found["clients/accuracy_mean"] == pytest.approx((3 / 4 + 1 / 2 + 9 / 16 + 1 / 4) / 4, rel=1e-15)
    assert found["clients/accuracy_worst_10"] == 1 / 4


def test_classes_without_test_samples_do_not_count() -> None:
    of = task([[0, 2, 2], [2, 2], [1]], SEEN[:6], x=X[:6])
    view = View(of, torch.zeros(1, 3))
    assert view.clients.tolist() == pytest.approx([3 / 4, float("nan"), 1 / 2], nan_ok=True)
    assert Clients().measure(view) == {"clients/accuracy_mean": 5 / 8, "clients/accuracy_worst_10": 1 / 2}


def test_peers_are_measured_with_their_own_models() -> None:
    of = task([[0, 1], [0, 1], [2, 2, 2, 0]], [0, 1, 1, 2])
    assert View(of, torch.tensor([logits(0), logits(2), logits(2)])).clients.tolist() == [0.5, 0, 0.75]


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (10, 1), (11, 2), (20, 2), (25, 3)])
def test_the_worst_tenth_is_at_least_one(clients: int, worst: int) -> None:
    """Client i has i samples of class 0, which are right, and the rest to 40 of class 1."""
    order = torch.randperm(clients, generator=torch.Generator().manual_seed(0)).tolist()
    of = task([[0] * i + [1] * (40 - i) for i in order], [0, 1])
    found = measure(Clients(), of, logits(0))
    assert found["clients/accuracy_worst_10"] == pytest.approx(sum(range(worst)) / worst / 40, rel=1e-15)
    assert found["clients/accuracy_mean"] == pytest.approx((clients - 1) / 2 / 40, rel=1e-15)


def test_test_samples_of_their_own() -> None:
    """Where test samples have owners, clients are measured on them; label mixes do not matter, and samples of nobody count for nobody."""
    of = task([[0]] * 4, [0, 1, 0, 0, 2, 0, 1], owner=[1, 1, 0, 3, 1, -1, -1])
    view = View(of, torch.tensor([logits(0)]))
    assert view.clients.tolist() == pytest.approx([1, 1 / 3, float("nan"), 1], nan_ok=True)
    assert Clients().measure(view) == {"clients/accuracy_mean": pytest.approx(7 / 9), "clients/accuracy_worst_10": pytest.approx(1 / 3)}
    assert Accuracy().measure(view) == {"test/accuracy": 4 / 7}
    peers = View(of, torch.tensor([logits(0), logits(2), logits(0), logits(1)]))
    assert peers.clients.tolist() == pytest.approx([1, 1 / 3, float("nan"), 0], nan_ok=True)


def test_groups_are_means_over_their_clients() -> None:
    of = task([[0], [1, 1], [0, 1, 1, 1], [2, 2, 0]], SEEN, x=X)
    grouped = replace(of, groups={"few": range(1), "many": range(1, 4)})
    found = measure(Groups(), grouped, [0, 0, 0])
    assert found == {"groups/few/accuracy": 3 / 4, "groups/many/accuracy": pytest.approx((1 / 2 + 9 / 16 + 1 / 4) / 3)}
    assert measure(Groups(), of, [0, 0, 0]) == {}


def test_consensus_is_the_mean_squared_distance_to_the_mean() -> None:
    # mean (1, 2, 0): squared distances 1 + 4, 1 + 4 and 0
    of = task([[0]] * 3, [0])
    assert measure(Consensus(), of, [0, 0, 0], [2, 4, 0], [1, 2, 0])["nodes/consensus"] == pytest.approx(10 / 3, rel=1e-7)
    assert measure(Consensus(), of, [3, 1, 2]) == {"nodes/consensus": 0}


def test_average_is_of_a_model_that_nobody_has() -> None:
    """Means of (4, 3, 0) and (0, 3, 4) say class 1, which no peer says."""
    of = task([[0]] * 2, [1, 1, 1, 0])
    found = measure(Average(), of, [4, 3, 0], [0, 3, 4])
    assert found["average/accuracy"] == 3 / 4
    assert found["average/loss"] == pytest.approx(measure(TestLoss(), of, [2, 3, 2])["test/loss"], rel=1e-6)
    assert measure(Accuracy(), of, [4, 3, 0], [0, 3, 4]) == {"test/accuracy": 1 / 8, "nodes/accuracy_worst": 0, "average/accuracy": 3 / 4}


def test_without_classes_there_is_no_accuracy() -> None:
    """1/2 |w - b|^2 of the samples 1 and 5 at w = 2 and w = 4, and at their mean 3."""
    of = quadratics([1.0, 5.0])
    found: dict[str, float] = {}
    for metric in EVERY:
        found |= metric.measure(View(of, torch.tensor([[2.0], [4.0]], dtype=torch.float64)))
    clients = {"clients/loss_mean": (0.5 + 4.5) / 2, "clients/loss_worst_10": 2.5}
    assert found == {"test/loss": (0.5 + 4.5 + 4.5 + 0.5) / 4, "nodes/consensus": 1, "average/loss": 2, "mergeability/loss": 2} | clients


def test_of_many_clients_some_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twice as many as are measured, each with one sample of class 0 or 1 in turn; a model that says 0 is right for the even ones."""
    assert tasks.SOME == views.SOME == 10_000
    for module in (tasks, views):
        monkeypatch.setattr(module, "SOME", 1_000)
    many = task([[i % 2] for i in range(2_000)], [0, 1])
    view = View(replace(many, groups={"few": range(0, 4), "most": range(4, 2_000)}), torch.tensor([logits(0)]))
    some = many.some()
    assert view.clients.tolist() == (some % 2 == 0).double().tolist()
    assert Groups().measure(view)["groups/few/accuracy"] == 0.5  # all four
    assert Clients().measure(view)["clients/accuracy_mean"] == float((some % 2 == 0).double().mean())
    peers = View(many, torch.tensor([logits(i % 2) for i in range(2_000)]))  # each says its own class
    assert peers.clients.tolist() == [1.0] * 1_000
