"""The server's link shared max-min fairly, by hand and by what must always hold; energy in watts times seconds."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import durations, events, federation, quadratics, same, steps
from tools import quick as run

from fedsim.base.errors import SettingError
from fedsim.federation.federation import Federation
from fedsim.federation.traffic import fair
from fedsim.report.checks import check_events
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Ticks
from fedsim.settings.values import Count, PerNode
from fedsim.world import (
    Compute,
    Energy,
    Faults,
    Independent,
    Markov,
    Network,
    Timetable,
    World,
)
from fedsim.world.compute import LogNormalJitter
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

ALL = Rounds(cohort=Count())


# The shared link


def test_fair_rates_by_hand() -> None:
    """10 for caps 1, 4, 9, 9: the first keeps 1, the others get 3 each; with caps 1, 2, 9, 9 two keep theirs and two get 3.5."""
    for caps, expected in (([9, 1, 4, 9], [3, 1, 3, 3]), ([1, 2, 9, 9], [1, 2, 3.5, 3.5]), ([2, 3], [2, 3]), ([20], [10]), ([], [])):
        assert fair(np.array(caps, dtype=float), 10.0).tolist() == expected


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.floats(0.1, 200))
@settings(max_examples=200, deadline=None)
def test_fair_rates_waste_nothing_and_favour_nobody(caps: Sequence[float], capacity: float) -> None:
    cap = np.array(caps)
    rate = fair(cap, capacity)
    assert (rate <= cap * (1 + 1e-12)).all()
    assert rate.sum() == pytest.approx(min(capacity, cap.sum()))
    below = rate < cap * (1 - 1e-12)
    if below.any():  # all below their caps have the same rate, and nobody has more
        assert rate[below] == pytest.approx(rate.max())


def link(fed: Federation) -> dict[int, list[float]]:
    """Of each job its parts in seconds."""
    ends = events(fed, "arrival", "drop")
    rows = zip(ends["job"].tolist(), ends["down"].tolist(), ends["work"].tolist(), ends["up"].tolist(), strict=True)
    return {job: parts for job, *parts in rows}


def good(fed: Federation) -> None:
    final = {"final": fed.ledger.totals()}
    fed.ledger.add("evaluate", time=fed.now, version=fed.version)
    for check in check_events(fed.ledger.columns(), final):
        assert check.ok, check


def test_equal_transfers_take_turns_times_as_long() -> None:
    """m = 4 of b bytes at capacity C, started together: each takes m b / C, down and up."""
    world = World(durations(*[1] * 4).compute, Network(server_down=Fraction(16), server_up=Fraction(8), latency=same("0.25")))
    fed = run(quadratics([1.0] * 4), FedAvg(train=steps(), schedule=ALL), 3, world)
    down, up = 4 * fed.down_bytes / 16 + 0.25, 4 * fed.flight.up_bytes / 8 + 0.25
    assert list(link(fed).values()) == [[down, 1.0, up]] * 12
    assert events(fed, "merge")["time"].tolist() == [(down + 1 + up) * n for n in (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)]
    assert fed.durations().tolist() == [(fed.down_bytes / 16 + fed.flight.up_bytes / 8 + 1.5) * fed.nature.per_second] * 4
    good(fed)


def test_caps_by_hand() -> None:
    """80 bytes each at capacity 40 with own rates 10 and 100: 10 and 30; the fast one is through at 8 / 3, the slow one at 8."""
    world = World(durations(1, 1).compute, Network(down=PerNode((Fraction(10), Fraction(100))), server_down=Fraction(40)))
    fed = federation(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 1, world)
    assert fed.down_bytes == 80
    fed.run()
    assert [link(fed)[job][0] for job in (0, 1)] == pytest.approx([8.0, 8 / 3], abs=2e-9)


def test_a_late_joiner_by_hand() -> None:
    """Work of 1 and 2 s, 80 bytes up. At 80 a second the first is through at 2 s, as the second begins. At 40 a second half of the first
    is through then, and both get 20: the first ends at 4 s, the second has 40 bytes left, alone again, and ends at 5 s."""
    for rate, ends in ((80, [2.0, 3.0]), (40, [4.0, 5.0])):
        world = World(durations(1, 2).compute, Network(server_up=Fraction(rate)))
        fed = run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 1, world)
        assert fed.flight.up_bytes == 80
        assert events(fed, "arrival")["time"].tolist() == pytest.approx(ends, abs=1e-8)
        good(fed)


@pytest.mark.parametrize("schedule", [Buffered(1, Count()), Buffered(5, Count()), Rounds(Count(), wait_for=2, late="keep")])
def test_a_link_that_is_always_busy_carries_its_capacity(schedule: Any) -> None:
    """Work takes next to nothing, so the way up is always used: bytes that arrived are capacity x time, but for those under way."""
    world = World(durations(*["0.001"] * 6).compute, Network(server_up=Fraction(240)))
    fed = run(quadratics([1.0] * 6), FedAvg(train=steps(), schedule=schedule), seconds=100, world=world)
    under_way = 240 * (100 - 0.001) - fed.ledger.bytes_up
    assert -1e-3 <= under_way < 6 * fed.flight.up_bytes
    good(fed)


@pytest.mark.parametrize(
    "schedule", [ALL, Rounds(Count(), wait_for=3), Rounds(Count(), deadline=Fraction(3)), Buffered(2, Count(4)), Ticks(Fraction(2))]
)
@pytest.mark.parametrize("leaving", ["finish", "drop"])
def test_everything_at_once_adds_up(schedule: Any, leaving: Any) -> None:
    world = World(
        Compute(job=PerNode(tuple(Fraction(i, 3) for i in range(1, 7))), jitter=LogNormalJitter(0.3)),
        Network(
            same(150), same(150), same("0.1"), Independent(PerNode(0.2)), packet=16, server_up=Fraction(300), server_down=Fraction(400)
        ),
        Markov(on=same(20), off=same(5), leaving=leaving),
        Faults(crash=PerNode(0.1), lost=PerNode(0.1)),
        Energy(compute=same(5), send=same(1), receive=same("0.8")),
    )
    fed = run(quadratics([1.0] * 6), FedAvg(train=steps(), schedule=schedule), seconds=60, world=world)
    good(fed)
    ends = events(fed, "arrival", "drop")
    assert len(ends["job"]) > 40
    assert (ends["kind"] == "drop").sum() > 3
    assert ends["energy"] == pytest.approx(0.8 * ends["down"] + 5 * ends["work"] + ends["up"], abs=1e-6)
    sent = dict(zip(events(fed, "dispatch")["job"].tolist(), events(fed, "dispatch")["time"].tolist(), strict=True))
    whole = ends["down"] + ends["work"] + ends["up"]
    assert whole == pytest.approx(ends["time"] - np.array([sent[job] for job in ends["job"].tolist()]), abs=1e-6)
    again_ = run(quadratics([1.0] * 6), FedAvg(train=steps(), schedule=schedule), seconds=60, world=world, chunk=2)
    fed.ledger.used -= 1  # the evaluation of `good`
    assert np.array_equal(again_.ledger.rows[: again_.ledger.used], fed.ledger.rows[: fed.ledger.used])


def test_who_leaves_frees_the_link() -> None:
    """80 bytes each at 40 a second, node 1 leaves at 2 s: by then 40 bytes are through, the other 40 take 1 s."""
    away = Timetable(leaving="drop", leaves={"1": Fraction(2)})
    world = World(network=Network(server_down=Fraction(40)), availability=away)
    fed = run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 1, world)
    assert (events(fed, "arrival")["time"].tolist(), events(fed, "drop")["time"].tolist()) == ([3.0], [2.0])
    good(fed)


def test_peers_have_no_server_and_no_loss() -> None:
    for network, key in (
        (Network(server_up=Fraction(1)), "server_up"),
        (Network(server_down=Fraction(1)), "server_down"),
        (Network(loss=Independent(PerNode(0.1))), "loss"),
    ):
        for schedule in (Gossip(), Pairwise()):
            with pytest.raises(SettingError, match=rf"^world\.network\.{key}: .*each node is its own"):
                federation(quadratics([1.0, 2.0]), Dsgd(train=steps(), schedule=schedule), 1, World(durations(1, 1).compute, network))


# Energy


def test_energy_is_watts_times_seconds_also_of_what_is_dropped() -> None:
    """Down 0.5 s at 2 W, work 2 and 4 s at 3 and 5 W, up 1 s at 1 W; the second job is cut at 3.5 s: after 3 s of work."""
    energy = Energy(compute=PerNode((Fraction(3), Fraction(5))), send=same(1), receive=same(2))
    world = World(durations(2, 4).compute, Network(up=same(80), down=same(160)), energy=energy)
    fed = federation(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=Rounds(Count(), wait_for=1)), 1, world)
    assert (fed.down_bytes, fed.flight.up_bytes) == (80, 80)
    fed.run()
    assert events(fed, "arrival")["energy"].tolist() == [2 * 0.5 + 3 * 2 + 1 * 1]
    assert events(fed, "drop")["energy"].tolist() == [2 * 0.5 + 5 * 3]
    assert fed.ledger.totals()["energy/joules"] == 8 + 16
    good(fed)


def test_without_energy_there_is_no_column() -> None:
    fed = run(quadratics([1.0]), FedAvg(train=steps(), schedule=ALL), 1)
    assert "energy" not in fed.ledger.columns()
    assert "energy/joules" not in fed.ledger.totals()
