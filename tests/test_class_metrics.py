"""F1, precision, recall, AUC, confusion, calibration, exact match, MAE, RMSE, R2: by hand, and as scikit-learn has them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from test_metrics import Says, logits, task

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout
from fedsim.method.strategy import Strategy
from fedsim.metrics.classes import F1, Auc, Calibration, Confusion, ExactMatch, OfClasses, Precision, Recall, areas
from fedsim.metrics.clients import PerClient
from fedsim.metrics.metrics import Clients, Groups, Metric
from fedsim.metrics.regression import R2, Mae, OfNumbers, Rmse
from fedsim.metrics.view import View
from fedsim.task.loss import Logistic, Loss, SquaredError
from fedsim.task.losses import BinaryCrossEntropy
from fedsim.task.task import Task


def of(targets: Any, outputs: Any, loss: Loss | None = None, owner: Any = None) -> View:
    """A view of one model whose outputs on the test samples are these."""
    y, x = torch.as_tensor(targets), torch.as_tensor(outputs, dtype=torch.float32)
    model = Says()
    model.w = torch.nn.Parameter(torch.zeros(x.shape[1]))
    whose, classes = None if owner is None else torch.tensor(owner), 0 if y.is_floating_point() else int(y.max()) + 1
    nodes = torch.arange(3 if owner is None else max(owner) + 2)
    data = (torch.zeros(2, x.shape[1]), y[:2], nodes[:-1] * 0, nodes, x, y, whose, model, Layout.of(model), torch.zeros(x.shape[1]))
    made = Task(*data, loss or (SquaredError() if y.is_floating_point() else task([[0]], [0]).loss), classes)
    return View(made, torch.zeros(1, x.shape[1]))


# Said 0 1 1 0 2 0 of 0 0 1 1 2 2: found 1 1 1, said 3 2 1, there 2 2 2
TRUE, SAID = [0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 2, 0]
THREE = 5.0 * np.eye(3)[SAID]


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (F1(), (2 / 5 + 2 / 4 + 2 / 3) / 3),
        (Precision(), (1 / 3 + 1 / 2 + 1) / 3),
        (Recall(), 1 / 2),
        (F1(average="micro"), 1 / 2),
        (Precision(average="weighted"), (1 / 3 + 1 / 2 + 1) / 3),
    ],
)
def test_by_hand(metric: Metric, expected: float) -> None:
    [value] = metric.measure(of(TRUE, THREE)).values()
    assert value == pytest.approx(expected, rel=1e-15)


def random_case(seed: int, classes: int, rows: int = 60) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    return draw.integers(0, classes, rows), np.round(draw.normal(size=(rows, classes)), 1)  # rounded, so that some are equal


AVERAGES = [(classes, average) for classes in (2, 5, 40) for average in ("macro", "micro", "weighted")]


@pytest.mark.parametrize(("classes", "average"), [*AVERAGES, (2, "binary")])
def test_as_scikit_learn_has_them(classes: int, average: Any) -> None:
    y, outputs = random_case(classes, classes, 60 if classes < 40 else 45)
    y[:1] = classes - 1
    view = of(y, outputs)
    for metric, theirs in ((F1, sk.f1_score), (Precision, sk.precision_score), (Recall, sk.recall_score)):
        expected = theirs(y, view.test_outputs()[0].argmax(1).numpy(), average=average, zero_division=0)
        assert metric(average=average).measure(view) == {f"test/{metric.name}_{average}": pytest.approx(expected, rel=1e-12)}


@pytest.mark.parametrize("classes", [2, 4])
def test_auc_and_calibration_as_scikit_learn_has_them(classes: int) -> None:
    y, outputs = random_case(classes, classes)
    chances = torch.tensor(outputs, dtype=torch.float32).double().softmax(1).numpy()
    expected = sk.roc_auc_score(y, chances[:, 1]) if classes == 2 else sk.roc_auc_score(y, chances, multi_class="ovr")
    assert Auc().measure(of(y, outputs)) == {"test/auc": pytest.approx(expected, rel=1e-12)}
    brier = np.square(chances - np.eye(classes)[y]).sum(1).mean()
    assert Calibration().measure(of(y, outputs))["test/brier"] == pytest.approx(brier, rel=1e-12)


def test_auc_by_hand() -> None:
    """Of six pairs the positive is greater in three and equal in one; a class that is all there is has none."""
    values, positive = torch.tensor([[0.1], [0.4], [0.4], [0.8], [0.3]]), torch.tensor([[True], [False], [True], [False], [False]])
    assert areas(values.double(), positive).tolist() == [(0 + 1 + 0.5) / 6]
    assert areas(values.double(), positive | True).isnan().all()


def test_calibration_by_hand() -> None:
    """Two said at 3/4, one rightly, and two at 1/4 of class 1, that is at 3/4 of class 0, both rightly: all in one bin."""
    odds = float(np.log(3))
    view = of([1, 0, 0, 0], [[odds], [odds], [-odds], [-odds]], Logistic())
    view.task.classes = 2
    found = Calibration().measure(view)
    assert found["test/calibration_error"] == pytest.approx(0, abs=1e-7)  # 3/4 right at 3/4
    assert found["test/brier"] == pytest.approx(2 * (3 / 16 + 9 / 16) / 4, rel=1e-6)
    assert F1(average="binary").measure(view) == {"test/f1_binary": 2 / 3}
    assert Auc().measure(view) == {"test/auc": pytest.approx((2 + 0.5) / 3)}


def test_confusion_is_left_as_an_array() -> None:
    view = of(TRUE, THREE)
    assert Confusion().measure(view) == {}
    assert view.arrays["confusion"]["counts"].tolist() == sk.confusion_matrix(TRUE, SAID).tolist() == [[1, 1, 0], [1, 1, 0], [1, 0, 1]]
    assert view.arrays["confusion"]["names"].tolist() == ["0", "1", "2"]


def test_peers_count_by_their_mean() -> None:
    """One says class 0 alone (F1 2/3, 0), the other class 1."""
    two = View(task([[0]] * 2, [0, 0, 1, 1]), torch.tensor([logits(0), logits(1)]))
    assert F1().measure(two) == {"test/f1_macro": pytest.approx(1 / 3)}
    Confusion().measure(two)
    assert two.arrays["confusion"]["counts"].tolist() == [[2, 2, 0], [2, 2, 0], [0, 0, 0]]


def test_labels_as_scikit_learn_has_them() -> None:
    draw = np.random.default_rng(0)
    y, outputs = (draw.random((50, 4)) < [0.5, 0.3, 0.1, 0.0]).astype(np.float32), draw.normal(size=(50, 4))
    view, said = of(y, outputs, BinaryCrossEntropy()), outputs > 0
    expected = {"test/f1_macro": sk.f1_score(y, said, average="macro", zero_division=0), "test/exact_match": sk.accuracy_score(y, said)}
    expected |= {"test/auc": sk.roc_auc_score(y[:, :3], outputs[:, :3], average="macro")}  # nobody has the fourth
    found = F1().measure(view) | ExactMatch().measure(view) | Auc().measure(view)
    assert found == pytest.approx(expected, rel=1e-12)
    losses = view.tests[0].mean()
    chances = torch.tensor(outputs).sigmoid().numpy()
    assert float(losses) == pytest.approx(np.mean([sk.log_loss(y[:, c], chances[:, c], labels=[0, 1]) for c in range(4)]), rel=1e-6)


def test_numbers_as_scikit_learn_has_them() -> None:
    draw = np.random.default_rng(1)
    y, outputs = (draw.normal(size=(30, 2)).astype(np.float32) for _ in range(2))
    found = Mae().measure(of(y, outputs)) | Rmse().measure(of(y, outputs)) | R2().measure(of(y, outputs))
    theirs = {"mae": sk.mean_absolute_error, "rmse": sk.root_mean_squared_error, "r2": sk.r2_score}
    assert found == {f"test/{name}": pytest.approx(measure(y, outputs), rel=1e-6) for name, measure in theirs.items()}


def test_numbers_by_hand() -> None:
    view = of([1.0, 2.0, 3.0, 6.0], [[1.0], [2.0], [5.0], [4.0]])  # errors 0, 0, 2, -2; around the mean 3: 4 + 1 + 0 + 9
    assert Mae().measure(view) | Rmse().measure(view) == {"test/mae": 1.0, "test/rmse": pytest.approx(2**0.5)}
    assert R2().measure(view) == {"test/r2": pytest.approx(1 - 8 / 14)}
    assert np.isnan(R2().measure(of([2.0, 2.0], [[1.0], [2.0]]))["test/r2"])


def test_clients_and_groups_of_a_regression() -> None:
    """Squared errors 0, 0, 4, 4 of the clients 0, 1, 1 and 3; client 2 has no test sample."""
    view = of([1.0, 2.0, 3.0, 6.0], [[1.0], [2.0], [5.0], [4.0]], owner=[0, 1, 1, 3])
    view.task.groups = {"first": range(2), "rest": range(2, 4)}
    assert Clients().measure(view) == {"clients/loss_mean": 2.0, "clients/loss_worst_10": 4.0}
    assert Groups().measure(view) == {"groups/first/loss": 1.0, "groups/rest/loss": 4.0}
    assert PerClient().measure(view) == {}
    kept = view.arrays["per_client"]
    assert kept["loss"][[0, 1, 3]].tolist() == [0, 2, 4] and np.isnan([kept["loss"][2], *kept["accuracy"]]).all()
    assert Clients().measure(of([1.0, 2.0], [[1.0], [2.0]])) == {}  # one model, and no client's own test samples


def test_the_loss_of_a_client_is_that_of_its_mix_of_labels() -> None:
    """Log of 3 classes whatever the label where nothing tells them apart; the accuracy is its share of class 0."""
    view = View(task([[0], [1, 1, 0]], [0, 1, 2]), torch.zeros(1, 3))
    PerClient().measure(view)
    assert view.arrays["per_client"]["loss"] == pytest.approx([np.log(3)] * 2)
    assert view.arrays["per_client"]["accuracy"] == pytest.approx([1, 1 / 3])


@pytest.mark.parametrize(
    ("metric", "view", "said"),
    [
        (F1(), of([1.0, 2.0], [[1.0], [2.0]]), "f1 is of classes or labels, and the targets are numbers under squared_error; `mae`"),
        (Confusion(), of([[1.0], [0.0]], [[1.0], [2.0]], BinaryCrossEntropy()), "is of classes, and the targets are labels under"),
        (ExactMatch(), of(TRUE, THREE), "is of labels (`task.loss: binary_cross_entropy`), and the targets are 3 classes"),
        (R2(), of(TRUE, THREE), "r2 is of numbers, and the targets are 3 classes under cross_entropy; `f1` measures such"),
        (F1(average="binary"), of(TRUE, THREE), "`binary` is of two classes, and the targets are 3 classes"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(metric: OfClasses | OfNumbers, view: View, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        metric.check(view.task, Strategy(), "evaluate.metrics.0")
    assert caught.value.key.startswith("evaluate.metrics.0") and said in caught.value.message


def test_own_metrics_get_the_models_that_clients_use() -> None:
    peers = View(task([[0]] * 3, [0]), torch.eye(3)[:2], nodes=torch.tensor([2, 0]))
    models, buffers = peers.models_of(torch.tensor([0, 1, 2]))
    assert models[[0, 2]].tolist() == torch.eye(3)[[1, 0]].tolist() and models[1].isnan().all() and buffers.shape == (3, 0)
    server = View(task([[0]] * 3, [0]), torch.ones(1, 3))
    assert server.models_of(torch.tensor([1, 2]))[0].tolist() == torch.ones(2, 3).tolist()
    kept = View(server.task, server.models, personal=lambda nodes: (nodes[:, None] * torch.ones(1, 3), torch.zeros(len(nodes), 0)))
    assert kept.models_of(torch.tensor([1, 2]))[0].tolist() == [[1] * 3, [2] * 3]
    assert replace(server.task).loss.predicted(kept.test_outputs()[0]).tolist() == [0]
