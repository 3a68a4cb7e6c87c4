"""Metrics of torchmetrics beside scikit-learn's, from a scenario; what can't be; and a machine without the package."""

import sys
from pathlib import Path

import numpy as np
import pytest
from launch import TEXT, write
from sklearn import metrics as sklearn

from fedsim.base.errors import SettingError
from fedsim.data.own import OwnSource
from fedsim.data.partition import Iid
from fedsim.method.strategy import Strategy
from fedsim.metrics.packaged import Torchmetrics
from fedsim.metrics.view import View
from fedsim.models import Logistic
from fedsim.scenario import load
from fedsim.task.build import build_task
from fedsim.task.losses import BinaryCrossEntropy
from fedsim.task.settings import TaskSettings

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
THREE, TWO, NUMBERS = RNG.integers(0, 3, 60), RNG.integers(0, 2, 60), RNG.normal(size=60).astype(np.float32)
LABELS = RNG.integers(0, 2, (60, 3)).astype(np.float32)


def measured(y, metric, loss=None, **settings):
    data = {"x": X, "y": y, "x_test": X, "y_test": y}
    task = build_task(TaskSettings(OwnSource(lambda: data), Iid(2), Logistic(), loss=loss), 0, {}, Path())
    one = Torchmetrics(metric, settings)
    one.check(task, Strategy(), "evaluate.metrics.1")
    view = View(task, task.init[None], slab=7)
    return one.measure(view), view.test_outputs()[0]


def test_they_are_scikit_learns():
    pytest.importorskip("torchmetrics")
    found, outputs = measured(THREE, "MulticlassCohenKappa", weights="linear")
    said = outputs.argmax(1).numpy()
    assert found == pytest.approx({"test/multiclass_cohen_kappa": sklearn.cohen_kappa_score(THREE, said, weights="linear")}, abs=1e-6)
    found, _ = measured(THREE, "MulticlassRecall", average="none")
    each = sklearn.recall_score(THREE, said, average=None)
    assert found == pytest.approx({f"test/multiclass_recall/{place}": each[place] for place in range(3)}, abs=1e-6)
    found, outputs = measured(TWO, "BinaryAUROC")
    assert found == pytest.approx({"test/binary_auroc": sklearn.roc_auc_score(TWO, outputs.softmax(1)[:, 1])}, abs=1e-6)
    found, outputs = measured(LABELS, "MultilabelHammingDistance", BinaryCrossEntropy())
    assert found == pytest.approx({"test/multilabel_hamming_distance": sklearn.hamming_loss(LABELS, outputs > 0)}, abs=1e-6)
    found, outputs = measured(NUMBERS, "MeanAbsolutePercentageError")
    due = sklearn.mean_absolute_percentage_error(NUMBERS, outputs[:, 0])
    assert found == pytest.approx({"test/mean_absolute_percentage_error": due}, rel=1e-4)


@pytest.mark.parametrize(
    ("y", "metric", "settings", "text"),
    [
        (
            THREE,
            "MultiClassCohenKapa",
            {},
            r"metrics\.1\.metric: .* have no metric `MultiClassCohenKapa`; did you mean `MulticlassCohenKappa`",
        ),
        (THREE, "CohenKappa", {}, "did you mean .*`MulticlassCohenKappa`"),
        (THREE, "Metric", {}, "have no metric `Metric`"),
        (THREE, "BinaryAUROC", {}, "BinaryAUROC is of two classes, and the targets are classes under cross_entropy"),
        (THREE, "R2Score", {}, "R2Score is of numbers, and the targets are classes"),
        (NUMBERS, "MulticlassF1Score", {}, "MulticlassF1Score is of classes, and the targets are numbers"),
        (
            THREE,
            "MulticlassF1Score",
            {"weight": 1},
            r"metrics\.1\.settings\.weight: MulticlassF1Score has no argument `weight` \(it has: top_k,",
        ),
        (THREE, "MulticlassF1Score", {"average": "most"}, r"metrics\.1\.settings: MulticlassF1Score refuses them: .*average"),
    ],
)
def test_what_can_not_be(y, metric, settings, text):
    pytest.importorskip("torchmetrics")
    with pytest.raises(SettingError, match=text):
        measured(y, metric, **settings)


def test_without_the_package_the_error_says_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "torchmetrics.classification", raising=False)
    with pytest.raises(SettingError, match=r"evaluate\.metrics\.1: `R2Score` is of torchmetrics, .*: python -m pip install torchmetrics"):
        measured(NUMBERS, "R2Score")


def test_a_scenario_names_one_by_its_place(folder):
    """Both spellings are the same part; nothing of the package is run for that."""
    place = "torchmetrics.classification:MulticlassCohenKappa"
    for text, settings in (
        (f'["{place}"]', {}),
        (f'[{{name: "{place}", settings: {{weights: linear}}, every: 2 rounds}}]', {"weights": "linear"}),
        (
            "[{name: torchmetrics, metric: MulticlassCohenKappa, settings: {weights: linear, ignore_index: 2}}]",
            {"weights": "linear", "ignore_index": 2},
        ),
    ):
        [loaded] = load(write(folder, f"{TEXT}evaluate: {{metrics: {text}}}\n"))
        [metric] = loaded.scenario.evaluate.metrics
        assert (metric.metric, dict(metric.settings)) == ("MulticlassCohenKappa", settings)
        assert {metric: 1}[metric] == 1
