"""FedLEx: what explorers measure, how G is made of it, and what guided training can and can't reach."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launch import call, refused, resumed, same, simulate, write
from tools import Bowl, OutputLoss, classification, durations, events, federation, inbox, models, quadratics, steps
from tools import quick as run
from torch import Tensor, nn

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout
from fedsim.codecs import row_bytes
from fedsim.schedule import Buffered, Gossip, Rounds, Ticks
from fedsim.settings.values import Count
from fedsim.task.task import Task
from strategies.fedavg import FedAvg
from strategies.fedlex import FedLex, min_max
from strategies.fedprox import FedProx

ALL = Rounds(cohort=Count())
LAYOUT = Layout({"w": (2, 2), "b": (3,), "scale": (1,)})


class Diagonal(Bowl):
    """1/2 sum_c a_c (w_c - b_c)^2 of a sample (a, b), each half of the columns."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return 0.5 * (a * (self.w - b).square()).sum(-1)


def diagonals(a: list[list[float]], b: list[list[float]], first: list[float]) -> Task:
    """Node i has F_i(w) = 1/2 sum_c a_ic (w_c - b_ic)^2, as one sample."""
    x = torch.tensor([[*one, *other] for one, other in zip(a, b, strict=True)], dtype=torch.float64)
    y, model = torch.zeros(len(x), dtype=torch.float64), Diagonal(len(first))
    init = torch.tensor(first, dtype=torch.float64)
    return Task(x, y, torch.arange(len(x)), torch.arange(len(x) + 1), x, y, None, model, Layout.of(model), init, OutputLoss(), 0)


A, B, FIRST = (
    [[1.0, 2.0, 0.5, 4.0], [2.0, 1.0, 1.0, 3.0], [0.5, 1.0, 2.0, 1.0]],
    [[3.0, 1, -1, 2], [1, -2, 0, 2], [0, 4, 1, 1]],
    [1.0, 0, 0, 2],
)


def closed(a: Tensor, b: Tensor, w: Tensor, k: int, eta: float) -> Tensor:
    """(theta - w)^2 after k steps: ((1 - (1 - eta a)^k) (b - w))^2."""
    return ((1 - (1 - eta * a) ** k) * (b - w)).square()


# G from D


def test_guidance_by_hand_and_tensor_by_tensor():
    # w: (1, 3, 5, 9) from 1 over a range of 8; b: (2, 0, 1) over 2; a tensor of one number is not guided
    spread = torch.tensor([[1.0, 3, 5, 9, 2, 0, 1, 7]])
    assert min_max(spread, LAYOUT).tolist() == [[0, 0.25, 0.5, 1, 1, 0, 0.5, 1]]


def test_a_tensor_that_moves_all_alike_is_not_guided():
    assert min_max(torch.zeros(1, 8), LAYOUT).tolist() == [[1.0] * 8]
    assert min_max(torch.tensor([[0.0, 0, 0, 1, 5, 5, 5, 0]]), LAYOUT).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


@given(st.lists(st.integers(0, 1000), min_size=8, max_size=8), st.integers(1, 50), st.integers(0, 50))
@settings(max_examples=25)
def test_guidance_lies_in_0_to_1_and_ignores_scale_and_offset(values, scale, offset):
    spread = torch.tensor([values], dtype=torch.float64)
    guide = min_max(spread, LAYOUT)
    torch.testing.assert_close(min_max(scale * spread + offset, LAYOUT), guide, rtol=1e-12, atol=1e-12)
    for name, part in LAYOUT.views(guide).items():
        moved = LAYOUT.views(spread)[name]
        assert (part.min(), part.max()) == ((0, 1) if moved.min() < moved.max() else (1, 1))


def explored(updates: list[list[float]], **changes: object) -> dict[str, Tensor]:
    strategy, task = FedLex(**changes), quadratics([[0.0] * 4])
    return strategy.merge(strategy.start(torch.zeros(1, 4).double(), task), inbox([1 / len(updates)] * len(updates), update=updates))


def test_guidance_ignores_the_order_of_explorers_and_their_common_scale():
    updates = [[1.0, -2, 0, 3], [0, 1, 1, -1], [2, 2, 0.5, 0]]
    guide = explored(updates)["G"]
    torch.testing.assert_close(explored(updates[::-1])["G"], guide)
    torch.testing.assert_close(explored([[-3 * one for one in row] for row in updates])["G"], guide)


def test_the_root_is_taken_after_the_mean():
    # sums of squares (0, 1, 4, 16): G = D / 16, or sqrt(D) / 4
    updates = [[0.0, 1, 2, 4]]
    assert explored(updates)["G"].tolist() == [[0, 1 / 16, 1 / 4, 1]]
    assert explored(updates, deviation="root")["G"].tolist() == [[0, 1 / 4, 1 / 2, 1]]


# Explorers


@pytest.mark.parametrize("eta", [0.25, 0.125])
def test_one_explorer_and_one_step_give_the_squared_gradient_whatever_the_rate(eta):
    # gradients a (w - b): 1 x (1 - 3) = -2, 2 x (0 - 1) = -2, 0.5 x (0 + 1) = 0.5, 4 x (2 - 2) = 0; squares 4, 4, 0.25, 0
    fed = run(diagonals(A[:1], B[:1], FIRST), FedLex(train=steps(1, eta), schedule=ALL), 1)
    assert (fed.state["spread"] / eta**2).tolist() == [[4, 4, 0.25, 0]]
    assert fed.state["G"].tolist() == [[1, 1, 0.0625, 0]]


@pytest.mark.parametrize("k", [1, 5, 400])
def test_deviations_on_quadratics_have_their_closed_form(k):
    a, b, w = (torch.tensor(rows, dtype=torch.float64) for rows in (A, B, FIRST))
    spread = closed(a, b, w, k, 0.1).mean(0)
    if k == 400:  # explorers at their minima
        torch.testing.assert_close(spread, (b - w).square().mean(0))
    fed = run(diagonals(A, B, FIRST), FedLex(train=steps(k, 0.1), schedule=ALL), 1)
    torch.testing.assert_close(fed.state["spread"][0] / 3, spread, rtol=1e-11, atol=0)
    torch.testing.assert_close(fed.state["G"][0], (spread - spread.min()) / (spread.max() - spread.min()), rtol=1e-11, atol=1e-15)


def test_explorers_all_start_at_w_base_and_the_server_stays_there():
    """Deviations of each explorer alone add up to those of all: none sees what another did, nor is the server's model moved."""
    task, train = classification([7, 11, 9]), steps(5, 0.3, batch=4)
    whole = run(task, FedLex(train=train, schedule=ALL), 1)
    assert torch.equal(whole.state["model"][0], task.init)
    alone = torch.zeros_like(task.init)
    free = run(task, FedAvg(train=train, schedule=ALL), 0)
    free.send(torch.arange(3).numpy())
    came = free.receive()
    news = free.inbox(came, free.flight.taken(came.slot), None)
    for update in news["update"]:
        alone += update.square()
    torch.testing.assert_close(whole.state["spread"][0], alone, rtol=1e-5, atol=1e-12)
    assert not torch.allclose(news["update"][0], news["update"][1])


def test_guidance_comes_from_the_explorers_data_and_not_from_the_first_model():
    here, there = (run(diagonals(A, b, FIRST), FedLex(train=steps(2), schedule=ALL), 1).state["G"] for b in (B, [row[::-1] for row in B]))
    assert not torch.allclose(here, there)


def test_several_rounds_of_exploration_gather_their_cohorts():
    task = diagonals(A, B, FIRST)
    a, b, w = (torch.tensor(rows, dtype=torch.float64) for rows in (A, B, FIRST))
    fed = run(task, FedLex(train=steps(2), schedule=Rounds(Count(1)), exploration=4), 3)
    assert fed.state["G"].tolist() == [[1] * 4]  # not yet
    assert torch.equal(fed.state["model"][0], task.init)
    fed = run(task, FedLex(train=steps(2), schedule=Rounds(Count(1)), exploration=4), 4)
    asked = events(fed, "dispatch")["node"].tolist()
    assert len(asked) == 4
    spread = closed(a, b, w, 2, 0.1)[asked].sum(0)
    torch.testing.assert_close(fed.state["spread"][0], spread)
    torch.testing.assert_close(fed.state["G"], min_max(spread[None], task.layout))


def test_a_round_without_news_explores_nothing():
    strategy, task = FedLex(), quadratics([[0.0] * 4])
    state = strategy.merge_nothing(strategy.start(torch.zeros(1, 4).double(), task))
    assert state["merges"].item() == 0


# Guided training


def guided(strategy: FedLex, task: Task, guide: Tensor, rounds: int) -> Tensor:
    """[rounds + 1, d]: models from the first one on under a given G, as after an exploration."""
    fed = federation(task, strategy, rounds, plan="looped")
    fed.state |= {"G": guide.clone()[None], "merges": torch.ones_like(fed.state["merges"])}
    fed.run()
    return models(fed)[:, 0]


def test_guidance_of_1_is_the_base_method_in_bits():
    """With momentum, so that FedAvg takes its steps the same way and not within the product that makes the slope."""
    task, schedule = classification([7, 11, 9, 13]), Rounds(Count(2))
    train, ones = steps(5, 0.1, batch=4, momentum=0.5), torch.ones_like(task.init)
    expected = models(run(task, FedAvg(train=train, schedule=schedule), 4))[:, 0]
    assert torch.equal(guided(FedLex(train=train, schedule=schedule, beta=0), task, ones, 4), expected)
    expected = models(run(task, FedProx(train=train, schedule=schedule, pull=0.5), 4))[:, 0]
    assert torch.equal(guided(FedLex(train=train, schedule=schedule, beta=0, pull=0.5), task, ones, 4), expected)
    expected = models(run(task, FedLex(train=train, schedule=schedule, exploration=0), 4))[:, 0]
    assert torch.equal(guided(FedLex(train=train, schedule=schedule), task, ones, 4), expected)


def test_guidance_of_0_moves_nothing():
    task = classification([7, 11, 9])
    path = guided(FedLex(train=steps(5, 0.1, batch=4), schedule=ALL), task, torch.zeros_like(task.init), 3)
    assert torch.equal(path, task.init.expand(4, -1))


def test_each_coordinate_contracts_by_its_own_guidance():
    """One client, beta 0: k steps leave (1 - eta G_c a_c)^k of the distance in each coordinate; with pull, toward the proximal point."""
    task, G = diagonals(A[:1], B[:1], FIRST), torch.tensor([1.0, 0.25, 0.5, 0.0]).double()
    a, b, w = (torch.tensor(row, dtype=torch.float64) for row in (A[0], B[0], FIRST))
    path = guided(FedLex(train=steps(3, 0.1), schedule=ALL, beta=0), task, G, 4)
    for round, model in enumerate(path):
        torch.testing.assert_close(model - b, (1 - 0.1 * G * a) ** (3 * round) * (w - b), rtol=1e-12, atol=1e-14)
    held = guided(FedLex(train=steps(3, 0.1), schedule=ALL, beta=0, pull=2.0), task, G, 1)[1]
    near = (a * b + 2 * w) / (a + 2)
    torch.testing.assert_close(held - near, (1 - 0.1 * G * (a + 2)) ** 3 * (w - near), rtol=1e-12, atol=1e-14)


def test_what_is_frozen_stays_and_the_rest_reaches_the_constrained_optimum():
    """One full step a round: w_c -> sum_i a_ic b_ic / sum_i a_ic where G_c > 0, the first model's number where G_c = 0."""
    task, G = diagonals(A, B, FIRST), torch.tensor([1.0, 0.25, 0.0, 0.5]).double()
    a, b = torch.tensor(A).double(), torch.tensor(B).double()
    last = guided(FedLex(train=steps(1, 0.4), schedule=ALL, beta=0), task, G, 250)[-1]
    expected = torch.where(G > 0, (a * b).sum(0) / a.sum(0), torch.tensor(FIRST).double())
    torch.testing.assert_close(last, expected, rtol=1e-10, atol=1e-12)


def test_a_gradient_is_masked_before_it_is_clipped():
    # gradient (-2, -2, 0.5, 0) masked by (0, 1, 1, 1): (0, -2, 0.5, 0), cut to length 1 in its own direction
    task, G = diagonals(A[:1], B[:1], FIRST), torch.tensor([0.0, 1, 1, 1]).double()
    moved = guided(FedLex(train=steps(1, 0.5, clip=1.0), schedule=ALL, beta=0), task, G, 1)[1] - task.init
    masked = torch.tensor([0.0, 2, -0.5, 0]).double()
    torch.testing.assert_close(moved, 0.5 * masked / masked.norm())


def test_weight_decay_is_not_masked():
    task = diagonals(A[:1], B[:1], FIRST)
    path = guided(FedLex(train=steps(1, 0.5, weight_decay=0.5), schedule=ALL, beta=0), task, torch.zeros(4).double(), 1)
    torch.testing.assert_close(path[1], 0.75 * task.init)


def test_adam_cancels_a_constant_guidance():
    """With eps 0 and G > 0 guided and unguided Adam walk the same way, because G cancels in m / sqrt(v): plain SGD is what G grades."""
    a, b = torch.tensor(A[0]).double(), torch.tensor(B[0]).double()
    ends = []
    for G in (torch.ones(4).double(), torch.tensor([1.0, 0.5, 0.25, 0.125]).double()):
        w = nn.Parameter(torch.tensor([1.0, 0, 0, 3]).double())
        adam = torch.optim.Adam([w], lr=0.01, eps=0)
        for _ in range(100):
            w.grad = G * (a * (w.detach() - b))
            adam.step()
        ends.append(w.detach())
    torch.testing.assert_close(*ends, rtol=1e-13, atol=0)


# The server


def test_momentum_is_a_running_average_of_steps():
    # mean updates 4 and 8, beta 3/4: v = 1, then 3/4 + 2 = 2.75
    strategy, task = FedLex(beta=0.75, exploration=0), quadratics([0.0])
    state = strategy.merge(strategy.start(torch.zeros(1, 1).double(), task), inbox([0.25, 0.75], update=[1.0, 5.0]))
    state = strategy.merge(state, inbox([0.5, 0.5], update=[4.0, 12.0]))
    assert (state["step"].item(), state["model"].item()) == (2.75, 3.75)


def test_without_exploration_and_momentum_it_is_fedavg_in_bits_and_bytes():
    task, train = classification([7, 11, 9, 13]), steps(5, 0.1, batch=4)
    methods = (FedAvg(train=train, schedule=Rounds(Count(2))), FedLex(train=train, schedule=Rounds(Count(2)), exploration=0, beta=0))
    first, second = (run(task, strategy, 4) for strategy in methods)
    assert torch.equal(models(first), models(second))
    assert first.ledger.totals() == second.ledger.totals()


def test_exploration_and_guidance_are_billed():
    """A round of exploration costs what any round costs, and G travels down with each model: 3 d numbers a job instead of 2 d."""
    task, row = diagonals(A, B, FIRST), torch.zeros(1, 4).double()
    base, guided = (run(task, method(train=steps(2), schedule=ALL), 3).ledger.totals() for method in (FedAvg, FedLex))
    assert base["traffic/bytes_down"] == 9 * row_bytes({"model": row})
    assert guided["traffic/bytes_down"] == 9 * row_bytes({"model": row, "G": row})
    assert guided["traffic/bytes_up"] == base["traffic/bytes_up"]
    assert (guided["work/steps"], guided["work/updates"]) == (base["work/steps"], base["work/updates"]) == (18, 9)


def test_each_round_forms_guidance_from_the_distance_to_w_base():
    """Unguided in the first round; D of a round is that of its clients' models against the first model, whatever was before."""
    strategy, task = FedLex(guidance="each_round", exploration=0, beta=0), quadratics([[0.0] * 4])
    state = strategy.start(torch.zeros(1, 4).double(), task)
    assert state["G"].tolist() == [[1] * 4]
    state = strategy.merge(state, inbox([0.5, 0.5], update=[[2.0, 0, 1, 0], [2.0, 2, 1, 0]]))
    # D (x 2) = (8, 4, 2, 0); w = (2, 1, 1, 0)
    assert state["G"].tolist() == [[1, 0.5, 0.25, 0]]
    state = strategy.merge(state, inbox([1.0], update=[[0.0, -1, 1, 1]]))
    # models (2, 0, 2, 1): D = (4, 0, 4, 1)
    assert state["G"].tolist() == [[1, 0, 1, 0.25]]
    assert state["model"].tolist() == [[2, 0, 2, 1]]


@pytest.mark.parametrize("schedule", [Rounds(Count(2)), Buffered(2, Count(3)), Ticks()], ids=lambda one: one.name)
def test_any_server_schedule_explores_first(schedule):
    fed = run(classification([7, 11, 9, 13]), FedLex(train=steps(2, 0.1), schedule=schedule), 4, durations(1, "1/2", "1/3", 2))
    path = models(fed)[:, 0]
    assert torch.equal(path[0], path[1])
    assert not torch.equal(path[1], path[2])
    assert fed.state["G"].max() == 1
    assert fed.state["G"].min() == 0


def test_peers_have_no_explorers():
    with pytest.raises(SettingError, match="`fedlex` merges at a server"):
        federation(quadratics([1.0, 2, 3]), FedLex(schedule=Gossip()), 1)


def test_the_mean_guidance_is_written_down_tensor_by_tensor():
    task, strategy = classification([4, 5]), FedLex(exploration=1)
    state = strategy.start(task.init[None].clone(), task)
    assert strategy.measure(state, task) == {"guidance": 1, "guidance/weight": 1, "guidance/bias": 1}
    state["G"][:, task.layout.slices["bias"]] = torch.tensor([0.0, 0.25, 0.5])
    assert strategy.measure(state, task) == {"guidance": pytest.approx((18 + 0.75) / 21), "guidance/weight": 1, "guidance/bias": 0.25}
    assert FedLex(exploration=0).measure({}, task) == {}


def test_a_run_writes_the_mean_guidance_down_and_resumes_to_the_same_bits(folder: Path):
    settings = ("strategy=fedlex", "strategy.exploration=2")
    whole = simulate(folder, *settings, into="whole")
    guidance = [record["guidance"] for record in whole.metrics]
    assert guidance[:2] == [1, 1]  # before and during the exploration
    assert 0 < guidance[2] < 1
    assert guidance[2:] == [guidance[2]] * 3
    simulate(folder, *settings, "stop.rounds=1", into="part")
    same(whole, resumed(folder / "part", "stop.rounds=4"))


@pytest.mark.parametrize(
    ("settings_", "key"), [("strategy.beta=1", "beta"), ("strategy.exploration=-1", "exploration"), ("schedule=pairwise", "fedlex")]
)
def test_settings_without_meaning_are_refused(folder: Path, settings_: str, key: str):
    write(folder)
    assert key in refused("run", "small.yaml", "strategy=fedlex", settings_)


def test_explorers_have_no_privacy(folder: Path):
    """Squares of single updates make G, not a mean that noise could hide them in; without exploration there are none."""
    write(folder)
    private = ("run", "small.yaml", "strategy={name: fedlex, weights: uniform}", "privacy={clip: 1, noise: 1, delta: 1e-3}")
    assert "noisy means only" in refused(*private)
    assert call(*private, "strategy.exploration=0").exit_code == 0
