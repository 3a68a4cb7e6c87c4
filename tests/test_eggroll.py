"""EGGROLL: oracles of the specification."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tools import classification, models, quadratics, quick, steps
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Layout
from fedsim.codecs.scalar import SignBit
from fedsim.method.population import Noise, Population
from fedsim.settings.values import Constant
from fedsim.task.loss import ErrorRate
from strategies.eggroll import Eggroll, ranks
from strategies.fedavg import FedAvg

MATRIX = Layout({"w": (3, 4)})


def keys(count: int) -> Tensor:
    return fold(5, torch.arange(count))


@pytest.mark.parametrize("rank", [1, 2, 4, None])
def test_noise_has_mean_zero_and_unit_covariance_whatever_the_rank(rank: int | None) -> None:
    p = Noise(MATRIX, rank).whole("w", keys(20_000)).flatten(1).double()
    assert p.mean(0).abs().max() < 0.04
    assert (p.T @ p / len(p) - torch.eye(12)).abs().max() < 0.08
    fourth = 3.0 if rank is None else 3 + 6 / rank
    assert (p**4).mean().item() == pytest.approx(fourth, rel=0.06)


def test_a_member_has_the_rank_and_the_update_at_most_that_of_its_pairs() -> None:
    noise, layout = Noise(Layout({"w": (8, 9)}), 2), Layout({"w": (8, 9)})
    assert torch.linalg.matrix_rank(noise.whole("w", keys(3))).tolist() == [2, 2, 2]
    assert torch.linalg.matrix_rank(layout.views(noise.sum(keys(3), torch.ones(3)))["w"]) == 6


def test_a_sum_is_that_of_the_formed_noise() -> None:
    layout = Layout({"w": (3, 4), "b": (3,)})
    noise, weight = Noise(layout, 2), torch.tensor([1.0, -2, 0.5])
    formed = torch.cat([noise.whole(name, keys(3)).flatten(1) for name in layout.names], 1)
    assert torch.allclose(noise.sum(keys(3), weight), weight @ formed, atol=1e-5)


class Embedded(nn.Module):
    """A matrix in a linear layer, one that is looked up, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.table(x).tanh().mean(1))
        return out


@pytest.mark.parametrize("rank", [1, 3, None])
@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), nn.Linear(6, 3), Embedded()])
def test_members_are_judged_as_if_their_noise_were_formed(model: nn.Module, rank: int | None) -> None:
    layout, tokens = Layout.of(model), isinstance(model, Embedded)
    x = layout.join({name: p.detach() for name, p in model.named_parameters()})
    inputs = torch.arange(12).view(4, 3) % 7 if tokens else torch.linspace(-1, 1, 24).view(4, 6)
    noise = Noise(layout, rank)
    found = Population(model, noise).losses(x, keys(3), 0.3, inputs, lambda out: out.square().sum())
    for pair in range(3):
        p = layout.join({name: noise.whole(name, keys(3))[pair] for name in layout.names})
        for place, sign in enumerate((1, -1)):
            member = layout.views(x + sign * 0.3 * p)
            assert found[pair, place].item() == pytest.approx(functional_call(model, member, (inputs,)).square().sum().item(), rel=1e-4)


def test_a_linear_fitness_gives_its_gradient_on_average() -> None:
    c = torch.linspace(-1, 1, 12).double()
    noise, pairs = Noise(MATRIX, 1), keys(40_000)
    p = noise.whole("w", pairs).flatten(1).double()
    assert torch.allclose(noise.sum(pairs, p @ c) / len(pairs), c, atol=0.05)


def settings(**changes: Any) -> Any:
    return Eggroll(**{"population": 16, "batch": "all", "lr": Constant(0.5), **changes})


def test_a_pair_of_a_quadratic_sees_only_the_slope() -> None:
    # a/2 |w - b|^2 at 0 has R+ - R- = 2 sigma a b.p: what is quadratic cancels, for any sigma; the mean over pairs is a (p.b) p
    task, b = quadratics([[1.0, -2, 3]], 2.0), torch.tensor([1.0, -2, 3]).double()
    small, large = (quick(task, settings(sigma=sigma), 1).state["model"][0] for sigma in (0.01, 3.0))
    assert torch.allclose(small, large, rtol=1e-6)
    p = Noise(task.layout, 1).whole("w", fold(fold(0, "shared", 0), "pair", torch.arange(8))).double()
    assert torch.allclose(small, 0.5 * (2 * (p @ b)[:, None] * p).mean(0), rtol=1e-6)


def test_the_codes_step_is_the_textbooks_with_another_rate() -> None:
    # alpha = lr sigma^2 sqrt(N)
    task = classification([12])
    code = quick(task, settings(step="code", sigma=0.2, lr=Constant(0.5)), 2)
    textbook = quick(task, settings(sigma=0.2, lr=Constant(0.5 * 0.2**2 * 16**0.5)), 2)
    assert torch.allclose(code.state["model"], textbook.state["model"], atol=1e-5)


@pytest.mark.parametrize("shaping", ["none", "zscore", "ranks", "sign"])
def test_equal_members_move_nothing(shaping: str) -> None:
    task = quadratics([[1.0, 2.0]], 0.0)  # its loss is 0 everywhere
    fed = quick(task, settings(shaping=shaping), 2)
    assert torch.equal(fed.state["model"], task.init[None])


def test_scores_do_not_depend_on_the_fitness_scale() -> None:
    one, other = (quick(quadratics([[1.0, -2]], a), settings(shaping="zscore", sigma=1.0), 1) for a in (1e3, 7e4))
    assert torch.allclose(one.state["model"], other.state["model"], rtol=1e-6)


@pytest.mark.parametrize("uplink", [{}, {"uplink": SignBit(), "shaping": "sign"}])
def test_members_on_many_machines_are_members_on_one(uplink: dict[str, Any]) -> None:
    def alike(nodes: int) -> Any:
        task = classification([12])
        return replace(task, samples=torch.arange(12).repeat(nodes), starts=torch.arange(nodes + 1) * 12)

    one = quick(alike(1), settings(population=16, **uplink), 3)
    many = quick(alike(4), settings(population=4, **uplink), 3)
    assert torch.allclose(models(one), models(many), atol=1e-5)
    assert many.ledger.bytes_up == (3 * 4 if uplink else many.flight.up_bytes * 12)


def test_accuracy_itself_is_an_objective() -> None:
    task = replace(classification([60, 60]), loss=ErrorRate())
    fed = quick(task, settings(population=64, lr=Constant(1.0), uplink=SignBit(), shaping="sign", sigma=0.1), 15)
    parts = task.layout.views(models(fed)[[0, -1], 0])
    right = (torch.einsum("nf,mcf->mnc", task.test_inputs, parts["weight"]) + parts["bias"][:, None]).argmax(2) == task.test_targets
    before, after = right.float().mean(1).tolist()
    assert after > 0.8 > before
    with pytest.raises(SettingError, match=r"task\.loss: `error_rate` has no gradient, and `fedavg` descends along it"):
        quick(task, FedAvg(train=steps()), 1)


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(SettingError, match="5 members make no pairs"):
        Eggroll(population=5)
    with pytest.raises(SettingError, match="train: `eggroll` does not train"):
        Eggroll(train=steps(2))


def test_ranks_by_hand() -> None:
    # in rising order -3, 1, 1, 7: places 0, 1.5, 1.5, 3 of 3
    found = ranks(torch.tensor([[[7.0, 1.0], [-3.0, 1.0]]]))
    assert torch.allclose(found, torch.tensor([[[0.5, 0.0], [-0.5, 0.0]]]))


def test_ranks_depend_on_the_order_alone() -> None:
    one, other = (quick(quadratics([[1.0, -2]], a), settings(shaping="ranks", sigma=1.0), 1) for a in (0.1, 7e4))
    assert torch.equal(one.state["model"], other.state["model"])
    assert one.state["model"].abs().max() > 0
