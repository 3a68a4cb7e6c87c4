"""MIFA: the mean of everybody's last update, by hand, and what it reduces to."""

import numpy as np
import pytest
import torch
from tools import classification, federation, inbox, merges, models, quadratics, steps, table
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.schedule import Buffered, Rounds
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.values import Count, PerNode
from strategies.fedavg import FedAvg
from strategies.mifa import Mifa

ALL = Rounds(cohort=Count())


def state_of(*last, mean):
    return {
        "model": torch.tensor([[1.0]]).double(),
        "last": table(torch.tensor(last)[:, None].double()),
        "mean": torch.tensor([[mean]]).double(),
    }


def test_two_rounds_by_hand():
    """Four clients; (8, 0, 0, 0) / 4 = 2, then client 0 sends 4 and client 2 sends 6: (4 + 6) / 4 = 2.5."""
    strategy = Mifa(server_lr=0.5)
    state = strategy.start(torch.tensor([[1.0]]).double(), quadratics([0.0] * 4))
    state = strategy.merge(state, inbox([0.7], [0], update=[8.0]))
    assert state["model"].item() == 1 + 0.5 * 2
    state = strategy.merge(state, inbox([0.7, 0.1], [0, 2], update=[4.0, 6.0]))
    assert state["model"].item() == 2 + 0.5 * 2.5
    assert state["last"][torch.arange(4)][:, 0].tolist() == [4, 0, 6, 0]


def test_by_samples_shares_are_those_of_all_data():
    """(0.5 x 2 + 0.3 x 10 + 0.2 x 5) after client 1's 20 becomes 10 and client 2's 0 becomes 5."""
    state = Mifa(weights="samples").merge(state_of(2.0, 20.0, 0.0, mean=7.0), inbox([0.3, 0.2], [1, 2], update=[10.0, 5.0]))
    assert state["mean"].item() == pytest.approx(5, rel=1e-15)
    assert state["model"].item() == pytest.approx(6, rel=1e-15)


def test_an_empty_round_is_skipped_or_steps_along_what_is_remembered():
    assert Mifa().merge_nothing(state_of(2.0, 4.0, mean=3.0))["model"].item() == 1
    assert Mifa(empty="stale", server_lr=2.0).merge_nothing(state_of(2.0, 4.0, mean=3.0))["model"].item() == 7


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_with_everybody_there_it_is_fedavg(weights):
    task, train = classification([7, 11, 9, 13]), steps(3, 0.1, batch=4)
    fed = run(task, Mifa(train=train, schedule=ALL, weights=weights, server_lr=0.8), 8)
    same = run(task, FedAvg(train=train, schedule=ALL, weights=weights, server_lr=0.8), 8)
    assert torch.allclose(models(fed), models(same), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["samples", "uniform"])
def test_a_run_is_the_formula(weights):
    """An own MIFA on quadratics, whose updates are eta a_i (b_i - x); empty rounds step too."""
    a, b, size = np.array([1.0, 2, 4, 1]), np.array([1.0, -2, 0.5, 3]), np.array([1, 2, 4, 1])
    alpha = size / 8 if weights == "samples" else np.full(4, 1 / 4)
    schedule = Rounds(sampling=BernoulliSampling(PerNode((0.9, 0.5, 0.1, 0.2))))
    fed = run(quadratics(b, a, size.tolist()), Mifa(train=steps(lr=0.1), schedule=schedule, weights=weights, empty="stale"), 30)
    x, h = [0.0], np.zeros(4)
    for _, who in merges(fed):
        at = [node for node, _ in who]
        h[at] = (0.1 * a * (b - x[-1]))[at]
        x.append(x[-1] + alpha @ h)
    assert {len(who) for _, who in merges(fed)} >= {0, 1, 2}
    assert models(fed)[:, 0, 0].tolist() == pytest.approx(x, rel=1e-12)


def test_it_converges_to_the_optimum_of_all_whoever_is_rare():
    """FedAvg with the same participation stays near those who come: no probability is used, and none is needed."""
    task, train = quadratics([0.0, 0.0, 3.0]), steps(lr=0.1)
    schedule = Rounds(sampling=BernoulliSampling(PerNode((1.0, 1.0, 0.1))))
    fed = run(task, Mifa(train=train, schedule=schedule), 600)
    assert fed.state["model"].item() == pytest.approx(1, abs=1e-6)
    late = models(run(task, FedAvg(train=train, schedule=schedule, weights="uniform"), 600))[300:]
    assert late.mean().item() < 0.5


def test_it_works_under_a_buffer_where_nobody_stands_in_it_twice():
    with pytest.raises(ValueError, match="use `restart: merge`"):
        Mifa(schedule=Buffered(size=2))
    assert Mifa(schedule=Buffered(size=1)).schedule.size == 1
    with pytest.raises(SettingError, match="take no time"):
        federation(quadratics([1.0, 2]), Mifa(train=steps(), schedule=Buffered(size=2, restart="merge")), 1)
