import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from frames import buffered, every, jobs, together
from tools import classification, durations, federation, inbox, merges, models, quadratics, run, spread, steps

from fedsim.base.errors import SettingError
from fedsim.method.discount import Hinge, Polynomial
from fedsim.schedule import Buffered, Gossip, Rounds, Ticks
from fedsim.settings.values import Count, PerNode
from fedsim.world import Compute, Faults, World
from fedsim.world.compute import UniformJitter
from strategies.fedasync import FedAsync
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff
from strategies.fedfix import FedFix

ALL = Rounds(cohort=Count())
ASYNC = Buffered(size=1)
FIFTH, HALF, MOST = (Ticks(Fraction(tenths, 10)) for tenths in (2, 5, 8))


@dataclass(frozen=True)
class Marked(FedFix):
    """Client i sends the i-th unit vector, so that the model sums up the weights given to each."""

    def local_update(self, received, memory, local):
        return {"update": torch.nn.functional.one_hot(local.nodes, received["model"].shape[1]).to(received["model"])}, memory


def marked(nodes, schedule, seconds, samples=None, **settings):
    """A run of F-80 for its events and weights."""
    task = quadratics(torch.zeros(nodes, nodes), samples=samples)
    return run(task, Marked(train=steps(), schedule=schedule, **settings), world=spread(80), seconds=seconds)


def weights(*args, **settings):
    """[merges, nodes]: omega_i(n), as a run applies them."""
    fed = marked(*args, **settings)
    steps_of_model = models(fed)[:, 0].diff(dim=0).numpy()
    return np.array([row for row, _ in zip(steps_of_model, merges(fed), strict=True)])


# Events


def test_published_numbers_of_merges():
    """T = 5000, 20 clients, F-80, in whole units of 1/95 s."""
    tau, end = [int(95 * time) for time in jobs(20)], 95 * 5000
    assert len(together(tau, 20, end)) == 5000
    assert [len(every([2 * t for t in tau], interval, 2 * end)) for interval in (38, 95, 152)] == [25_000, 10_000, 6250]
    assert len(together(tau, 5, end)) == 36_082
    assert len(together(tau, 10, end)) == 15_935
    assert len(buffered(tau, 1, end)) == sum(end // time for time in tau) == pytest.approx(206_540, abs=10)


@pytest.mark.parametrize(
    ("schedule", "frame", "number"),
    [
        (FIFTH, every, Fraction(1, 5)),
        (HALF, every, Fraction(1, 2)),
        (MOST, every, Fraction(4, 5)),
        (Buffered(5, restart="merge"), together, 5),
        (Buffered(10, restart="merge"), together, 10),
        (ASYNC, buffered, 1),
    ],
)
def test_events_are_those_of_the_plain_frame(schedule, frame, number):
    end = 30 if number == 1 else 100
    assert merges(marked(20, schedule, end)) == frame(jobs(20), number, end)


def test_exact_times_see_the_fastest_client_in_each_slot():
    """Floating-point clocks take 0.2 s, made as 1 - 19 (0.8/19), for more than an interval of 0.2 s."""
    assert 1 - 19 * (0.8 / 19) > 0.2
    fed = marked(20, FIFTH, 10)
    assert all((19, 0) in who for _, who in merges(fed))
    assert fed.schedule.frequency(fed)[19] == 1


def test_early_ones_wait_for_the_slot_and_start_from_its_model():
    # jobs of 0.4 s and 0.7 s, slots of 0.5 s; an update is half of the way from where it began to the centre; weights 1/2 and 2/2
    strategy = FedFix(train=steps(lr=0.5), schedule=HALF)
    fed = run(quadratics([8.0, -8.0]), strategy, world=durations("0.4", "0.7"), seconds=2)
    assert merges(fed) == [(Fraction(1, 2), [(0, 0)]), (1, [(0, 0), (1, 1)]), (Fraction(3, 2), [(0, 0)]), (2, [(0, 0), (1, 1)])]
    # 4/2 = 2; 2 + 3/2 - 4 = -1/2; -1/2 + 17/8 = 13/8; 13/8 + 51/32 - 15/4
    assert models(fed)[:, 0, 0].tolist() == [0, 2, -0.5, 1.625, -0.53125]


# Frequencies, weights, ages


@pytest.mark.parametrize("schedule", [FIFTH, HALF, MOST])
def test_ticks_weights_and_frequencies(schedule):
    """d_i = p_i ceil(tau_i / interval); over a common multiple of the ceils each counts p_i exactly and a merge 1 on average."""
    ceil = np.array([math.ceil(time / schedule.every) for time in jobs(10)])
    slots = math.lcm(*ceil.tolist())
    omega = weights(10, schedule, seconds=slots * schedule.every)
    assert len(omega) == slots
    assert ((omega != 0).sum(0) * ceil == slots).all()
    assert np.allclose(omega, np.where(omega != 0, ceil / 10, 0), rtol=1e-13)
    assert np.allclose(omega.mean(0), 1 / 10, rtol=1e-12)


def test_async_weights_and_frequencies():
    """d_i = p_i tau_i sum(1/tau): 2.128 for the slowest to 0.426 for the fastest of 10, and 1 on average."""
    tau = np.array(jobs(10), dtype=float)
    omega = weights(10, ASYNC, seconds=40)
    applied = omega.max(0)
    assert (1 / tau).sum() == pytest.approx(21.2806, abs=5e-5)
    assert np.allclose(applied, tau / 10 * (1 / tau).sum(), rtol=1e-12)
    assert applied[[0, 9]] == pytest.approx([2.128, 0.426], abs=5e-4)
    assert ((omega != 0).sum(1) == 1).all()
    assert (omega != 0).sum(0).tolist() == [int(40 / time) for time in jobs(10)]
    assert omega.sum(1).mean() == pytest.approx(1, abs=0.01)


def test_async_frequencies_over_a_long_time():
    tau = [int(45 * time) for time in jobs(10)]
    seen = np.bincount([who[0][0] for _, who in buffered(tau, 1, 45 * 2000)])
    fed = federation(quadratics(torch.zeros(10)), FedFix(train=steps(), schedule=ASYNC), 1, world=spread(80))
    assert np.abs(seen / seen.sum() - ASYNC.frequency(fed)).max() < 2e-5


@pytest.mark.parametrize("size", [2, 5, 7])
@pytest.mark.parametrize(("restart", "frame"), [("merge", together), ("arrival", buffered)])
def test_buffered_frequencies(size, restart, frame):
    schedule = Buffered(size, restart=restart)
    fed = federation(quadratics(torch.zeros(10)), FedFix(train=steps(), schedule=schedule), 1, world=spread(80))
    often, out = schedule.frequency(fed), frame([int(45 * time) for time in jobs(10)], size, 45 * 1000)
    assert often.sum() == pytest.approx(size, rel=1e-12)
    seen = np.bincount([node for _, who in out for node, _ in who], minlength=10) / len(out)
    assert np.abs(often - seen).max() < 5e-3


def test_weights_a_merge():
    """naive weights sum to 1 each time; unbiased ones p_i / f_i, 1 on average."""
    assert np.allclose(weights(4, ALL, 5).sum(1), 1, rtol=1e-15)
    assert np.allclose(weights(4, ALL, 5, weights="naive").sum(1), 1, rtol=1e-15)
    five = Buffered(5, restart="merge")
    naive = weights(10, five, 30, weights="naive")
    assert np.allclose(naive[naive != 0], 1 / 5, rtol=1e-12)
    assert np.allclose(naive.sum(1), 1, rtol=1e-12)
    unbiased = weights(10, five, 60)
    assert unbiased.sum(1).mean() == pytest.approx(1, abs=0.01)
    assert np.allclose(unbiased.mean(0), 1 / 10, atol=0.005)


def test_weights_by_shares_of_samples():
    omega = weights(4, HALF, 1, samples=[1, 2, 2, 3])  # jobs of 1, 11/15, 7/15, 1/5 s
    assert np.allclose(omega, [[0, 0, 0.25, 0.375], [0.25, 0.5, 0.25, 0.375]], rtol=1e-13)


def test_merge_by_hand():
    # p / f = 1/4 x 4, 1/2 x 2; server_lr 1/2
    news = inbox([0.25, 0.5], sender=[2, 0], frequency=[0.5, 1, 0.25], update=[3, 5])
    state = {"model": torch.ones(1, 1).double()}
    assert FedFix().merge(state, news)["model"].item() == 1 + 3 + 5
    assert FedFix(server_lr=0.5).merge(state, news)["model"].item() == 1 + 4
    assert FedFix(schedule=ALL, weights="naive").merge(state, news)["model"].item() == 1 + 0.75 + 2.5
    assert FedFix(schedule=Buffered(2), weights="naive").merge(state, news)["model"].item() == 1 + 4


def test_weights_that_are_not_defined_are_refused():
    for schedule, said in ((Ticks(), "under schedule `ticks`: naive weights are not defined"), (Gossip(), "merges at a server")):
        with pytest.raises(SettingError, match=said):
            federation(quadratics(torch.zeros(3)), FedFix(train=steps(), schedule=schedule, weights="naive"), 1, world=spread(50))
    few = FedFix(train=steps(), schedule=Buffered(2, concurrency=Count(2)))
    with pytest.raises(SettingError, match="all nodes are always at work"):
        federation(quadratics(torch.zeros(3)), few, 1, world=spread(50))
    with pytest.raises(ValueError, match="use no frequencies"):
        FedFix(schedule=ASYNC, weights="naive", frequencies="estimated")


# Estimated frequencies


def test_estimated_by_hand():
    """Updates so far over merges so far, a merge without news included, twice in a merge counted twice."""
    strategy = FedFix(schedule=Buffered(2), frequencies="estimated")
    state = strategy.start(torch.zeros(1, 1).double(), quadratics(torch.zeros(4)))
    assert state["times"].shape == (1, 4)
    seen = []
    for sender in ([0, 1], [0, 0], [], [3, 0], [1, 3]):
        if sender:
            seen.append(strategy.frequency(state, inbox([0.25] * len(sender), sender=sender, update=[0.0] * len(sender))).tolist())
        else:
            state = strategy.merge_nothing(state)
    assert seen == [[1, 1], [3 / 2, 3 / 2], [1 / 4, 4 / 4], [2 / 5, 2 / 5]]


@pytest.mark.parametrize("schedule", [FIFTH, HALF, MOST, ALL])
def test_estimated_under_steady_slots_is_known_in_bits(schedule):
    """Each gap is ceil(tau_i / interval) merges, from the first on."""
    task = quadratics(torch.arange(10), samples=[1, 2, 1, 4, 2, 1, 1, 2, 1, 1])
    known, counted = (
        run(task, FedFix(train=steps(2, 0.1), schedule=schedule, frequencies=how), world=spread(80), seconds=12)
        for how in ("known", "estimated")
    )
    assert merges(known) == merges(counted) and torch.equal(models(known), models(counted))


@pytest.mark.parametrize("schedule", [ASYNC, Buffered(4), Buffered(4, restart="merge")])
def test_estimated_converges_to_known(schedule):
    short, long = (marked(10, schedule, seconds, frequencies="estimated") for seconds in (10, 60))
    known = schedule.frequency(long)
    for fed, near in ((short, 0.15), (long, 0.03)):
        counted = (fed.state["times"][0] / fed.state["merges"][0]).numpy()
        assert np.abs(counted / known - 1).max() < near
        assert fed.state["merges"].item() == fed.version


def test_estimated_works_where_nothing_is_known_beforehand():
    """Speeds that change, clients that are away, lost updates, few at work: still each counts p_i a merge, where `known` is refused."""
    pace = World(
        compute=Compute(job=PerNode(tuple(jobs(5))), jitter=UniformJitter(0.5, 1.5)),
        faults=Faults(lost=PerNode((0.4, 0.0, 0.2, 0.0, 0.1))),
    )
    for schedule in (HALF, Buffered(2, concurrency=Count(3)), Rounds(Count(2)), Buffered(1, max_staleness=3)):
        counted = Marked(train=steps(), schedule=schedule, frequencies="estimated")
        task = quadratics(torch.zeros(5, 5), samples=[1, 2, 1, 4, 2])
        with pytest.raises(SettingError, match="frequencies: estimated"):
            federation(task, replace(counted, frequencies="known"), 1, world=pace)
        fed = run(task, counted, 400, pace, plan="looped")
        applied, often = models(fed)[-1, 0] / fed.version, fed.state["times"][0]
        assert isinstance(schedule, Rounds) or often.max() > 1.5 * often.min()
        assert applied.numpy() == pytest.approx(task.share.numpy(), rel=0.25)


# Discounts


def test_a_discount_multiplies_the_weights():
    news = inbox([0.25, 0.5], sender=[2, 0], age=[3, 0], frequency=[0.5, 1, 0.25], update=[3, 5])
    state = {"model": torch.zeros(1, 1).double()}
    assert FedFix(discount=Polynomial(0.5)).merge(state, news)["model"].item() == pytest.approx(3 / 2 + 5, rel=1e-15)
    assert FedFix(discount=Hinge(2, 1)).merge(state, news)["model"].item() == pytest.approx(3 / 5 + 5, rel=1e-15)
    naive = FedFix(schedule=Buffered(2), weights="naive", discount=Polynomial(0.5))
    assert naive.merge(state, news)["model"].item() == pytest.approx(3 / 4 + 5 / 2, rel=1e-15)


def test_without_a_discount_nothing_changes_in_bits():
    task, train = classification([4, 7, 8, 16]), steps(3, 0.2, batch=4)
    plain, flat = (run(task, FedFix(train=train, schedule=HALF, **how), 12, world=spread(80)) for how in ({}, {"discount": Polynomial(0)}))
    assert torch.equal(models(plain), models(flat)) and max(age for _, who in merges(plain) for _, age in who) > 0


def test_a_discount_costs_the_stale_their_share():
    """Under slots client i counts p_i s(ceil(tau_i / interval) - 1) a merge."""
    omega = weights(10, HALF, seconds=10, discount=Polynomial(1))
    late = np.array([math.ceil(2 * time) - 1 for time in jobs(10)])
    assert np.allclose(omega.mean(0), 1 / 10 / (1 + late), rtol=1e-12)
    assert set(late) == {0, 1}


@pytest.mark.parametrize("schedule", [FIFTH, HALF, MOST])
def test_ticks_ages(schedule):
    fed = marked(10, schedule, 10)
    tau = jobs(10)
    assert all(age == math.ceil(tau[node] / schedule.every) - 1 for _, who in merges(fed) for node, age in who)


def test_async_ages():
    """The k-th job of i misses the arrivals of the others while it runs; tau_i sum(1/tau) - 1 on average: 20.3 to 3.3."""
    fed = marked(10, ASYNC, 40)
    tau, ages = jobs(10), {i: [] for i in range(10)}
    for _, ((node, age),) in merges(fed):
        ages[node].append(age)
    for i, seen in ages.items():
        ends = [k * tau[i] for k in range(len(seen) + 1)]
        # arrivals of all up to the k-th of i: those before, and at the same time those of lower ids
        before = [sum(int(end / t) if j <= i else math.ceil(end / t) - 1 for j, t in enumerate(tau)) if end else 0 for end in ends]
        assert seen == [b - a - 1 for a, b in pairwise(before)]
        mean = float(tau[i] * sum(1 / t for t in tau)) - 1
        assert abs(np.mean(seen) - mean) < 10 / len(seen)
        assert i not in (0, 9) or mean == pytest.approx({0: 20.3, 9: 3.3}[i], abs=0.05)


# Reductions


@pytest.mark.parametrize("interval", [1, Fraction(7, 5)])
def test_slots_that_all_make_are_fedavg_in_bits(interval):
    task, train = classification([4, 4, 8, 16]), steps(3, 0.2, batch=4)  # shares that add up to 1 in bits
    fed = run(task, FedFix(train=train, schedule=Ticks(Fraction(interval))), 6, world=spread(80))
    same = run(task, FedAvg(train=train, schedule=ALL), 6, world=spread(80))
    assert torch.equal(models(fed), models(same))
    times = [[time for time, _ in merges(one)] for one in (fed, same)]
    assert times == [[k * interval for k in range(1, 7)], [1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("ceil", [2, 3, 4])
def test_equal_speeds_are_fedavg_with_a_larger_server_step(ceil):
    """F-0: all come in every c-th slot, with sum of weights c and no model missed."""
    task, train = quadratics([1.0, 2.0, 4.0, -3.0], [1.0, 2, 1, 3], [1, 1, 2, 4]), steps(2, 0.1)
    x = models(run(task, FedFix(train=train, schedule=Ticks(Fraction(1, ceil))), world=spread(0), seconds=6))[:, 0, 0]
    same = models(run(task, FedAvg(train=train, schedule=ALL, server_lr=ceil), 6))[:, 0, 0]
    assert torch.allclose(x[::ceil], same, rtol=1e-14)
    assert (x[: 6 * ceil].view(6, ceil) == x[: 6 * ceil : ceil, None]).all()  # nothing happens between


def test_equal_speeds_go_through_the_buffer_in_blocks():
    fed = run(quadratics(torch.zeros(6)), FedFix(train=steps(), schedule=Buffered(2, restart="merge")), 6, world=spread(0))
    assert [[node for node, _ in who] for _, who in merges(fed)] == [[0, 1], [2, 3], [4, 5]] * 2
    assert [time for time, _ in merges(fed)] == [1, 1, 1, 2, 2, 2]
    assert fed.schedule.frequency(fed).tolist() == pytest.approx([1 / 3] * 6, abs=2e-3)


def test_one_client_is_the_same_under_every_scheme():
    task, train = classification([20]), steps(4, 0.2, batch=5, momentum=0.9)
    schemes = [FedFix(train=train, schedule=schedule) for schedule in (ALL, Ticks(), ASYNC)] + [FedBuff(train=train, schedule=ASYNC)]
    runs = [models(run(task, scheme, 5, world=durations(1))) for scheme in schemes]
    assert all(torch.equal(one, runs[0]) for one in runs)
    assert torch.allclose(models(run(task, FedAsync(train=train, alpha=1), 5, world=durations(1))), runs[0], atol=1e-6)


@pytest.mark.parametrize("schedule", [HALF, ASYNC, Buffered(3, restart="merge")])
def test_clients_alike_have_no_bias(schedule):
    task, strategy = quadratics([2.0] * 10), FedFix(train=steps(2, 0.02), schedule=schedule)
    schemes = [strategy] if schedule == HALF else [strategy, replace(strategy, weights="naive")]
    for scheme in schemes:
        last = run(task, scheme, world=spread(80), seconds=20 if schedule == ASYNC else 100).state["model"].item()
        assert last == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("schedule", [HALF, ASYNC, Buffered(2, restart="merge"), Buffered(3)])
def test_renaming_clients_renames_events(schedule):
    tau = [Fraction(10, 13), Fraction(1), Fraction(10, 31), Fraction(10, 17), Fraction(10, 23)]  # no ties in 9 s
    b, a, samples, order = [1.0, -2, 4, 0.5, 3], [1.0, 2, 1, 3, 2], [1, 2, 3, 1, 1], [3, 0, 4, 1, 2]
    strategy = FedFix(train=steps(2, 0.1), schedule=schedule)
    fed = run(quadratics(b, a, samples), strategy, world=durations(*tau), seconds=9)
    turned = [[values[i] for i in order] for values in (b, a, samples)]
    other = run(quadratics(*turned), strategy, world=durations(*(tau[i] for i in order)), seconds=9)
    named = [(time, sorted((order[node], age) for node, age in who)) for time, who in merges(other)]
    assert named == [(time, sorted(who)) for time, who in merges(fed)]
    assert torch.allclose(models(fed), models(other), rtol=1e-11)
