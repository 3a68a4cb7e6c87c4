"""Robust accuracy: exact on linear models, the same at every evaluation, and no weaker an attack than a library's own."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import classification, quadratics, run, steps
from torch import Tensor, nn

from fedsim.base.keys import fold, permutation
from fedsim.data.partition import Iid
from fedsim.data.sources import Digits
from fedsim.method.attacks import Attack, Fgsm, Pgd
from fedsim.metrics.metrics import Accuracy, Robust, TestLoss
from fedsim.metrics.view import View
from fedsim.models import Mlp
from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from fedsim.task.build import build_task
from fedsim.task.settings import TaskSettings
from fedsim.task.task import Task
from strategies.adversarial import Adversarial
from strategies.fedavg import FedAvg


def measured(view: View, attack: Attack, **settings: Any) -> tuple[float, float]:
    found = Robust(attack, **settings).measure(view)
    return found["test/robust_accuracy"], found["test/robust_loss"]


def test_on_a_linear_model_it_is_the_exact_worst_case() -> None:
    task = classification([20], classes=2)
    x, y = task.test_inputs, 2.0 * task.test_targets - 1
    views = task.layout.views(task.init)
    w, b = views["weight"][1] - views["weight"][0], views["bias"][1] - views["bias"][0]
    last = 1.0
    for rho in (0.0, 0.1, 0.3, 0.7):
        margin = y * (x @ w + b) - rho * w.abs().sum()
        for attack in (Fgsm(radius=rho), Pgd(radius=rho, steps=20)):
            accuracy, loss = measured(View(task, task.init[None]), attack)
            assert accuracy == float((margin > 0).double().mean()) <= last
            assert loss == pytest.approx(float(nn.functional.softplus(-margin).double().mean()), rel=1e-5)
        last = accuracy
    assert last < 0.5


def test_radius_0_is_accuracy_and_loss_of_some_samples_by_lot_and_peers_are_averaged() -> None:
    task = classification([20])
    models = torch.stack([task.init, -task.init, 0 * task.init])
    view = View(task, models)
    accuracy, loss = measured(view, Pgd(radius=0))
    assert accuracy == Accuracy().measure(view)["test/accuracy"]
    assert loss == pytest.approx(TestLoss().measure(view)["test/loss"], rel=1e-6)
    some = permutation(fold(0, "robust"), 50)[:7]
    assert measured(view, Pgd(radius=0), samples=7)[0] == pytest.approx(float(view.tests[1][:, some].mean()))
    each = [measured(View(task, one[None]), Pgd(radius=0.2))[0] for one in models]
    assert measured(view, Pgd(radius=0.2))[0] == pytest.approx(sum(each) / 3)


def test_it_is_the_same_every_time_and_has_a_name_of_its_own() -> None:
    task = classification([20])
    view, metric = View(task, task.init[None]), Robust(Pgd("l2", 0.3, steps=2), label="weak")
    assert metric.measure(view) == metric.measure(View(task, task.init[None], round=7))
    assert set(metric.measure(view)) == {"test/robust_accuracy_weak", "test/robust_loss_weak"}
    one = quadratics([1.0, 5.0])  # no classes: the loss alone; at w = 2 the centres 1 and 5 move away by 1/2
    found = Robust(Fgsm("linf", 0.5), label="").measure(View(one, torch.tensor([[2.0]], dtype=torch.float64)))
    assert set(found) == {"test/robust_loss"}


@pytest.fixture(scope="module")
def digits() -> Task:
    return build_task(TaskSettings(data=Digits(), partition=Iid(nodes=4), model=Mlp(hidden=(32,))), 0, {}, Path())


@pytest.fixture(scope="module")
def trained(digits: Task) -> dict[str, Tensor]:
    """A plain and an adversarially trained model of the digits, [1, d] each."""
    settings: dict[str, Any] = {"schedule": Rounds(Count()), "train": steps(30, 0.4, batch=32)}
    methods = {"fedavg": FedAvg(**settings), "adversarial": Adversarial(**settings, attack=Pgd(radius=0.15, steps=5))}
    return {name: run(digits, method, 8).state["model"] for name, method in methods.items()}


def test_adversarial_training_makes_models_robust(digits: Task, trained: dict[str, Tensor]) -> None:
    plain, robust = (measured(View(digits, trained[name]), Pgd(radius=0.15, steps=20)) for name in ("fedavg", "adversarial"))
    assert robust[0] > plain[0] + 0.2 and robust[1] < plain[1]


def test_more_steps_and_a_greater_radius_never_leave_more_right(digits: Task, trained: dict[str, Tensor]) -> None:
    view, attack = View(digits, trained["fedavg"]), Pgd(radius=0.1, step=0.02, random_start=False, keep="best")
    losses = [measured(view, replace(attack, steps=count))[1] for count in range(0, 12, 2)]
    assert losses == sorted(losses)
    shares = [measured(view, replace(attack, radius=radius, step=radius / 4))[0] for radius in (0.02, 0.05, 0.1, 0.2, 0.4)]
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0


@contextmanager
def library() -> Iterator[Any]:
    """ART with the digits' model behind it, its warnings about itself left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import art.attacks.evasion
        import art.estimators.classification

        yield art


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fedavg", "adversarial"])
def test_no_weaker_than_the_attacks_of_art(digits: Task, trained: dict[str, Tensor], name: str, norm: Any) -> None:
    """The Adversarial Robustness Toolbox's PGD with the same radius, steps and starts, and AutoPGD, on the same model and samples."""
    radius = {"linf": 0.08, "l2": 0.4}[norm]
    module = Mlp(hidden=(32,)).build((1, 8, 8), 10)
    nn.utils.vector_to_parameters(trained[name][0], module.parameters())
    x, y = digits.test_inputs.numpy(), digits.test_targets.numpy()
    view = View(digits, trained[name])
    ours = measured(view, Pgd(norm, radius, steps=20, step=radius / 8, restarts=2))[0]
    strong = measured(view, Pgd(norm, radius, steps=60, restarts=4, keep="best"))[0]
    with library() as art:
        model = art.estimators.classification.PyTorchClassifier(
            module, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        given = {"norm": {"linf": np.inf, "l2": 2}[norm], "eps": radius, "eps_step": radius / 8, "max_iter": 20, "verbose": False}
        np.random.seed(0)
        attacks = [
            art.attacks.evasion.ProjectedGradientDescentPyTorch(model, num_random_init=2, **given),
            art.attacks.evasion.AutoProjectedGradientDescent(model, nb_random_init=2, **given | {"eps_step": 2 * radius}),
        ]
        theirs = [float((model.predict(attack.generate(x, y)).argmax(1) == y).mean()) for attack in attacks]
    clean = float((model.predict(x).argmax(1) == y).mean())
    assert len(y) <= 500 and ours < clean - 0.1
    assert abs(ours - theirs[0]) <= 0.01 and strong <= min(theirs) + 0.01
