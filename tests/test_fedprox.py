import pytest
import torch
from tools import classification, models, quadratics, steps
from tools import quick as run

from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg
from strategies.fedprox import FedProx

ALL = Rounds(cohort=Count())


def test_without_pull_it_is_fedavg_in_bits():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4, momentum=0.5)
    first, second = (
        run(task, strategy, 3)
        for strategy in (FedAvg(train=train, schedule=Rounds(Count(2))), FedProx(train=train, schedule=Rounds(Count(2)), pull=0))
    )
    assert torch.equal(models(first), models(second))


def test_two_steps_by_hand():
    # F = (x - 8)^2 / 2, pull 1/2, lr 1/2, from 0: x1 = 8/2 = 4, x2 = 4 - ((4 - 8) + 4/2) / 2 = 5
    strategy = FedProx(train=steps(2, 0.5), schedule=ALL, pull=0.5)
    assert run(quadratics([8.0]), strategy, 1).state["model"].tolist() == [[5]]


@pytest.mark.parametrize("pull", [0.0, 0.3, 2.0])
def test_fixed_point_on_quadratics(pull):
    """A job goes the part (1 - (1 - eta (a + mu))^K) of the way to the proximal point, which lies a / (a + mu) of the way to b."""
    a, b, p = torch.tensor([1.0, 2, 4]).double(), torch.tensor([-1.0, 0, 3]).double(), torch.tensor([0.125, 0.25, 0.625]).double()
    weight = p * a / (a + pull) * (1 - (1 - 0.1 * (a + pull)) ** 6)
    x = models(run(quadratics(b, a, [1, 2, 5]), FedProx(train=steps(6, 0.1), schedule=ALL, pull=pull), 80))[:, 0, 0]
    fixed = (weight * b).sum() / weight.sum()
    assert x[-1].item() == pytest.approx(fixed.item(), abs=1e-13)
    assert torch.allclose(x[1:9] - fixed, (1 - weight.sum()) * (x[:8] - fixed), rtol=1e-10, atol=1e-14)


def test_local_training_to_the_end_reaches_the_proximal_point():
    # argmin of 4/2 (x - 3)^2 + 2/2 x^2 = 4 x 3 / (4 + 2)
    fed = run(quadratics([3.0], 4.0), FedProx(train=steps(200, 0.1), schedule=ALL, pull=2.0), 1)
    assert fed.state["model"].item() == pytest.approx(2, abs=1e-14)


def test_a_strong_pull_keeps_clients_near_the_server():
    task = classification([7, 11, 9])
    way = [models(run(task, FedProx(train=steps(10, 0.1), schedule=ALL, pull=pull), 1)).diff(dim=0).norm() for pull in (0.0, 1.0, 9.0)]
    assert way[0] > 1.3 * way[1] > 3 * way[2]
