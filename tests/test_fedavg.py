from dataclasses import replace

import pytest
import torch
from tools import classification, inbox, merges, models, quadratics, steps
from tools import quick as run
from torch import nn
from torch.func import functional_call

from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg

ALL = Rounds(cohort=Count())


def merged(strategy, news, model=0.0):
    return strategy.merge({"model": torch.tensor([[model]], dtype=torch.float64)}, news)["model"].item()


def test_the_mean_is_by_samples_among_those_who_came_or_uniform():
    news = inbox([0.375, 0.125], update=[1, 5])
    assert merged(FedAvg(), news) == 2  # (3 x 1 + 1 x 5) / 4
    assert merged(FedAvg(weights="uniform"), news) == 3
    assert merged(FedAvg(server_lr=0.5), news, 10) == 11


def test_a_round_by_hand():
    # lr 1/2 from 0: clients go to half of their centre, their mean is half of the mean centre
    task = quadratics([[1, 0], [0, 2], [5, 4]])
    assert run(task, FedAvg(train=steps(lr=0.5), schedule=ALL), 1).state["model"][0].tolist() == pytest.approx([1, 1])
    # samples 1, 1, 2: (1 + 0 + 2 x 5) / 4 / 2, (0 + 2 + 2 x 4) / 4 / 2
    task = quadratics([[1, 0], [0, 2], [5, 4]], samples=[1, 1, 2])
    fed = run(task, FedAvg(train=steps(lr=0.5), schedule=ALL), 1)
    assert fed.state["model"].tolist() == [[1.375, 1.25]]


def test_only_the_cohort_counts():
    b = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    fed = run(quadratics(b, samples=[1, 2, 3, 4]), FedAvg(train=steps(lr=0.5), schedule=Rounds(cohort=Count(2))), 6)
    x, p = 0.0, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    for model, (_, who) in zip(models(fed)[1:, 0, 0].tolist(), merges(fed), strict=True):
        at = [node for node, _ in who]
        assert len(at) == 2
        x += float((p[at] * (b[at] - x) / 2).sum() / p[at].sum())
        assert model == pytest.approx(x, abs=1e-15)


@pytest.mark.parametrize("weights", ["samples", "uniform"])
@pytest.mark.parametrize("server_lr", [1.0, 0.5])
def test_fixed_point_of_many_steps_on_unequal_curvatures(weights, server_lr):
    """sum p_i (1 - (1 - eta a_i)^K) (b_i - x) = 0, reached at the rate 1 - server_lr sum p_i (1 - (1 - eta a_i)^K)."""
    a, b, samples = torch.tensor([1.0, 2, 4]).double(), torch.tensor([-1.0, 0, 3]).double(), torch.tensor([1.0, 2, 5]).double()
    p = samples / samples.sum() if weights == "samples" else torch.ones(3).double() / 3
    pull = p * (1 - (1 - 0.1 * a) ** 7)
    strategy = FedAvg(train=steps(7, 0.1), schedule=ALL, weights=weights, server_lr=server_lr)
    x = models(run(quadratics(b, a, samples.int().tolist()), strategy, 90))[:, 0, 0]
    fixed = (pull * b).sum() / pull.sum()
    assert abs((p * a * b).sum() / (p * a).sum() - fixed) > 0.1  # which is not the optimum
    assert x[-1].item() == pytest.approx(fixed.item(), abs=1e-13)
    assert torch.allclose(x[1:9] - fixed, (1 - server_lr * pull.sum()) * (x[:8] - fixed), rtol=1e-10, atol=1e-14)


def pooled_descent(task, count, **settings):
    """torch's own SGD on all samples at once."""
    params = {name: nn.Parameter(view.clone()) for name, view in task.layout.views(task.init).items()}
    inputs, targets = task.inputs[task.samples], task.targets[task.samples]
    optimizer = torch.optim.SGD(params.values(), **settings)
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(functional_call(task.model, params, (inputs,)), targets).backward()
        optimizer.step()
    return task.layout.join({name: value.detach() for name, value in params.items()})


def test_one_step_by_samples_is_gradient_descent_on_all_data():
    task = classification([5, 9, 14])
    fed = run(task, FedAvg(train=steps(1, 0.5), schedule=ALL), 8)
    assert torch.allclose(fed.state["model"][0], pooled_descent(task, 8, lr=0.5), atol=1e-6)


def test_one_client_is_plain_sgd():
    task = classification([20])
    settings = {"lr": 0.2, "momentum": 0.9, "weight_decay": 0.01}
    fed = run(task, FedAvg(train=steps(6, **settings), schedule=ALL), 1)
    assert torch.allclose(fed.state["model"][0], pooled_descent(task, 6, **settings), atol=1e-6)


def test_who_is_asked_and_the_batches_do_not_depend_on_the_method():
    task, train = classification([7, 11, 9, 13]), steps(3, 0.1, batch=4)
    first = FedAvg(train=train, schedule=Rounds(cohort=Count(2)))
    feds = [run(task, strategy, 4) for strategy in (first, replace(first, server_lr=0.3))]
    assert merges(feds[0]) == merges(feds[1])
    steps_of_first_round = [models(fed)[1] - models(fed)[0] for fed in feds]
    assert torch.allclose(0.3 * steps_of_first_round[0], steps_of_first_round[1], atol=1e-6)
