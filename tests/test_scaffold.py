from fractions import Fraction

import pytest
import torch
from tools import classification, durations, inbox, models, quadratics, steps
from tools import quick as run

from fedsim.method.train import Train
from fedsim.schedule import Rounds, Ticks
from fedsim.settings.values import Constant, Count
from strategies.fedavg import FedAvg
from strategies.scaffold import Scaffold

ALL, TWO = Rounds(cohort=Count()), Rounds(cohort=Count(2))
A, B = torch.tensor([1.0, 2, 4, 0.5, 3, 1.5]).double(), torch.tensor([-1.0, 0, 3, 5, -2, 1]).double()
BEST = (A * B).sum() / A.sum()


def controls(fed):
    """c_i of all clients, [n, d]; 0 for who never worked."""
    memory = fed.flight.memory
    rows = memory.rows["control"]
    return torch.stack([rows[row] if row >= 0 else rows[0] * 0 for row in memory.row])


def test_two_rounds_by_hand():
    # F = (x - 8)^2 / 2 and x^2 / 2, two steps of 1/2, from 0 with c = c_i = 0.
    # First: 4, 6: c_1 = -6 / (2 x 1/2) = -6. Second: 0, 0: c_2 = 0. x = 3, c = -3.
    # First from 3 with c - c_1 = 3: 3 - (-5 + 3)/2 = 4, 4 - (-4 + 3)/2 = 4.5: update 1.5, c_1 = -6 + 3 - 1.5 = -4.5
    # Second from 3 with c - c_2 = -3: 3 - (3 - 3)/2 = 3, 3: update 0, c_2 = 0 + 3 - 0 = 3
    fed = run(quadratics([8.0, 0.0]), Scaffold(train=steps(2, 0.5), schedule=ALL), 2)
    assert models(fed)[:, 0, 0].tolist() == [0, 3, 3.75]
    assert controls(fed)[:, 0].tolist() == [-4.5, 3]
    assert fed.state["control"].tolist() == [[-0.75]]


def test_the_server_adds_each_change_s_share():
    state = {"model": torch.tensor([[1.0]]).double(), "control": torch.tensor([[2.0]]).double(), "share": torch.tensor([[0.25]]).double()}
    after = Scaffold(server_lr=0.5).merge(state, inbox([0.2, 0.3], update=[3, 5], change=[4, 8]))
    assert (after["model"].item(), after["control"].item()) == (3, 5)


@pytest.mark.parametrize("schedule", [ALL, TWO], ids=["all", "two"])
def test_the_server_s_control_is_the_mean_of_the_clients(schedule):
    fed = run(quadratics(B, A), Scaffold(train=steps(5, 0.05), schedule=schedule), 9)
    assert torch.allclose(fed.state["control"][0], controls(fed).mean(0), atol=1e-13)
    assert controls(fed).abs().max() > 1


def test_the_first_round_is_fedavg():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    ours, theirs = (models(run(task, strategy(train=train, schedule=ALL, weights="uniform"), 1)) for strategy in (Scaffold, FedAvg))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_client_alone_is_plain_sgd_always():
    task, train = classification([20]), steps(5, 0.1, batch=4)
    ours, theirs = (models(run(task, strategy(train=train, schedule=ALL), 4)) for strategy in (Scaffold, FedAvg))
    assert torch.allclose(ours, theirs, atol=1e-6)  # c_1 = c


@pytest.mark.parametrize(("schedule", "count"), [(ALL, 25), (TWO, 70)], ids=["all", "two"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_true_optimum_is_reached_with_unequal_curvatures_and_many_local_steps(schedule, count, momentum):
    train = steps(5, 0.05, momentum=momentum)
    fed = run(quadratics(B, A), Scaffold(train=train, schedule=schedule), count)
    assert abs(fed.state["model"].item() - BEST) < 1e-6
    assert torch.allclose(controls(fed)[:, 0], A * (BEST - B), atol=1e-4)  # at rest c_i is the client's gradient, and c is 0
    assert abs(fed.state["control"].item()) < 1e-4


def test_clients_that_answer_to_earlier_models_reach_it_too():
    """A change of c is against the c that the client heard, so c stays the mean of all c_i."""
    world = durations(1, 2, 3, "1.5", 5, 8)
    fed = run(quadratics(B, A), Scaffold(train=steps(5, 0.05), schedule=Ticks(Fraction(2))), 40, world=world)
    assert abs(fed.state["model"].item() - BEST) < 1e-3
    assert torch.allclose(fed.state["control"][0], controls(fed).mean(0), atol=1e-13)


def test_fedavg_is_biased_there():
    fed = run(quadratics(B, A), FedAvg(train=steps(5, 0.05), schedule=ALL), 60)
    assert abs(fed.state["model"].item() - BEST) > 0.05


def test_steps_are_the_job_s_own():
    """Clients with 1 and 3 samples do 1 and 3 steps an epoch; c_i is the mean gradient over as many."""
    train = Train(epochs=1, batch=1, lr=Constant(0.5))
    fed = run(quadratics([8.0, 8.0], samples=[1, 3]), Scaffold(train=train, schedule=ALL), 1)
    # gradients -8; and -8, -4, -2: mean -14/3
    assert controls(fed)[:, 0].tolist() == pytest.approx([-8, -14 / 3])


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_momentum_counts_in_the_length_of_a_job(momentum):
    """c_i stays a weighted mean of gradients: with the same gradient in all steps it is that one."""
    task = quadratics([8.0], 1e-9)
    fed = run(task, Scaffold(train=steps(6, 0.1, momentum=momentum), schedule=ALL), 1)
    assert controls(fed).item() == pytest.approx(-8e-9, rel=1e-6)


def test_a_round_at_a_rate_of_zero_changes_nothing():
    fed = run(quadratics(B, A), Scaffold(train=steps(5, 0.05), schedule=ALL), 3)
    before = {name: rows.clone() for name, rows in fed.state.items()}, controls(fed).clone()
    fed.worker.strategy = fed.strategy = Scaffold(train=steps(5, 0.0), schedule=ALL)
    fed.watch.rounds = 5
    fed.run()
    assert all(torch.equal(rows, before[0][name]) for name, rows in fed.state.items())
    assert torch.allclose(controls(fed), before[1], rtol=1e-14)


def test_model_and_control_travel_both_ways():
    task, train = classification([7, 11, 9]), steps(2, 0.1)
    plain, ours = (run(task, strategy(train=train, schedule=ALL), 1) for strategy in (FedAvg, Scaffold))
    payload = 4 * task.layout.size
    assert ours.down_bytes - plain.down_bytes >= payload and ours.flight.up_bytes - plain.flight.up_bytes >= payload
