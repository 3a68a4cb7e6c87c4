"""What FedFix's schemes converge to: quadratics of 10 clients whose jobs take 1 s to 0.2 s (F-80)."""

import math
from fractions import Fraction

import numpy as np
import pytest
from frames import jobs
from tools import federation, models, quadratics, run, spread, steps

from fedsim.method.discount import Polynomial
from fedsim.schedule import Buffered, Rounds, Ticks
from fedsim.settings.values import Count
from strategies.fedfix import FedFix

ALL, ASYNC = Rounds(cohort=Count()), Buffered(size=1)
FIFTH, HALF, MOST = (Ticks(Fraction(tenths, 10)) for tenths in (2, 5, 8))
B = np.random.default_rng(0).standard_normal(10)
RATE = 1 / np.array(jobs(10), dtype=float)
TRUE, SURROGATE = B.mean(), (B * RATE).sum() / RATE.sum()


def settled(schedule, eta, seconds, near=0.0, curvature=1.0, local_steps=1, **settings):
    """Mean and deviation over merges in the last three fifths of a run that begins at `near`."""
    scheme = FedFix(train=steps(local_steps, eta), schedule=schedule, **settings)
    x = models(run(quadratics(B - near, curvature), scheme, world=spread(80), seconds=seconds))[:, 0, 0] + near
    x = x[2 * len(x) // 5 :]
    return x.mean().item(), x.std().item()


def test_the_two_optima():
    assert pytest.approx((0.08468, -0.12873), abs=5e-6) == (TRUE, SURROGATE)


def test_async_unbiased_finds_the_optimum_and_naive_the_surrogate():
    for settings, optimum in (({}, TRUE), ({"weights": "naive"}, SURROGATE)):
        assert settled(ASYNC, 0.02, 12, **settings)[0] == pytest.approx(optimum, abs=0.01)
        mean, deviation = settled(ASYNC, 1e-3, 60, near=optimum, **settings)
        assert mean == pytest.approx(optimum, abs=5e-4)
        assert deviation == pytest.approx(7e-4, rel=0.2)


@pytest.mark.parametrize("schedule", [Buffered(3), Buffered(5, restart="merge"), Buffered(2, restart="merge")])
def test_fedbuff_naive_finds_its_surrogate_and_unbiased_the_optimum(schedule):
    """The surrogate weighs by f_i; where all restart at once, that is 1 / tau_i, as in single arrivals."""
    fed = federation(quadratics(B), FedFix(train=steps(), schedule=schedule), 1, world=spread(80))
    often = schedule.frequency(fed) / schedule.size
    surrogate = (often * B).sum()
    assert abs(surrogate - TRUE) > 0.1 and (schedule.restart == "merge" or surrogate == pytest.approx(SURROGATE, rel=1e-12))
    for settings, optimum in (({}, TRUE), ({"frequencies": "estimated"}, TRUE), ({"weights": "naive"}, surrogate)):
        mean, _ = settled(schedule, 2e-3, 20, near=optimum, **settings)
        assert mean == pytest.approx(optimum, abs=4e-3)


def test_estimated_frequencies_find_the_optimum():
    assert settled(ASYNC, 0.02, 20, frequencies="estimated")[0] == pytest.approx(TRUE, abs=0.01)
    assert settled(HALF, 1e-3, 30, near=TRUE, frequencies="estimated") == settled(HALF, 1e-3, 30, near=TRUE)


def test_a_discount_finds_an_optimum_that_counts_the_stale_less():
    """Under slots of 1/5 s client i misses ceil(5 tau_i) - 1 merges: sum p_i s_i b_i / sum p_i s_i."""
    counts = np.array([1 / math.ceil(5 * time) for time in jobs(10)])
    discounted = (counts * B).sum() / counts.sum()
    assert abs(discounted - TRUE) > 0.1
    assert settled(FIFTH, 1e-3, 80, near=discounted, discount=Polynomial(1))[0] == pytest.approx(discounted, abs=3e-4)


@pytest.mark.parametrize(("schedule", "seconds", "noise"), [(HALF, 300, 3e-6), (MOST, 1500, 2e-5), (Ticks(), 300, 0), (ALL, 300, 0)])
def test_slots_find_the_optimum_and_are_steadier(schedule, seconds, noise):
    mean, deviation = settled(schedule, 1e-3, seconds, near=TRUE)
    assert mean == pytest.approx(TRUE, abs=1e-5)
    assert deviation == pytest.approx(noise, rel=0.2, abs=1e-15)


def test_rounds_find_the_optimum_exactly():
    assert settled(ALL, 0.1, 600, local_steps=3)[0] == pytest.approx(TRUE, abs=1e-14)


@pytest.mark.parametrize(("schedule", "seconds"), [(HALF, 100), (ASYNC, 20)])
def test_noise_halves_with_the_step(schedule, seconds):
    noise = [settled(schedule, eta, seconds, near=TRUE)[1] for eta in (2e-3, 1e-3)]
    assert noise[0] / noise[1] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("schedule", "seconds", "server_lr"), [(ALL, 60, 1), (HALF, 200, 0.02), (ASYNC, 30, 0.02), (Buffered(3, restart="merge"), 80, 0.02)]
)
def test_weights_remove_the_bias_of_time_and_not_that_of_many_steps(schedule, seconds, server_lr):
    """sum p_i (1 - (1 - eta a_i)^K) (b_i - x) = 0, and not sum p_i a_i (b_i - x) = 0."""
    a = np.linspace(0.5, 4, 10)
    way = 1 - (1 - 0.1 * a) ** 10
    biased, true = (way * B).sum() / way.sum(), (a * B).sum() / a.sum()
    assert abs(biased - true) > 0.05
    mean, _ = settled(schedule, 0.1, seconds, curvature=a, local_steps=10, server_lr=server_lr)
    assert mean == pytest.approx(biased, abs=1e-13 if schedule == ALL else 5e-3)
