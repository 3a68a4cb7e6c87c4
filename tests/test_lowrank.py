"""PowerSGD: what low rank says exactly, what it leaves out, and the layout of a model."""

from itertools import pairwise

import torch
from tools import classification, quick, steps

from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.codecs import Ef14, PowerSgd, row_bytes
from fedsim.schedule import Rounds
from fedsim.settings.values import Count
from strategies.fedavg import FedAvg

KEY = fold(0, torch.arange(2))


def test_matrices_of_that_rank_arrive_whole() -> None:
    left, right = normal(fold(1, torch.arange(2)), 14).view(2, 7, 2), normal(fold(2, torch.arange(2)), 10).view(2, 2, 5)
    codec = PowerSgd(rank=2).fitted(Layout({"w": (7, 5), "b": (5,)}))
    x = {"update": torch.cat([(left @ right).flatten(1), normal(KEY, 5)], 1)}
    memory = codec.init(x)
    wire = codec.encode(x, memory, KEY)
    back, memory = codec.decode(wire, memory, KEY)
    assert torch.allclose(back["update"], x["update"], atol=1e-5)
    assert torch.equal(back["update"][:, 35:], x["update"][:, 35:])
    assert sum(part[0].nbytes for part in wire.values()) == 4 * (2 * 7 + 2 * 5 + 5)
    assert torch.equal(memory["update"], wire["update q"])


def test_a_warm_start_finds_the_greatest_singular_values() -> None:
    matrix = normal(torch.tensor([5]), 48).view(1, 8, 6)
    codec = PowerSgd(rank=2).fitted(Layout({"w": (8, 6)}))
    x, errors = {"w": matrix.flatten(1)}, []
    memory = codec.init(x)
    for turn in range(40):
        back, memory = codec.carry(x, memory, fold(turn, torch.arange(1)))
        errors.append(float((back["w"] - x["w"]).square().sum()))
    best = float(torch.linalg.svdvals(matrix)[0, 2:].square().sum())
    assert errors[0] > 1.02 * best and abs(errors[-1] - best) < 1e-3 * best
    assert all(after <= before * (1 + 1e-5) for before, after in pairwise(errors))


def test_a_lower_rank_than_asked_for_is_made_of_zeros_and_drawn_anew() -> None:
    codec = PowerSgd(rank=2)
    x = {"x": torch.outer(torch.arange(1.0, 7), torch.ones(6)).view(1, 36)}
    back, memory = codec.carry(x, codec.init(x), KEY[:1])
    assert torch.allclose(back["x"], x["x"], atol=1e-4)
    other = {"x": torch.eye(6).view(1, 36)}
    again, _ = codec.carry(other, memory, KEY[:1])
    assert torch.linalg.matrix_rank(again["x"].view(6, 6)) == 2


def test_a_run_knows_its_layout() -> None:
    """A 3 x 40 weight and 3 biases: rank 1 takes 43 numbers, and the biases."""
    task = classification([8, 9], features=40)
    codec = Ef14(PowerSgd(rank=1))
    fed = quick(task, FedAvg(train=steps(), schedule=Rounds(cohort=Count()), uplink=codec), 2)
    x = {"update": fed.state["model"]}
    inner = PowerSgd(rank=1).fitted(task.layout)
    wire = inner.encode(x, inner.init(x), KEY[:1])
    assert sum(part.nbytes for part in wire.values()) == 4 * (43 + 3)
    assert fed.ledger.bytes_up == 4 * row_bytes(wire)
