"""Token numbers, next tokens and texts of unequal length as tasks; losses and scores count only places that have a target."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.data.arrays import Arrays
from fedsim.data.own import OwnSource
from fedsim.data.partition import Dirichlet, Iid, Natural
from fedsim.data.source import Source
from fedsim.metrics.metrics import Accuracy, Clients, TestLoss
from fedsim.metrics.view import View
from fedsim.models import Mlp
from fedsim.models.own import OwnModel
from fedsim.models.sequence import CharLstm, Transformer
from fedsim.task.build import build_task
from fedsim.task.loss import CrossEntropy
from fedsim.task.settings import TaskSettings
from fedsim.task.task import decoded

X = np.array([[1, 2, 3, 4], [2, 3, 0, 0], [4, 4, 1, 0], [3, 1, 2, 3], [1, 1, 1, 1]] * 4)
NEXT = np.array([[2, 3, 4, 1], [3, -1, -1, -1], [4, 1, -1, -1], [1, 2, 3, -1], [1, 1, 1, -1]] * 4)
CLASS = np.array([0, 1, 1, 0, 2] * 4)
SMALL = CharLstm(embedding=2, hidden=3, layers=1)


class Given(Source):
    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def load(self, base: Path) -> Arrays:
        return self.arrays


def task_of(y: Any = NEXT, model: Any = SMALL, partition: Any = None, **changes: Any) -> Any:
    arrays = replace(Arrays(X, y, X[:5], y[:5], vocabulary=6), **changes)
    return build_task(TaskSettings(data=Given(arrays), partition=partition or Iid(2), model=model, loss=None), 0, {}, Path())


def test_next_tokens_are_a_task() -> None:
    task = task_of()
    assert (task.classes, task.places, task.labelled) == (6, 4, False)
    assert task.inputs.dtype == torch.int16 and decoded(task.inputs).dtype == torch.int64
    assert decoded(task.inputs).tolist() == X.tolist() and task.targets.tolist() == NEXT.tolist()
    assert task.model(decoded(task.inputs)).shape == (20, 4, 6)
    assert task.label_counts().shape == (2, 0)
    assert task_of(vocabulary=1 << 15).inputs.dtype == torch.int32


def test_classes_of_texts_are_a_task() -> None:
    task = task_of(CLASS, partition=Dirichlet(1.0, 2))
    assert (task.classes, task.places, task.labelled) == (3, 1, True)
    assert task.model(decoded(task.inputs)).shape == (20, 3)
    assert task.label_counts().sum(0).tolist() == [8, 8, 4]


def test_without_a_word_from_the_source_the_model_decides() -> None:
    assert task_of(vocabulary=0).classes == 5  # the greatest number, and 0
    assert task_of(vocabulary=0, model=Transformer(width=4, heads=1)).model.tokens.num_embeddings == 5
    numbers = task_of(CLASS, Mlp(hidden=()), vocabulary=0)
    assert numbers.inputs.dtype == torch.float32 and numbers.model(numbers.inputs).shape == (20, 3)


class Bag(nn.Module):
    """Knows its vocabulary itself."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.embedding(x).mean(1))
        return out


class Asking(Bag):
    def __init__(self, vocabulary: int, outputs: int) -> None:
        super().__init__(outputs)
        self.embedding = nn.Embedding(vocabulary, 4)


def test_own_models_that_embed_are_given_whole_numbers() -> None:
    task = task_of(CLASS, OwnModel(Bag), vocabulary=0)
    assert task.inputs.dtype == torch.int64 and task.test_inputs.tolist() == X[:5].tolist()
    assert task_of(CLASS, OwnModel(Asking), vocabulary=0).model.embedding.num_embeddings == 5
    assert task_of(CLASS, OwnModel(Asking)).model.embedding.num_embeddings == 6
    source = OwnSource(lambda: {"x": X, "y": NEXT, "speaker": np.arange(20) % 3})
    task = build_task(TaskSettings(data=source, partition=Natural("speaker"), model=SMALL, loss=None), 0, {}, Path())
    assert (task.nodes, len(task.test_inputs), task.classes) == (3, 4, 5)


def test_losses_and_scores_of_sequences_by_hand() -> None:
    outputs = torch.zeros(3, 2, 4)
    outputs[0, 0, 1] = torch.tensor(3.0).log()  # 3 of 6
    targets = torch.tensor([[1, 2], [3, -1], [-1, -1]])
    expected = torch.tensor([(np.log(2) + np.log(4)) / 2, np.log(4), 0], dtype=torch.float32)
    torch.testing.assert_close(CrossEntropy()(outputs, targets), expected)
    correct = CrossEntropy().correct(outputs, torch.tensor([[1, 2], [0, -1], [-1, -1]]))
    assert correct is not None and correct.tolist() == [0.5, 1.0, 0.0]


def test_metrics_of_next_tokens() -> None:
    task = task_of()
    view = View(task, task.init[None], slab=8)
    outputs = task.model(decoded(task.test_inputs))
    mean = [
        nn.functional.cross_entropy(one, target, ignore_index=-1).item() for one, target in zip(outputs, task.test_targets, strict=True)
    ]
    assert TestLoss().measure(view)["test/loss"] == pytest.approx(np.mean(mean), rel=1e-6)
    right = ((outputs.argmax(-1) == task.test_targets).sum(1) / (task.test_targets >= 0).sum(1)).mean()
    assert Accuracy().measure(view)["test/accuracy"] == pytest.approx(float(right))
    assert all(np.isnan(value) for value in Clients().measure(view).values())
    owned = task_of(keys={"who": np.arange(20) % 2}, test_keys={"who": np.array([0, 0, 1, 1, 1])}, partition=Natural("who"))
    found = View(owned, owned.init[None])
    assert found.clients.tolist() == pytest.approx([found.tests[1][0, :2].mean().item(), found.tests[1][0, 2:].mean().item()])


def test_dropout_is_off_in_evaluation_and_modes_come_back() -> None:
    task = task_of(model=CharLstm(embedding=2, hidden=3, dropout=0.5))
    assert View(task, task.init[None]).tests[0].tolist() == View(task, task.init[None]).tests[0].tolist()
    assert all(part.training for part in task.model.modules())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"x": np.where(X == 4, 9, X)}, r"task.data: x holds 9 in row 0 \(the first row is 0\); token numbers are 0 to 5"),
        ({"x": X * 1.0, "y": CLASS, "y_test": CLASS[:5]}, r"task.data: x is to hold token numbers in two axes, not float64"),
        ({"x_test": -X[:5]}, "task.data: x_test holds -1 in row 0"),
        ({"y": np.where(NEXT == 4, 6, NEXT)}, "task.data: y holds 6 in row 0 .*; token numbers are -1 to 5"),
        ({"y": np.where(np.arange(20)[:, None] == 3, -1, NEXT)}, "task.data: y has no target in row 3"),
        ({"y_test": NEXT[:5, :3]}, r"task.data: y_test has shape \[5, 3\], its samples \[5, 4\]"),
        ({"model": Mlp()}, "task.model: samples of numbers are needed, not of token numbers"),
        ({"partition": Dirichlet(1.0, 2)}, "task.partition: dirichlet splits by class, and a sample of this task has one at each"),
        ({"model": OwnModel(Bag)}, r"task.model: .*Bag gives \[2, 6\] for 2 samples, but 6 outputs at each place are needed"),
        ({"x": X * 1.0, "y": CLASS, "y_test": CLASS[:5], "vocabulary": 0}, r"char_lstm takes token numbers, .*; x holds float64 of shape"),
    ],
)
def test_what_is_no_such_task_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        task_of(**changes)
