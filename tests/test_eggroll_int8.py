"""EGGROLL on whole numbers: oracles of the specification."""

from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
from tools import classification, inbox, models, quick, steps
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Layout
from fedsim.codecs import Identity
from fedsim.method.population import Population
from fedsim.models.integer import IntegerLinear, IntegerMlp, saturated
from fedsim.settings.values import Constant
from fedsim.task.loss import ErrorRate
from fedsim.task.task import Task
from strategies.eggroll_int8 import EggrollInt8, IntegerNoise
from strategies.fedavg import FedAvg


def whole(x: Tensor) -> bool:
    return bool((x == x.round()).all() and (x.abs() <= 127).all())


def layer(weight: list[list[float]]) -> IntegerLinear:
    found = IntegerLinear(len(weight[0]), len(weight))
    found.weight.data = torch.tensor(weight, dtype=torch.float32)
    return found


def test_a_layer_by_hand() -> None:
    # 4 inputs: divided by 16 x 2; 100 - 20 + 6 - 3 = 83 -> 2; -83 -> -3 (rounded down); 127 x 20 / 32 = 79.4 -> 79; 2016 -> 127
    one = layer([[10, -5, 2, -1], [-10, 5, -2, 1], [127, 127, 127, 127]])
    assert one(torch.tensor([[10.0, 4, 3, 3]])).tolist() == [[2, -3, 79]]
    assert one(torch.full((1, 4), 127.0)).tolist()[0][2] == 127


def test_a_member_by_hand() -> None:
    # x W' = 64; x B A' / 16 = 16 x 40 x 16 / 16 = 640; one input: divided by 16
    perturbed: Any = layer([[4.0], [4.0]]).perturbed(1)
    perturbed.a.data, perturbed.b.data = torch.tensor([[16.0], [-16.0]]), torch.tensor([[40.0]])
    assert perturbed(torch.tensor([[16.0]])).tolist() == [[(64 + 640) // 16, (64 - 640) // 16]]


def test_noise_is_normal_in_steps_of_a_sixteenth() -> None:
    a, b = IntegerNoise(Layout({"w": (3, 4)}), 1).factors("w", fold(5, torch.arange(20_000)))
    assert a.shape == (20_000, 3, 1) and b.shape == (20_000, 4, 1)
    numbers = torch.cat([a, b], 1).flatten().double()
    assert whole(numbers) and abs(numbers.mean()) < 0.2
    assert (numbers**2).mean() == pytest.approx(256, rel=0.02)
    assert (numbers > 16).double().mean() == pytest.approx(1 - NormalDist().cdf(16.5 / 16), abs=0.005)
    assert abs((a[:, 0] * b[:, 0]).mean()) < 4


def alike(nodes: int, samples: int = 24) -> Task:
    """All machines have the same samples."""
    task = integer(classification([samples], model=IntegerMlp(hidden=(5,)).build((6,), 3)))
    return replace(task, samples=torch.arange(samples).repeat(nodes), starts=torch.arange(nodes + 1) * samples)


def integer(task: Task) -> Task:
    first = saturated((16 * task.init).round())
    return replace(task, init=first, loss=ErrorRate())


def test_weights_move_by_one_at_most_and_stay_in_eight_bits() -> None:
    fed = quick(alike(2), EggrollInt8(population=16, batch="all", shift=1, alpha=Constant(0.9)), 12)
    found = models(fed)
    assert whole(found)
    assert found.diff(dim=0).abs().max() == 1
    task = alike(1)
    at_the_end = replace(task, init=torch.full_like(task.init, 127.0))
    assert quick(at_the_end, EggrollInt8(population=16, batch="all", shift=0, alpha=Constant(1.0)), 3).state["model"].max() <= 127


def test_an_entry_moves_where_its_sum_is_further_from_zero_than_chance() -> None:
    # 4 pairs; alpha 0.3: floor(16 x 1.036) = 16, so |Z| >= 16 x 2 x 256 / 16 = 512
    strategy, layout = EggrollInt8(population=8, alpha=Constant(0.3)), Layout({"w": (3, 4)})
    news = replace(inbox([1.0], better=[[1.0, -1, 0, 1]]), layout=layout)
    a, b = IntegerNoise(layout, 1).factors("w", strategy.keys(news.shared, news.sender)[0])
    z = sum(f * torch.outer(a[k, :, 0], b[k, :, 0]) for k, f in enumerate((1, -1, 0, 1)))
    assert isinstance(z, Tensor)
    after = strategy.merge({"model": torch.zeros(1, 12)}, news)["model"]
    assert torch.equal(after.view(3, 4), z.sign() * (z.abs() >= 512))
    assert 0 < (after != 0).sum() < 12


def test_so_many_move_by_chance_as_alpha_says() -> None:
    layout = Layout({"w": (60, 60)})
    news = replace(inbox([1.0], better=torch.randint(0, 2, (1, 400), generator=torch.Generator().manual_seed(1)) * 2 - 1), layout=layout)
    moved = EggrollInt8(population=800, alpha=Constant(0.2)).merge({"model": torch.zeros(1, 3600)}, news)["model"].abs().mean()
    assert moved == pytest.approx(0.2, abs=0.02)


def test_the_order_of_pairs_and_the_type_of_sums_change_no_bit() -> None:
    noise, key = IntegerNoise(Layout({"w": (7, 9)}), 1), fold(3, torch.arange(500))
    better = torch.randint(-1, 2, (500,), generator=torch.Generator().manual_seed(0))
    z = noise.sum(key, better.double())
    order = torch.arange(500).flip(0)
    assert torch.equal(z, noise.sum(key[order], better[order].double()))
    a, b = (part[..., 0].long() for part in noise.factors("w", key))
    assert torch.equal(z.long().view(7, 9), (a * better[:, None]).T @ b)


def test_members_on_many_machines_are_members_on_one_bit_by_bit() -> None:
    many = quick(alike(4), EggrollInt8(population=8, batch="all", shift=2), 4)
    assert many.ledger.bytes_up == 4 * 4 * 1
    # a pair without a winner is decided by the sender's own lot; without a codec it counts for nothing, and all is equal
    one, many = (quick(alike(n), EggrollInt8(population=32 // n, batch="all", shift=2, uplink=Identity()), 4) for n in (1, 4))
    assert torch.equal(models(one), models(many))
    assert not torch.equal(models(one)[0], models(one)[-1])


def test_fitness_counts_errors() -> None:
    task = alike(1)
    weight = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0])
    outputs, targets = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 2, 1, 2])
    assert EggrollInt8().loss(task, outputs, targets, weight).item() == 2


def test_members_are_judged_as_their_whole_numbers_say() -> None:
    task = alike(1)
    noise, key = IntegerNoise(task.layout, 1), fold(2, torch.arange(3))
    seen: list[Tensor] = []

    def loss(outputs: Tensor) -> Tensor:
        seen.append(outputs)
        return outputs.square().sum()

    found = Population(task.model, noise).losses(task.init, key, 0.25, task.inputs, loss)
    assert found.shape == (3, 2) and torch.equal(found, found.round()) and not torch.equal(found[:, 0], found[:, 1])


def test_it_learns() -> None:
    task = integer(classification([60, 60], model=IntegerMlp(hidden=()).build((6,), 3)))
    fed = quick(task, EggrollInt8(population=64, batch="all", shift=1, alpha=Constant(0.3)), 25)

    def right(x: Tensor) -> float:
        outputs = torch.func.functional_call(task.model, task.layout.views(x), (task.test_inputs,))
        return (outputs.argmax(1) == task.test_targets).float().mean().item()

    assert right(models(fed)[-1, 0]) > 0.7 > right(task.init) + 0.1


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(SettingError, match=r"task\.model: has `weight`, which is no integer layer's; `eggroll_int8` needs"):
        quick(classification([12]), EggrollInt8(), 1)
    with pytest.raises(SettingError, match=r"strategy\.alpha: 1\.5 is no share above 0"):
        EggrollInt8(alpha=Constant(1.5))
    with pytest.raises(SettingError, match="train: `eggroll_int8` does not train"):
        EggrollInt8(train=steps(2))
    task = replace(alike(1), loss=classification([3]).loss)
    with pytest.raises(SettingError, match=r"task\.model: has layers of whole numbers, without a gradient, and `fedavg` descends along it"):
        quick(task, FedAvg(train=steps()), 1)
