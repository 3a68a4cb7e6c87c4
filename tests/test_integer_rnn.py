"""A recurrent language model of whole numbers: its layers and its loss by hand, the same bits in any order, and what it learns."""

from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tools import models, quick
from torch import Tensor
from torch.func import functional_call

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.partition import Iid
from fedsim.data.text_sources import Tokens as Corpus
from fedsim.method.population import Population
from fedsim.models import Tokens
from fedsim.models.integer import IntegerRnn, IntegerUnit
from fedsim.settings.values import Constant
from fedsim.task.build import build_task
from fedsim.task.losses import IntegerCrossEntropy
from fedsim.task.settings import TaskSettings
from fedsim.task.task import Task
from strategies.eggroll_int8 import EggrollInt8, IntegerNoise
from strategies.fedavg import FedAvg


def test_a_unit_by_hand() -> None:
    # two numbers into one: divided by 16. Place 1: f = 32 + 127, c = 32, h = floor(159 x 32 / 256) = 19.
    # place 2: f = 127 - 19, c = floor(108 x 19 / 256) = 8, h = 19 + floor(108 (8 - 19) / 256) = 19 - 5
    unit: Any = IntegerUnit(1)
    unit.gate.weight.data, unit.candidate.weight.data = torch.tensor([[16.0, -16.0]]), torch.tensor([[16.0, 16.0]])
    assert unit(torch.tensor([[[32.0], [0.0]]])).tolist() == [[[19], [14]]]


def test_the_loss_by_hand() -> None:
    loss = IntegerCrossEntropy()
    assert loss(torch.tensor([[16.0, 0, 0], [16, 0, 0]]), torch.tensor([0, 1])).tolist() == [1, 2]  # log2(2 + 1 + 1) = 2
    assert loss(torch.zeros(1, 2, 8), torch.tensor([[5, -1]])).tolist() == [3]  # of the places with a target
    assert loss(torch.tensor([[127.0, -127]]), torch.tensor([0])).item() == 0
    o = torch.randint(-127, 128, (500, 40), generator=torch.Generator().manual_seed(1)).float()
    exact = (o.double() * np.log(2) / 16).logsumexp(-1) / np.log(2) - o[:, 3].double() / 16
    apart = exact - loss(o, torch.full((500,), 3))
    assert apart.min() > -0.01 and apart.max() < 1 / 16 + 0.01  # rounded down, of powers that are rounded


def by_integers(x: dict[str, Tensor], tokens: Tensor, width: int) -> Tensor:
    """The model in int64."""
    w = {name: one.long() for name, one in x.items()}

    def layer(name: str, given: Tensor, root: int) -> Tensor:
        return (given @ w[name].T).div(16 * root, rounding_mode="floor").clamp(-127, 127)

    root, h, out = int((2 * width) ** 0.5), torch.zeros(len(tokens), width, dtype=torch.int64), list[Tensor]()
    for one in tokens.unbind(1):
        now = w["embedding.weight"].T[one]
        f = layer("units.0.gate.weight", torch.cat([now, h], 1), root) + 127
        c = layer("units.0.candidate.weight", torch.cat([now, (f * h) // 256], 1), root)
        h = h + (f * (c - h)) // 256
        seen = torch.cat([(now + h).clamp(-127, 127), torch.full_like(h[:, :1], 127)], 1)
        out.append(layer("head.weight", seen, int((width + 1) ** 0.5)))
    return torch.stack(out, 1)


def test_it_is_whole_numbers_alone() -> None:
    torch.manual_seed(3)
    model = IntegerRnn(width=6).build(Tokens(9, 11, each=True), 11)
    tokens = torch.randint(0, 11, (5, 9))
    found = model(tokens)
    assert torch.equal(found.long(), by_integers(dict(model.named_parameters()), tokens, 6)) and found.unique().numel() > 20
    last = IntegerRnn(width=6).build(Tokens(9, 11), 2)
    assert last(tokens).shape == (5, 2)
    with pytest.raises(SettingError, match="samples of token numbers are needed"):
        IntegerRnn().build((4,), 2)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Each token tells the next: 1 2 3 4 1 2 3 4 ..., sequences of 8."""
    file = tmp_path_factory.mktemp("text") / "rhyme.npz"
    np.savez(file, tokens=np.tile(np.arange(4), 200))
    settings = TaskSettings(Corpus(str(file), length=8), model=IntegerRnn(width=4), partition=Iid(nodes=2), loss=IntegerCrossEntropy())
    return build_task(settings, 0, {}, Path())


def test_members_and_samples_in_any_order_have_the_same_bits(task: Task) -> None:
    noise, keys, inputs, targets = IntegerNoise(task.layout, 1), fold(2, torch.arange(6)), task.inputs[:12].long(), task.targets[:12]

    def losses(keys: Tensor, at: Tensor) -> Tensor:
        members = Population(task.model, noise)
        return members.losses(task.init, keys, 0.25, inputs[at], lambda out: task.loss(out, targets[at]).sum())

    every = torch.arange(12)
    whole = losses(keys, every)
    assert torch.equal(whole * 16 * 8, (whole * 16 * 8).round()) and len(whole.unique()) > 4
    assert torch.equal(whole, losses(keys.flip(0), every.flip(0)).flip(0))
    assert torch.equal(whole, losses(keys, every[:5]) + losses(keys, every[5:]))


def test_the_next_token_is_learnt_beyond_how_often_each_is(task: Task) -> None:
    fed = quick(task, EggrollInt8(population=64, batch=4, shift=1, alpha=Constant(0.5)), 25)
    found = models(fed)[:, 0]

    def loss(x: Tensor) -> float:
        return float(task.loss(functional_call(task.model, task.layout.views(x), (task.test_inputs.long(),)), task.test_targets).mean())

    assert loss(found[0]) > log2(4) - 0.1 and loss(found[-1]) < 0.75 * log2(4)  # 2 bits: the four are equally frequent
    assert torch.equal(found, found.round()) and found.abs().max() <= 127
    with pytest.raises(SettingError, match=r"task\.loss: `integer_cross_entropy` has no gradient, and `fedavg` descends along it"):
        quick(task, FedAvg(), 1)
