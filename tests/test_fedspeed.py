"""The oracles of FedSpeed: reductions, fixed points, and what the paper's rule and the authors' clip do."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tools import classification, models, quadratics, steps
from tools import quick as run

from fedsim.schedule import Buffered, Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from strategies.fedprox import FedProx
from strategies.fedsam import FedSam
from strategies.fedspeed import FedSpeed
from strategies.mofedsam import MoFedSam

ALL, TWO, HALF = Rounds(cohort=Count()), Rounds(cohort=Count(2)), Rounds(cohort=Count(3))
A = torch.tensor([1.0, 2, 4, 0.5, 3, 1.5]).double()
B = torch.tensor([[-1.0, 2], [0, 1], [3, -2], [5, 0], [-2, 1], [1, 4]]).double()
BEST = (A @ B) / A.sum()


def blobs():
    return classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)


def remembered(fed, name="dual"):
    return fed.flight.memory.rows[name][fed.flight.memory.row]


# Reductions


@pytest.mark.parametrize("off", [{"ascent": 0.0}, {"blend": 0.0}])
@pytest.mark.parametrize("schedule", [ALL, TWO], ids=["all", "two"])
def test_without_ascent_it_is_feddyn_in_bits(off, schedule):
    task, train = blobs()
    ours = run(task, FedSpeed(train=train, schedule=schedule, pull=0.3, **off), 4)
    assert torch.equal(models(ours), models(run(task, FedDyn(train=train, schedule=schedule, pull=0.3), 4)))


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        ({"ascent": 0.0, "pull": 0.4}, FedProx(pull=0.4, weights="uniform")),
        ({"ascent": 0.0, "pull": 0.0}, FedAvg(weights="uniform")),
        ({"ascent": 0.2, "pull": 0.0}, FedSam(ascent=0.2)),
        ({"ascent": 0.2, "pull": 0.0, "normalised": False}, FedSam(ascent=0.2, normalised=False)),
    ],
)
def test_the_first_round_descends_as_fedprox_fedsam_or_fedavg(settings, plain):
    # and moves the server twice as far: by the mean update, and by the mean dual
    task, train = blobs()
    ours = models(run(task, FedSpeed(train=train, schedule=ALL, **settings), 1)).diff(dim=0)
    assert torch.allclose(ours, 2 * models(run(task, replace(plain, train=train, schedule=ALL), 1)).diff(dim=0), atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"relax": 0.3}, {"blend": 0.6, "normalised": False}])
def test_with_all_there_both_rules_of_the_server_are_one(settings):
    task, train = blobs()
    every, active = (models(run(task, FedSpeed(train=train, schedule=ALL, duals=duals, **settings), 4)) for duals in ("all", "active"))
    assert torch.allclose(every, active, atol=1e-6)
    some = [models(run(task, FedSpeed(train=train, schedule=TWO, duals=duals, **settings), 4)) for duals in ("all", "active")]
    assert (some[0] - some[1]).abs().max() > 1e-3


# Fixed points


@pytest.mark.parametrize(("blend", "ascent"), [(1.0, 0.1), (0.6, 0.2)])
def test_plain_ascent_rests_where_the_weighted_gradients_cancel(blend, ascent):
    """sum (A_i + blend ascent A_i^2)(w - b_i) = 0"""
    strategy = FedSpeed(train=steps(5, 0.05), schedule=ALL, pull=2.0, ascent=ascent, blend=blend, normalised=False)
    fed = run(quadratics(B, A), strategy, 70)
    weight = A + blend * ascent * A**2
    rest = (weight @ B) / weight.sum()
    assert (rest - BEST).norm() > 0.02
    assert torch.allclose(fed.state["model"][0], rest, atol=1e-6)
    assert torch.allclose(remembered(fed), -weight[:, None] * (rest - B) / 2, atol=1e-5)


def test_normalised_ascent_rests_where_the_gradients_uphill_cancel():
    """mean grad F_i(w + ascent g_i / |g_i|) = 0, which is not the optimum."""
    fed = run(quadratics(B, A), FedSpeed(train=steps(5, 0.05), schedule=ALL, pull=2.0, ascent=0.3), 70)
    w = fed.state["model"]
    g = A[:, None] * (w - B)
    up = w + 0.3 * g / g.norm(dim=1, keepdim=True)
    assert (A[:, None] * (up - B)).mean(0).abs().max() < 1e-6
    assert (w[0] - BEST).norm() > 0.02


def test_with_some_absent_the_rule_of_all_duals_reaches_the_optimum_and_the_paper_s_stays_away():
    task, strategy = quadratics(B, A), FedSpeed(train=steps(5, 0.05), schedule=HALF, pull=5.0, ascent=0.0)
    assert (run(task, strategy, 120).state["model"][0] - BEST).norm() < 1e-5
    away = models(run(task, replace(strategy, duals="active"), 160))[80:, 0]
    assert (away - BEST).norm(dim=1).min() > 0.05


def test_identical_clients_have_identical_duals_that_add_their_updates():
    task, strategy = quadratics([[2.0, 1]] * 3, 3.0), FedSpeed(train=steps(4, 0.1), schedule=ALL)
    fed = run(task, strategy, 6)
    assert torch.equal(remembered(fed), remembered(fed)[:1].expand(3, -1))
    # x_{t+1} = x_t + Delta_t + sum of all Delta so far
    path = models(fed)[:, 0]
    total = torch.zeros(2).double()
    for before, after in pairwise(path):
        total = total + (after - before - total) / 2
    assert torch.allclose(remembered(fed)[0], total, atol=1e-12)


# Steps by hand


def test_a_step_by_hand():
    # F = 2/2 |w - (3, 4)|^2 from 0: g1 = (-6, -8), up 0.5 x (-0.6, -0.8) = (-0.3, -0.4), g2 = (-6.6, -8.8); lr 1/4: (1.65, 2.2)
    task = quadratics([[3.0, 4]], 2.0)
    strategy = FedSpeed(train=steps(lr=0.25), schedule=ALL, ascent=0.5, pull=1.0, duals="active")
    assert remembered(run(task, strategy, 1)).tolist() == [pytest.approx([1.65, 2.2])]
    # half of each: g = (-6.3, -8.4); not normalised: up (-3, -4), g2 = (-12, -16)
    assert remembered(run(task, replace(strategy, blend=0.5), 1)).tolist() == [pytest.approx([1.575, 2.1])]
    assert remembered(run(task, replace(strategy, normalised=False), 1)).tolist() == [pytest.approx([3, 4])]


def test_without_a_gradient_nothing_is_climbed():
    fed = run(quadratics([[0.0, 0]]), FedSpeed(train=steps(3, 0.1), schedule=ALL), 2)
    assert models(fed).abs().max() == 0


def test_a_relaxed_start_by_hand():
    # F = (x - 8)^2 / 2, one step of 1/2, pull 1, relax 1/2. Round 1 from 0 (last model 0): to 4, h = 4; x = 4 + 4 = 8, last 4.
    # Round 2 starts, and is held, at 8 + (8 - 4)/2 = 10: gradient 2, dual 4: 10 - (2 + 4)/2 = 7: step -3, h = 1; x = 7 + 1 = 8
    fed = run(quadratics([8.0]), FedSpeed(train=steps(lr=0.5), schedule=ALL, pull=1.0, ascent=0.0, relax=0.5), 2)
    assert models(fed)[:, 0, 0].tolist() == [0, 8, 8]
    assert (remembered(fed).item(), remembered(fed, "last").item()) == (1, 7)


def test_a_relaxed_start_has_the_same_fixed_point():
    fed = run(quadratics(B, A), FedSpeed(train=steps(5, 0.05), schedule=HALF, pull=5.0, ascent=0.0, relax=0.1), 120)
    assert (fed.state["model"][0] - BEST).norm() < 1e-5


def test_clipping_does_not_act_where_there_is_no_gradient_however_long_the_model():
    """The authors' clip contains -pull x w_t: with |w_t| > clip / pull it would shorten a force of zero."""
    task = quadratics([[300.0, 400]])
    task.init = torch.tensor([300.0, 400]).double()
    fed = run(task, FedSpeed(train=steps(5, 0.1, clip=1.0), schedule=ALL, pull=1.0), 3)
    assert torch.equal(models(fed), task.init.expand(4, 1, 2))


def test_clipping_shortens_gradient_and_dual_but_not_the_pull():
    # F = (x - 8)^2 / 2, pull 1, lr 1/2, clip 2: g = -8 is cut to -2: x = 1; then -7 cut to -2, pull 1: 1 - (-2 + 1)/2 = 1.5
    strategy = FedSpeed(train=steps(2, 0.5, clip=2.0), schedule=ALL, pull=1.0, ascent=0.0, duals="active")
    assert remembered(run(quadratics([8.0]), strategy, 1)).item() == 1.5


# Traffic, refusals


def test_what_travels():
    task, train = blobs()
    size = {
        name: (fed.down_bytes, fed.flight.up_bytes)
        for name, strategy in {
            "fedavg": FedAvg(train=train, schedule=ALL),
            "all": FedSpeed(train=train, schedule=ALL),
            "active": FedSpeed(train=train, schedule=ALL, duals="active"),
            "relaxed": FedSpeed(train=train, schedule=ALL, relax=0.1),
        }.items()
        for fed in [run(task, strategy, 0)]
    }
    assert size["all"] == size["active"] == size["fedavg"]
    assert size["relaxed"][0] == size["fedavg"][0] and size["relaxed"][1] >= size["fedavg"][1] + 4 * task.layout.size


def test_a_buffer_is_refused():
    with pytest.raises(ValueError, match="`fedspeed` works in `rounds`"):
        FedSpeed(schedule=Buffered())


def test_two_gradients_a_step_take_twice_the_time():
    assert [FedSpeed().gradients, FedSpeed(ascent=0.0).gradients, FedSpeed(blend=0.0).gradients] == [2, 1, 1]
    assert [FedSam().gradients, FedSam(ascent=0.0).gradients, MoFedSam().gradients, MoFedSam(ascent=0.0).gradients] == [2, 1, 2, 1]
