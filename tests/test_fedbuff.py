from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from frames import buffered, together
from tools import durations, events, inbox, merges, models, quadratics, steps
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.method.discount import ConstantDiscount, Hinge
from fedsim.schedule import Buffered
from fedsim.settings.values import Count
from strategies.fedbuff import FedBuff

PLAIN = ConstantDiscount()
TAU = [Fraction(4, 3), Fraction(1), Fraction(5, 2), Fraction(7, 4), Fraction(5, 2)]


def merged(strategy, news, model=0.0):
    return strategy.merge({"model": torch.tensor([[model]], dtype=torch.float64)}, news)["model"].item()


def test_one_over_k_times_the_discount():
    # (1 x 1 + 2/2 + 6/3 + 4) / 4: weights do not sum to 1, and shares of data play no part
    news = inbox([0.1, 0.2, 0.3, 0.4], age=[0, 3, 8, 0], update=[1, 2, 6, 4])
    assert merged(FedBuff(), news, 10) == pytest.approx(12, rel=1e-15)
    assert merged(FedBuff(server_lr=0.5), news, 10) == pytest.approx(11, rel=1e-15)
    assert merged(FedBuff(discount=PLAIN), news) == 3.25
    # hinge of slope 1 after 2: (1 + 2/2 + 6/7 + 4) / 4
    assert merged(FedBuff(discount=Hinge(1, 2)), news) == pytest.approx(48 / 28, rel=1e-15)


def test_weights_by_samples_are_among_the_buffer():
    # (1 x 1 + 3 x 4/2) / 4
    assert merged(FedBuff(weights="samples"), inbox([0.125, 0.375], age=[0, 3], update=[1, 4])) == 1.75


def test_a_client_twice_in_the_buffer_counts_twice():
    assert merged(FedBuff(discount=PLAIN), inbox([0.5, 0.5, 0.25], sender=[0, 0, 1], update=[1, 2, 6])) == 3


def test_an_update_is_against_the_model_its_client_began_from():
    # jobs of 1 s and 2.5 s; an update is half of the way from where it began to the centre (1, -1)
    strategy = FedBuff(train=steps(lr=0.5), schedule=Buffered(size=1), discount=PLAIN)
    fed = run(quadratics([1.0, -1.0]), strategy, world=durations(1, "2.5"), seconds=3)
    # 1/2; + (1 - 1/2)/2 = 3/4; then -1/2 from the model 0, though the server's is 3/4; then (1 - 3/4)/2 from the model of second 2
    assert models(fed)[:, 0, 0].tolist() == [0, 0.5, 0.75, 0.25, 0.375]


def test_who_returns_starts_again_while_the_buffer_fills():
    fed = run(quadratics([1.0, 2.0, 3.0]), FedBuff(train=steps(), schedule=Buffered(size=2)), world=durations(1, 2, 5), seconds=3)
    # node 0 is in the buffer at 1 and, by the lower id, again at 2; node 1 comes to an empty buffer
    assert merges(fed) == [(2, [(0, 0), (0, 0)]), (3, [(0, 0), (1, 1)])]
    starts = events(fed, "dispatch")
    assert sorted(zip(starts["time"], starts["node"], starts["version"], strict=True)) == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (2, 0, 1), (2, 1, 1), (3, 0, 2)
    ]  # fmt: skip


def test_or_waits_for_the_merge():
    strategy = FedBuff(train=steps(), schedule=Buffered(size=2, restart="merge"))
    fed = run(quadratics([1.0, 2.0, 3.0]), strategy, world=durations(1, 2, 5), seconds=7)
    # {0 at 1, 1 at 2}, {0 at 3, 1 at 4}, {2 at 5, 0 at 5}, {1 at 6, 0 at 6}
    assert merges(fed) == [(2, [(0, 0), (1, 0)]), (4, [(0, 0), (1, 0)]), (5, [(0, 0), (2, 2)]), (6, [(0, 0), (1, 1)])]
    starts = events(fed, "dispatch")
    assert sorted(zip(starts["time"], starts["node"], strict=True))[3:] == [(2, 0), (2, 1), (4, 0), (4, 1), (5, 0), (5, 2), (6, 0), (6, 1)]


@pytest.mark.parametrize(("restart", "frame"), [("arrival", buffered), ("merge", together)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_run_is_the_recursion_over_models_that_were_sent(restart, frame, size):
    b, curvature = torch.tensor([1.0, -2, 4, 0.5, 2]).double(), torch.tensor([1.0, 2, 1, 0.5, 3]).double()
    way = 1 - (1 - 0.2 * curvature) ** 3
    strategy = FedBuff(train=steps(3, 0.2), schedule=Buffered(size=size, restart=restart), server_lr=0.5)
    fed = run(quadratics(b, curvature), strategy, world=durations(*TAU), seconds=25)
    assert merges(fed) == frame(TAU, size, 25)
    x = [0.0]
    for _, buffer in merges(fed):
        began = {age: x[len(x) - 1 - age] for _, age in buffer}
        updates = [(1 + age) ** -0.5 * (way[node] * (b[node] - began[age])).item() for node, age in buffer]
        x.append(x[-1] + 0.5 * sum(updates) / size)
    assert models(fed)[:, 0, 0].tolist() == pytest.approx(x, rel=1e-13)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_with_fewer_at_work_than_clients_an_idle_one_is_drawn(size):
    """Always so many at work; whoever returns makes room for a lot among the idle, itself included."""
    n, busy = 6, 3
    strategy = FedBuff(train=steps(), schedule=Buffered(size=size, concurrency=Count(busy)))
    fed = run(quadratics(torch.arange(n)), strategy, world=durations(*range(5, 5 + n)), seconds=1500)
    starts, ends = events(fed, "dispatch"), events(fed, "arrival")
    working, drawn, alone, again = set(starts["node"][:busy]), Counter(), 0, 0
    for time in np.unique(ends["time"]):
        came, went = ends["node"][ends["time"] == time].tolist(), starts["node"][starts["time"] == time].tolist()
        working = working - set(came) | set(went)
        assert len(went) == len(came) and len(working) == busy  # nobody waits for a merge
        drawn.update(went)
        if len(came) == 1:
            alone, again = alone + 1, again + (came == went)
    assert len(ends["time"]) == len(merges(fed)) * size + len(fed.waiting.node)
    assert abs(again / alone - 1 / 4) < 3 * np.sqrt(1 / 4 * 3 / 4 / alone)  # the returning one is one of four
    assert min(drawn.values()) > 0.6 * drawn.total() / n


def test_the_waiting_wait_for_a_lot_at_the_merge():
    strategy = FedBuff(train=steps(), schedule=Buffered(size=2, concurrency=Count(3), restart="merge"))
    fed = run(quadratics(torch.arange(6)), strategy, 40, world=durations(*range(5, 11)))
    starts, ends = events(fed, "dispatch"), [float(time) for time, _ in merges(fed)]
    assert sorted(starts["time"].tolist()) == [0.0] * 3 + sorted(ends[:-1] * 2)
    assert len(set(starts["node"].tolist())) == 6


def test_a_buffer_that_can_not_fill_is_refused():
    strategy = FedBuff(train=steps(), schedule=Buffered(size=4, concurrency=Count(3), restart="merge"))
    with pytest.raises(SettingError, match="4 updates a merge, but only 3"):
        run(quadratics(torch.arange(6)), strategy, 1, world=durations(*range(5, 11)))
    with pytest.raises(SettingError, match="no time"):
        run(quadratics(torch.arange(6)), FedBuff(), 1)
