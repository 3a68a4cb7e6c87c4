"""FedAvgM, FedAdagrad, FedAdam and FedYogi by hand, and what they reduce to."""

from math import sqrt

import pytest
import torch
from launch import TEXT, refused, write
from tools import classification, inbox, models, quadratics, quick, steps

from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedadagrad import FedAdagrad
from strategies.fedadam import FedAdam
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedyogi import FedYogi

TASK = quadratics([0.0, 0.0])
ADAPTIVE = [FedAdagrad, FedAdam, FedYogi]


def served(strategy, *updates):
    """The server's models after mean updates, one a round, from 0; and its last state."""
    state = strategy.start(torch.zeros(1, 1, dtype=torch.float64), TASK)
    found = []
    for update in updates:
        state = strategy.merge(state, inbox([0.75, 0.25], update=[update - 1, update + 3]))  # by samples: `update`
        found.append(state["model"].item())
    return found, state


def test_momentum_keeps_a_part_of_the_last_step():
    # m: 4, 2 + 2 = 4, 2 - 1 = 1
    found, state = served(FedAvgM(momentum=0.5, server_lr=0.25), 4, 2, -1)
    assert found == [1, 2, 2.25] and state["momentum"].item() == 1


def test_without_momentum_it_is_fedavg_in_bits():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    settings = {"train": train, "schedule": Rounds(Count(2)), "server_lr": 0.7}
    assert torch.equal(models(quick(task, FedAvg(**settings), 4)), models(quick(task, FedAvgM(momentum=0, **settings), 4)))


@pytest.mark.parametrize(
    ("method", "second"),
    [
        (FedAdagrad, [16 + 1, 17 + 9]),  # v_0 = tau^2 = 16
        (FedAdam, [0.75 * 16 + 0.25, 0.75 * 12.25 + 0.25 * 9]),
        (FedYogi, [16 - 0.25, 15.75 - 0.25 * 9]),
    ],
)
def test_two_rounds_by_hand(method, second):
    # updates 1 and -3, m: (1 - 0.5) x 1 = 0.5, then 0.25 - 1.5 = -1.25; no correction of either moment
    strategy = method(server_lr=2, momentum=0.5, tau=4, **({} if method is FedAdagrad else {"decay": 0.75}))
    found, state = served(strategy, 1, -3)
    first = 2 * 0.5 / (sqrt(second[0]) + 4)
    assert found == pytest.approx([first, first + 2 * -1.25 / (sqrt(second[1]) + 4)], rel=1e-15)
    assert state["v"].item() == second[1] and state["m"].item() == -1.25


def test_yogi_grows_where_the_update_is_larger_than_what_it_knows():
    # v_0 = 1, D^2 = 4: 1 + 0.25 x 4
    assert served(FedYogi(decay=0.75, tau=1), 2)[1]["v"].item() == 2
    assert served(FedYogi(decay=0.75, tau=1), 1)[1]["v"].item() == 1  # sign(0) = 0


@pytest.mark.parametrize("method", ADAPTIVE)
def test_defaults_are_the_papers(method):
    strategy = method()
    assert (strategy.momentum, strategy.tau, strategy.weights) == (0.9, 1e-3, "samples")
    assert strategy.start(torch.zeros(1, 3), TASK)["v"].tolist() == [[pytest.approx(1e-6)] * 3]
    assert method is FedAdagrad or strategy.decay == 0.99


def test_fedspeeds_frame_can_be_written():
    # eps = 0.01, v_0 = 0, uniform: D = 2 has m = 0.2, v = 0.04
    state = served(FedAdam(tau=0.01, first_square=0, weights="uniform", server_lr=0.1), 1)[1]
    assert state["v"].item() == pytest.approx(0.04) and state["model"].item() == pytest.approx(0.1 * 0.2 / 0.21)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_large_tau_is_fedavgm_of_a_smaller_rate(method):
    strategy, task = method(tau=1e9, server_lr=1e9, first_square=0, train=steps(3, 0.1)), quadratics([1.0, -2, 4], [1.0, 2, 3])
    other = FedAvgM(server_lr=0.1, train=steps(3, 0.1))
    assert torch.allclose(models(quick(task, strategy, 5)), models(quick(task, other, 5)), rtol=1e-8)


@pytest.mark.parametrize("method", [FedAvgM, *ADAPTIVE])
def test_the_fixed_point_is_fedavgs(method):
    task = quadratics([-1.0, 0, 3], [1.0, 2, 4], [1, 2, 5])
    settings = {"train": steps(6, 0.1), "schedule": Rounds(Count())}
    fixed = models(quick(task, FedAvg(**settings), 90))[-1].item()
    strategy = (
        method(**settings, momentum=0.3, server_lr=1.0) if method is FedAvgM else method(**settings, momentum=0.3, tau=1.0, server_lr=1.5)
    )
    assert models(quick(task, strategy, 90))[-1].item() == pytest.approx(fixed, abs=1e-9)


def test_a_round_without_updates_leaves_the_moments():
    state = served(FedAdam(), 1)[1]
    assert FedAdam().merge_nothing(state) is state


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_a_server_that_does_not_step_is_refused(folder, name):
    text = TEXT.replace("strategy: fedavg", f"strategy: {{name: {name}, server_lr: 0}}")
    assert "strategy.server_lr: `0`: above 0 is due" in refused("run", write(folder, text).name)
