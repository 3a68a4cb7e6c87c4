import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tools import classification, federation, inbox, merges, models, quadratics, steps, table
from tools import quick as run

from fedsim.schedule import Rounds
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.values import Count, PerNode
from strategies.fedavg import FedAvg
from strategies.fedstale import FedStale
from strategies.fedvarp import FedVarp

ALL = Rounds(cohort=Count())
BETAS = [0.0, 0.25, 0.5, 1.0]

# Five clients with two parameters: shares, chances, fresh and remembered updates
ALPHA = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15]).double()
P = torch.tensor([0.3, 0.5, 1.0, 0.8, 0.6]).double()
FRESH = torch.tensor([[1.0, -2], [0.5, 3], [-1, 1], [2, 0.25], [4, -3]]).double()
LAST = torch.tensor([[0.5, -1], [1, 1], [-2, 0.5], [0, 3], [-1, -1]]).double()
EVERY_COHORT = [list(at) for size in range(6) for at in itertools.combinations(range(5), size)]


def coins(*chances):
    return Rounds(sampling=BernoulliSampling(PerNode(chances)))


def state_of(strategy, last=LAST, alpha=ALPHA, model=None):
    """A state in which clients are remembered; [1, d] model, 0 by default."""
    state = {"model": torch.zeros(1, last.shape[1]).double() if model is None else model.clone()}
    return state | ({"last": table(last), "stale": (alpha @ last)[None]} if strategy.beta else {})


def remembered(state):
    """[n, d]: what is remembered of each client."""
    return state["last"][torch.arange(len(state["last"]))]


def after(strategy, cohort, fresh=FRESH, last=LAST, alpha=ALPHA, chance=P, model=None):
    """State after a round in which the cohort takes part."""
    state = state_of(strategy, last, alpha, model)
    if not cohort:
        return strategy.merge_nothing(state)
    return strategy.merge(state, inbox(alpha[cohort].tolist(), cohort, chance=chance[cohort].tolist(), update=fresh[cohort]))


def direction(beta, cohort, **values):
    """u of one round, [d]."""
    return after(FedStale(beta=beta, empty="stale"), cohort, **values)["model"][0]


def chance_of(cohort):
    return torch.where(torch.isin(torch.arange(5), torch.tensor(cohort, dtype=torch.int64)), P, 1 - P).prod()


# One round


def test_a_round_by_hand():
    # alpha 1/2, 1/2; node 0 there with p 1/2: u = (3/2 + 1/2) + (1/2)/(1/2) (5 - 3) = 4 with beta 1
    values = {
        "fresh": torch.tensor([[5.0], [0]]),
        "last": torch.tensor([[3.0], [1]]),
        "alpha": torch.ones(2) / 2,
        "chance": torch.ones(2) / 2,
    }
    values = {name: value.double() for name, value in values.items()}
    assert direction(1.0, [0], **values).item() == 4
    assert direction(0.0, [0], **values).item() == 5
    assert direction(0.5, [0], **values).item() == 4.5
    assert direction(0.5, [], **values).item() == 1  # half of the stale mean 2
    state = after(FedStale(beta=0.5, server_lr=0.1), [0], **values)
    assert state["model"].item() == pytest.approx(0.45, rel=1e-15)
    assert remembered(state).flatten().tolist() == [5, 1]
    assert state["stale"].item() == 3


@pytest.mark.parametrize("beta", BETAS)
def test_u_is_the_formula(beta):
    """sum_S w_i D_i + beta (sum_not_S alpha_i h_i + sum_S (alpha_i - w_i) h_i), w_i = alpha_i / p_i; then the memory is D_i in S."""
    for cohort in EVERY_COHORT:
        there = torch.isin(torch.arange(5), torch.tensor(cohort, dtype=torch.int64))[:, None]
        w = (ALPHA / P)[:, None]
        stale = torch.where(there, (ALPHA[:, None] - w) * LAST, ALPHA[:, None] * LAST).sum(0)
        u = torch.where(there, w * FRESH, 0).sum(0) + beta * stale
        state = after(FedStale(beta=beta, empty="stale"), cohort)
        assert torch.allclose(state["model"][0], u, rtol=1e-14, atol=1e-14)
        if beta:
            assert torch.equal(remembered(state), torch.where(there, FRESH, LAST))
            assert torch.allclose(state["stale"][0], ALPHA @ remembered(state), rtol=1e-14)


def test_u_is_affine_in_beta():
    for cohort, beta in itertools.product(EVERY_COHORT, (0.25, 0.7)):
        mixed = (1 - beta) * direction(0.0, cohort) + beta * direction(1.0, cohort)
        assert torch.allclose(direction(beta, cohort), mixed, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("beta", BETAS)
def test_u_is_unbiased_with_the_variance_of_the_formula(beta):
    """Over all cohorts: mean sum alpha_i D_i, variance sum alpha_i^2 (1 - p_i)/p_i |D_i - beta h_i|^2."""
    mean = ALPHA @ FRESH
    moments = [(chance_of(cohort), direction(beta, cohort)) for cohort in EVERY_COHORT]
    assert torch.allclose(sum(chance * u for chance, u in moments), mean, rtol=0, atol=2e-15)
    variance = sum(chance * (u - mean).square().sum() for chance, u in moments)
    formula = (ALPHA**2 * (1 - P) / P * (FRESH - beta * LAST).square().sum(1)).sum()
    assert variance.item() == pytest.approx(formula.item(), rel=4e-15)


def test_beta_of_the_least_variance():
    """beta* = sum c_i <D_i, h_i> / sum c_i |h_i|^2, c_i = alpha_i^2 (1 - p_i)/p_i; 1 where h = D, 0 where orthogonal."""

    def variance(beta, last):
        mean = ALPHA @ FRESH
        return sum(chance_of(s) * (direction(beta, s, last=last) - mean).square().sum() for s in EVERY_COHORT).item()

    c = ALPHA**2 * (1 - P) / P
    across = FRESH.flip(1) * torch.tensor([1.0, -1])
    for last in (FRESH, across, FRESH + across, 2 * FRESH - across):
        best = ((c * (FRESH * last).sum(1)).sum() / (c * last.square().sum(1)).sum()).item()
        v = [variance(beta, last) for beta in (0.0, 0.5, 1.0)]  # a parabola: its least point from three of its values
        assert (3 * v[0] - 4 * v[1] + v[2]) / (4 * (v[0] - 2 * v[1] + v[2])) == pytest.approx(best, rel=1e-12, abs=1e-12)
    assert variance(1.0, FRESH) == pytest.approx(0, abs=1e-28)
    assert variance(0.0, across) < min(variance(beta, across) for beta in (0.1, 0.5, 1.0))


def test_renaming_clients_renames_their_memories():
    order = torch.tensor([3, 0, 4, 1, 2])
    back = order.argsort()
    for cohort in EVERY_COHORT:
        state = after(FedStale(beta=0.5), cohort)
        turned = sorted(back[cohort].tolist())
        other = after(FedStale(beta=0.5), turned, fresh=FRESH[order], last=LAST[order], alpha=ALPHA[order], chance=P[order])
        assert torch.allclose(other["model"], state["model"], rtol=1e-14, atol=1e-15)
        assert torch.equal(remembered(other), remembered(state)[order])


def test_an_empty_round_is_skipped_or_takes_the_stale_step():
    model = torch.tensor([[2.0, 3.0]]).double()
    skipped, taken = (after(FedStale(beta=0.5, empty=empty), [], model=model) for empty in ("skip", "stale"))
    assert torch.equal(skipped["model"], model)
    assert torch.equal(taken["model"], model + 0.5 * (ALPHA @ LAST))
    assert torch.equal(remembered(skipped), remembered(taken))
    assert torch.equal(after(FedStale(beta=0, empty="stale"), [], model=model)["model"], model)


# Runs


@dataclass(frozen=True)
class Inverse(FedAvg):
    """FedAvg by inverse probability."""

    def merge(self, state, inbox):
        return {"model": state["model"] + inbox.sum("update", inbox.weight / inbox.chance)}


def test_beta_0_is_inverse_probability_fedavg_in_bits_and_remembers_nothing():
    task, train, schedule = classification([7, 11, 9, 13]), steps(3, 0.1, batch=4), coins(1.0, 1.0, 0.5, 0.25)
    fed = run(task, FedStale(train=train, schedule=schedule, beta=0), 8)
    assert set(fed.state) == {"model"}
    assert torch.equal(models(fed), models(run(task, Inverse(train=train, schedule=schedule), 8)))


@pytest.mark.parametrize("schedule", [coins(1.0, 0.5, 0.25, 0.5), Rounds(cohort=Count(2))])
@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_a_run_is_the_formula(schedule, beta):
    """An own FedVARP (beta 1) and FedStale on quadratics, whose updates are eta a_i (b_i - x)."""
    a, b, alpha = np.array([1.0, 2, 4, 1]), np.array([1.0, -2, 0.5, 3]), np.array([1, 2, 4, 1]) / 8
    p = np.array(schedule.sampling.chance.value) if isinstance(schedule.sampling, BernoulliSampling) else np.full(4, 0.5)
    method = FedVarp if beta == 1 else FedStale
    fed = run(quadratics(b, a, [1, 2, 4, 1]), method(train=steps(lr=0.1), schedule=schedule, beta=beta, empty="stale"), 30)
    x, h = [0.0], np.zeros(4)
    for _, who in merges(fed):
        at, new = [node for node, _ in who], 0.1 * a * (b - x[-1])
        x.append(x[-1] + beta * alpha @ h + (alpha[at] / p[at]) @ (new[at] - beta * h[at]))
        h[at] = new[at]
    assert len({len(who) for _, who in merges(fed)}) > 1 or schedule.sampling.sized
    assert models(fed)[:, 0, 0].tolist() == pytest.approx(x, rel=1e-12)
    assert remembered(fed.state)[:, 0].tolist() == pytest.approx(h, rel=1e-12)
    assert fed.state["stale"].item() == pytest.approx(alpha @ h, rel=1e-12)


@pytest.mark.parametrize("schedule", [ALL, coins(1.0, 1.0, 1.0)])
def test_with_everybody_there_every_beta_is_fedavg(schedule):
    task, train = quadratics([1.0, -2, 4], [1.0, 2, 3], [1, 2, 5]), steps(3, 0.1)
    same = models(run(task, FedAvg(train=train, schedule=ALL), 12))
    for beta in BETAS:
        assert torch.allclose(models(run(task, FedStale(train=train, schedule=schedule, beta=beta), 12)), same, rtol=1e-13)


def test_the_first_round_does_not_depend_on_beta():
    task, schedule = quadratics([1.0, -2, 4], samples=[1, 2, 5]), Rounds(cohort=Count(2))
    first = [models(run(task, FedStale(train=steps(3, 0.1), schedule=schedule, beta=beta), 2)) for beta in BETAS]
    assert all(torch.equal(x[1], first[0][1]) for x in first)
    assert not torch.equal(first[0][2], first[3][2])


def test_equal_chances_and_shares_at_beta_0_are_the_plain_mean():
    task, train, schedule = quadratics([1.0, -2, 4, 3]), steps(3, 0.1), Rounds(cohort=Count(2))
    fed = run(task, FedStale(train=train, schedule=schedule, beta=0), 10)
    assert torch.allclose(models(fed), models(run(task, FedAvg(train=train, schedule=schedule, weights="uniform"), 10)), rtol=1e-13)


# Quadratics around their optimum

CENTRES, CHANCES = torch.tensor([[-2.0], [-1], [0], [1], [2]]).double(), torch.linspace(0.3, 1, 5).double()
EQUAL = torch.full((5,), 0.2).double()


def turn(beta, cohort, z):
    """One round with eta 0.1 of model and memories, z [6] = (x, h)."""
    x, h = z[:1], z[1:, None]
    values = {"fresh": 0.1 * (CENTRES - x), "last": h, "alpha": EQUAL, "chance": CHANCES, "model": x[None]}
    state = after(FedStale(beta=beta), cohort, **values)
    return torch.cat([state["model"][0], remembered(state)[:, 0] if beta else z[1:]])


def cohorts():
    """All that can come, with their probabilities; client 4 always does."""
    for rest in itertools.product([False, True], repeat=4):
        there = torch.tensor([*rest, True])
        yield there.nonzero()[:, 0].tolist(), torch.where(there, CHANCES, 1 - CHANCES).prod().item()


def test_at_the_optimum_beta_1_stands_still_and_beta_scales_the_noise():
    best = torch.cat([CENTRES.mean(0), 0.1 * (CENTRES - CENTRES.mean(0))[:, 0]])
    formula = (EQUAL**2 * (1 - CHANCES) / CHANCES * best[1:] ** 2).sum().item()
    for beta in BETAS:
        moves = [(chance, turn(beta, cohort, best) - best) for cohort, chance in cohorts()]
        assert all(torch.allclose(move[1:], 0 * move[1:], rtol=0, atol=1e-16) for _, move in moves)
        noise = sum(chance * move[0].item() ** 2 for chance, move in moves)
        assert noise == pytest.approx((1 - beta) ** 2 * formula, rel=1e-12, abs=1e-30)


def stationary_error(beta):
    """E |x - x*|^2 in the long run: a round is affine in z, so E (z, 1) (z, 1)' is the fixed point of a linear map."""
    whole = torch.zeros(49, 49).double()
    for cohort, chance in cohorts():
        origin = turn(beta, cohort, torch.zeros(6).double())
        columns = [turn(beta, cohort, unit) - origin for unit in torch.eye(6).double()]
        affine = torch.eye(7).double()
        affine[:6] = torch.stack([*columns, origin], 1)
        whole += chance * torch.kron(affine, affine)
    for _ in range(12):  # 4096 rounds
        whole = whole @ whole
    return whole[0, 48].item()  # from z = 0


def test_the_error_falls_with_one_minus_beta_squared():
    """To about 1 %, since memories hold updates of older models; nothing is left at beta = 1."""
    error = [stationary_error(beta) for beta in (0.0, 0.25, 0.5, 0.75)]
    assert [e / error[0] for e in error] == pytest.approx([1, 0.5625, 0.25, 0.0625], rel=0.01)
    fed = run(quadratics(CENTRES + 1), FedVarp(train=steps(lr=0.1), schedule=coins(*CHANCES.tolist())), 400)
    assert (fed.state["model"] - 1).square().item() < 1e-28


# The server's memory


def test_a_probe_leaves_no_memory():
    fed = federation(quadratics([1.0, 2, 3]), FedStale(train=steps(), schedule=ALL), 1)
    assert fed.state["last"].memories.count == 0 and not fed.state["stale"].any()
    fed.run()
    assert fed.state["last"].memories.count == 3


def test_a_server_remembers_only_those_who_came():
    fed = run(quadratics(torch.zeros(5000, 1) + 1), FedStale(train=steps(), schedule=Rounds(cohort=Count(3))), 4)
    kept = fed.state["last"].memories
    assert kept.count <= 12 and len(kept.rows["row"]) <= 24
