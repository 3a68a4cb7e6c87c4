import pytest
import torch
from tools import classification, inbox, models, quadratics, steps
from tools import quick as run

from fedsim.method.train import Train
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count, Exponential
from strategies.fedavg import FedAvg
from strategies.fedcm import FedCm

ALL = Rounds(cohort=Count())


def test_two_rounds_by_hand():
    # F = (x - 8)^2 / 2, one step of 1/2, fresh 1/2. From 0: -(-4)/2 = 2, m = -2 / (1/2) = -4.
    # From 2: half of -6 and half of -4 is -5: 2 + 2.5 = 4.5, m = -5
    fed = run(quadratics([8.0]), FedCm(train=steps(lr=0.5), schedule=ALL, fresh=0.5), 2)
    assert models(fed)[:, 0, 0].tolist() == [0, 2, 4.5]
    assert fed.state["momentum"].tolist() == [[-5]]


def test_all_fresh_is_fedavg_in_bits():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    ours, theirs = (
        models(run(task, strategy, 3))
        for strategy in (FedCm(train=train, schedule=ALL, fresh=1.0), FedAvg(train=train, schedule=ALL, weights="uniform"))
    )
    assert torch.equal(ours, theirs)


def test_the_first_round_is_fedavg_at_a_smaller_rate():
    task = classification([7, 11, 9, 13])
    ours = run(task, FedCm(train=steps(5, 0.1, batch=4), schedule=ALL, fresh=0.25), 1)
    theirs = run(task, FedAvg(train=steps(5, 0.025, batch=4), schedule=ALL, weights="uniform"), 1)
    assert torch.allclose(models(ours), models(theirs), atol=1e-6)


def test_the_momentum_is_unscaled_with_the_rate_of_its_own_round():
    # rate 1/2, then 1/4: a constant gradient (tiny curvature) of -8e-9 stays the momentum whatever the rate of the next round
    train = Train(steps=1, batch="all", lr=Exponential(start=0.5, factor=0.5))
    fed = run(quadratics([8.0], 1e-9), FedCm(train=train, schedule=ALL, fresh=0.5), 2)
    # m = -4e-9 after round 1; round 2 at rate 1/4 goes along half of -8e-9 and half of -4e-9
    assert models(fed)[:, 0, 0].tolist() == pytest.approx([0, 2e-9, 3.5e-9], rel=1e-6)
    assert fed.state["momentum"].item() == pytest.approx(-6e-9, rel=1e-6)


def test_clients_with_more_steps_count_by_their_steps():
    state = {"model": torch.tensor([[1.0]]).double(), "momentum": torch.tensor([[0.0]]).double()}
    after = FedCm(server_lr=0.5).merge(state, inbox([0.2, 0.3], update=[3, 5], length=[0.5, 1.5]))
    assert (after["model"].item(), after["momentum"].item()) == (3, -4)


def test_it_rests_where_fedavg_with_the_smaller_rate_rests():
    """At rest the mean update is 0, so the momentum is: sum (1 - (1 - fresh lr a)^K)(b - x) = 0."""
    a, b = torch.tensor([1.0, 2, 4]).double(), torch.tensor([-1.0, 0, 3]).double()
    fed = run(quadratics(b, a), FedCm(train=steps(5, 0.1), schedule=ALL, fresh=0.5), 80)
    pull = 1 - (1 - 0.05 * a) ** 5
    assert fed.state["model"].item() == pytest.approx(((pull * b).sum() / pull.sum()).item(), abs=1e-6)
    assert fed.state["momentum"].item() == pytest.approx(0, abs=1e-5)


def test_a_rate_of_zero_leaves_the_model_and_no_momentum():
    fed = run(quadratics([8.0, 2.0]), FedCm(train=steps(3, 0.0), schedule=ALL), 2)
    assert (fed.state["model"].item(), fed.state["momentum"].item()) == (0, 0)


def test_model_and_momentum_travel_down_and_one_number_more_up():
    task, train = classification([7, 11, 9]), Train(steps=2, batch=4, lr=Constant(0.1))
    plain, ours = (run(task, strategy(train=train, schedule=ALL), 0) for strategy in (FedAvg, FedCm))
    assert ours.down_bytes - plain.down_bytes >= 4 * task.layout.size
    assert 4 <= ours.flight.up_bytes - plain.flight.up_bytes < 4 * task.layout.size
