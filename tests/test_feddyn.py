import pytest
import torch
from tools import classification, inbox, models, quadratics, steps
from tools import quick as run

from fedsim.schedule import Buffered, Rounds, Ticks
from fedsim.schedule.sampling import BernoulliSampling
from fedsim.settings.values import Count, PerNode
from strategies.fedavg import FedAvg
from strategies.feddyn import FedDyn
from strategies.fedprox import FedProx

ALL = Rounds(cohort=Count())
COIN = Rounds(sampling=BernoulliSampling(PerNode(0.5)))
A, B = torch.tensor([1.0, 2, 4, 0.5, 3, 1.5]).double(), torch.tensor([-1.0, 0, 3, 5, -2, 1]).double()
BEST = (A * B).sum() / A.sum()


def duals(fed):
    """[n, d], 0 for who never worked."""
    out = torch.zeros(fed.nodes, fed.task.layout.size, dtype=torch.float64)
    memory = fed.flight.memory
    for node, row in enumerate(memory.row):
        if row >= 0:
            out[node] = memory.rows["dual"][row]
    return out


def test_two_rounds_by_hand():
    # F = (x - 8)^2 / 2 and x^2 / 2, one step of 1/2, pull 1. From 0: updates 4 and 0, h = 4 and 0, mean h = 2: x = 2 + 2 = 4.
    # From 4: first -((4 - 8) + 4)/2 = 0, second -(4 + 0)/2 = -2; h = 4 and -2, mean 1: x = 4 - 1 + 1 = 4, the optimum.
    fed = run(quadratics([8.0, 0.0]), FedDyn(train=steps(lr=0.5), schedule=ALL, pull=1.0), 2)
    assert models(fed)[:, 0, 0].tolist() == [0, 4, 4]
    assert duals(fed)[:, 0].tolist() == [4, -2]
    assert fed.state["dual"].tolist() == [[1]]


def test_the_server_adds_each_update_s_share_to_the_mean_dual():
    # three clients of which two came: dual 3 + (3 + 6) / 3 = 6; model 1 + (3 + 6) / 2 + 6
    state = {"model": torch.tensor([[1.0]]).double(), "dual": torch.tensor([[3.0]]).double(), "share": torch.tensor([[1 / 3]]).double()}
    after = FedDyn().merge(state, inbox([0.2, 0.3], update=[3, 6]))
    assert after["dual"].item() == pytest.approx(6) and after["model"].item() == pytest.approx(11.5)


@pytest.mark.parametrize("schedule", [ALL, Rounds(cohort=Count(2)), COIN], ids=["all", "two", "coin"])
def test_a_dual_is_the_sum_of_the_client_s_updates_and_the_server_has_their_mean(schedule):
    class Noted(FedDyn):
        def merge(self, state, news):
            total.index_add_(0, news.sender, news["update"])
            return super().merge(state, news)

    total = torch.zeros(6, 1, dtype=torch.float64)
    train, task = steps(5, 0.05), quadratics(B, A)
    fed = run(task, Noted(train=train, schedule=schedule, pull=0.7), 0)
    total.zero_()  # the trial merge before the run
    fed.watch.rounds = 12
    fed.run()
    assert torch.allclose(duals(fed), total, atol=1e-14) and total.abs().max() > 1
    assert torch.allclose(fed.state["dual"][0], total.mean(0), atol=1e-14)


def test_the_first_round_descends_as_fedprox_and_without_pull_as_fedavg():
    # from zero duals; the server then moves by the mean update and once more by the mean dual, which is the same with all there
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    for pull, plain in (
        (0.4, FedProx(train=train, schedule=ALL, pull=0.4, weights="uniform")),
        (0.0, FedAvg(train=train, schedule=ALL, weights="uniform")),
    ):
        ours, theirs = (models(run(task, strategy, 1)).diff(dim=0) for strategy in (FedDyn(train=train, schedule=ALL, pull=pull), plain))
        assert torch.allclose(ours, 2 * theirs, atol=1e-6)


def test_without_pull_it_is_not_fedavg_because_duals_add_up():
    # a = 1, lr 1/2, K = 1 from 0 to b: Delta = (b - w) / 2; w_{t+1} = w_t + Delta_t + sum of all Delta so far
    w, total, wanted = 0.0, 0.0, [0.0]
    for _ in range(5):
        delta = (8 - w) / 2
        total += delta
        w += delta + total
        wanted.append(w)
    x = models(run(quadratics([8.0, 8.0]), FedDyn(train=steps(lr=0.5), schedule=ALL, pull=0.0), 5))[:, 0, 0]
    assert x.tolist() == wanted and wanted[1] == 8


def at_rest(pull, schedule=ALL, count=3):
    """A federation that stands in the optimum with the duals that belong there, and its run of some rounds."""
    strategy = FedDyn(train=steps(5, 0.05), schedule=schedule, pull=pull)
    task = quadratics(B, A)
    task.init = BEST[None].clone()
    fed = run(task, strategy, 0)
    fed.flight.memory.put(torch.arange(6).numpy(), {"dual": -(A * (BEST - B))[:, None] / pull})
    fed.watch.rounds = count
    fed.run()
    return fed


@pytest.mark.parametrize("pull", [0.1, 1.0, 10.0])
def test_the_optimum_is_a_fixed_point_with_duals_minus_gradient_over_pull(pull):
    fed = at_rest(pull)
    assert (models(fed)[:, 0, 0] - BEST).abs().max() < 1e-13
    assert torch.allclose(duals(fed)[:, 0], -A * (BEST - B) / pull, rtol=1e-12)
    assert abs(duals(fed).sum()) < 1e-11


@pytest.mark.parametrize(("pull", "count", "schedule"), [(1.0, 60, ALL), (10.0, 160, COIN)])
def test_the_true_optimum_is_reached_where_fedavg_stays_biased(pull, count, schedule):
    train = steps(5, 0.05)
    fed = run(quadratics(B, A), FedDyn(train=train, schedule=schedule, pull=pull), count)
    assert abs(fed.state["model"].item() - BEST) < 1e-5
    assert torch.allclose(duals(fed)[:, 0], -A * (BEST - B) / pull, atol=1e-3)
    assert abs(duals(fed).sum()) < 1e-4
    if schedule is ALL:
        assert abs(run(quadratics(B, A), FedAvg(train=train, schedule=ALL), 60).state["model"].item() - BEST) > 0.05


def test_identical_clients_have_identical_duals():
    fed = run(quadratics([2.0, 2.0, 2.0], 3.0), FedDyn(train=steps(4, 0.1), schedule=ALL), 7)
    assert len(set(duals(fed)[:, 0].tolist())) == 1


def test_a_rate_of_the_server_keeps_the_optimum():
    fed = run(quadratics(B, A), FedDyn(train=steps(5, 0.05), schedule=ALL, pull=1.0, server_lr=0.8), 60)
    assert abs(fed.state["model"].item() - BEST) < 1e-4


@pytest.mark.parametrize("schedule", [Buffered(1), Buffered(3, restart="merge"), Ticks()])
def test_schedules_whose_answers_are_to_earlier_models_are_refused(schedule):
    with pytest.raises(ValueError, match=f"`feddyn` works in `rounds`; under `{schedule.name}`"):
        FedDyn(schedule=schedule)


def test_what_travels_is_a_model_and_an_update():
    task, train = classification([7, 11, 9]), steps(2, 0.1)
    feds = [run(task, strategy, 1) for strategy in (FedAvg(train=train, schedule=ALL), FedDyn(train=train, schedule=ALL))]
    sizes = [(fed.down_bytes, fed.flight.up_bytes) for fed in feds]
    assert sizes[0] == sizes[1]


def test_rates_by_round_and_weight_decay_go_with_pull_and_dual():
    """The fused step is the gradient, the decay, the pull and the dual, each on its own."""
    task = classification([7, 11, 9, 13])
    train = steps(4, 0.1, batch=4, weight_decay=0.02)
    fused = run(task, FedDyn(train=train, schedule=ALL, pull=0.3), 4)
    plain = run(task, FedDyn(train=steps(4, 0.1, batch=4, weight_decay=0.02, clip=1e9), schedule=ALL, pull=0.3), 4)
    assert torch.allclose(models(fused), models(plain), atol=1e-6)
