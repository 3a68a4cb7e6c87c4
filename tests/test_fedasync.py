from fractions import Fraction

import pytest
import torch
from frames import buffered
from tools import classification, durations, inbox, merges, models, quadratics, steps
from tools import quick as run

from fedsim.method.discount import ConstantDiscount, Hinge, Polynomial
from fedsim.schedule import Buffered
from strategies.fedasync import FedAsync
from strategies.fedprox import FedProx


def merged(strategy, news, model=0.0):
    return strategy.merge({"model": torch.tensor([[model]], dtype=torch.float64)}, news)["model"].item()


@pytest.mark.parametrize(
    ("discount", "factors"),
    [
        (ConstantDiscount(), {0: 1, 3: 1, 8: 1}),
        (Polynomial(), {0: 1, 3: 1 / 2, 8: 1 / 3}),
        (Polynomial(power=1), {0: 1, 3: 1 / 4, 8: 1 / 9}),
        (Hinge(), {0: 1, 4: 1, 5: 1 / 11, 6: 1 / 21}),
        (Hinge(slope=0.5, slack=1), {1: 1, 3: 1 / 2, 7: 1 / 4}),
    ],
)
def test_weight_of_a_model_by_its_age(discount, factors):
    """x <- (1 - a) x + a x_new, a = alpha s(age)"""
    strategy = FedAsync(alpha=0.6, discount=discount)
    for age, factor in factors.items():
        assert merged(strategy, inbox([0.25], age=[age], model=[12]), 2) == pytest.approx(2 + 0.6 * factor * 10, rel=1e-15)


def test_the_share_of_data_plays_no_part():
    assert merged(FedAsync(), inbox([0.01], model=[1])) == merged(FedAsync(), inbox([1.0], model=[1])) == 0.6


def test_the_weight_is_made_anew_for_each_arrival():
    # a = 0.6 / 2 each time: 0.3 x 10 = 3, then 3 + 0.3 x 7; multiplied in place it would be 3 + 0.15 x 7
    strategy, state = FedAsync(), {"model": torch.zeros(1, 1, dtype=torch.float64)}
    for expected in (3, 5.1, 6.57):
        state = strategy.merge(state, inbox([1.0], age=[3], model=[10]))
        assert state["model"].item() == pytest.approx(expected, rel=1e-15)


def test_several_arrivals_are_mixed_in_one_after_the_other():
    # halves: (0 + 1)/2 = 1/2, (1/2 + 2)/2 = 5/4, (5/4 + 4)/2 = 21/8
    half = FedAsync(alpha=0.5, discount=ConstantDiscount())
    assert merged(half, inbox([0.2, 0.3, 0.5], model=[1, 2, 4])) == 2.625
    news, ages = torch.tensor([[1.0, 5], [-2, 3], [7, 0]]).double(), [8, 0, 3]
    one, state = FedAsync(), {"model": torch.tensor([[1.0, 2]]).double()}
    whole = one.merge(dict(state), inbox([0.2, 0.3, 0.5], age=ages, model=news.tolist()))
    for model, age in zip(news, ages, strict=True):
        state = one.merge(state, inbox([1.0], age=[age], model=[model.tolist()]))
    assert torch.allclose(whole["model"], state["model"], rtol=1e-15)


def test_a_run_by_hand():
    # jobs of 1 s and 2.5 s; a job goes half of the way from where it began to the centre (1, -1); a = 1/2 / (1 + age)
    strategy = FedAsync(train=steps(lr=0.5), alpha=0.5, discount=Polynomial(power=1))
    fed = run(quadratics([1.0, -1.0]), strategy, world=durations(1, "2.5"), seconds=3)
    assert merges(fed) == [(1, [(0, 0)]), (2, [(0, 0)]), (Fraction(5, 2), [(1, 2)]), (3, [(0, 1)])]
    # at 1: (0 + 1/2)/2 = 1/4; at 2: (1/4 + 5/8)/2 = 7/16; at 2.5 the model -1/2 made from 0: 5/6 x 7/16 - 1/12 = 9/32;
    # at 3 the model (7/16 + 1)/2 = 23/32 made at 2, before the other's: 3/4 x 9/32 + 1/4 x 23/32 = 25/64
    assert models(fed)[:, 0, 0].tolist() == pytest.approx([0, 1 / 4, 7 / 16, 9 / 32, 25 / 64], rel=1e-15)


@pytest.mark.parametrize("discount", [ConstantDiscount(), Polynomial(), Hinge(slope=2, slack=1)])
@pytest.mark.parametrize("size", [1, 2])
def test_a_run_is_the_recursion_over_models_that_were_sent(discount, size):
    """Each arrival mixes in the end of a job that began from the version it was sent; a merge of two takes the senders in their order."""
    tau, b = [Fraction(4, 3), Fraction(1), Fraction(5, 2), Fraction(7, 4)], torch.tensor([1.0, -2, 4, 0.5]).double()
    fed = run(
        quadratics(b), FedAsync(train=steps(2, 0.25), schedule=Buffered(size=size), discount=discount), world=durations(*tau), seconds=20
    )
    x = [0.0]
    for _, arrived in merges(fed):
        y, now = x[-1], len(x) - 1
        for node, age in arrived:
            a = 0.6 * discount.of(torch.tensor(age).double()).item()
            y = (1 - a) * y + a * (x[now - age] + (1 - 0.75**2) * (b[node].item() - x[now - age]))
        x.append(y)
    assert merges(fed) == buffered(tau, size, 20)
    assert models(fed)[:, 0, 0].tolist() == pytest.approx(x, rel=1e-13)


def test_alone_at_full_weight_it_is_local_training_without_end():
    task, train = classification([20]), steps(4, 0.2, batch=5)
    fed = run(task, FedAsync(train=train, alpha=1), 3, world=durations(1))
    assert fed.ledger.staleness == 0
    assert torch.allclose(models(fed), models(run(task, FedProx(train=train, pull=0), 3)), atol=1e-6)


def test_the_proximal_term_is_that_of_fedprox():
    task, train = classification([20]), steps(4, 0.2, batch=5)
    fed = run(task, FedAsync(train=train, alpha=1, pull=0.7), 3, world=durations(1))
    assert torch.allclose(models(fed), models(run(task, FedProx(train=train, pull=0.7), 3)), atol=1e-6)
    assert not torch.allclose(models(fed), models(run(task, FedAsync(train=train, alpha=1), 3, world=durations(1))), atol=1e-3)
