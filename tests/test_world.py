"""Times by hand, and chances by their frequencies."""

from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np
import pytest
from tools import durations, events, federation, quadratics, run, spread, steps

from fedsim.base.errors import SettingError
from fedsim.federation.federation import Federation
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Ticks
from fedsim.settings.values import Count, Linear, LogNormal, PerNode, Population, Uniform
from fedsim.topology import Complete
from fedsim.world import Bernoulli, Compute, Faults, Nature, Network, Times, World
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

ALL = Rounds(cohort=Count())
NANO = 10**9
CERTAIN = 4.5  # standard deviations


def each(*values: Any) -> PerNode[Any]:
    return PerNode(tuple(Fraction(value) for value in values))


def same(value: Any) -> PerNode[Any]:
    return PerNode(Fraction(value))


def nature(world: World, nodes: int = 1, seed: int = 0, per_second: int = NANO, groups: Any = None) -> Nature:
    return Nature(world, Population(nodes, groups or {}), seed, per_second)


def exact(fed: Federation, kind: str, column: str = "time") -> list[Fraction]:
    table = fed.ledger.columns()
    return [Fraction(int(tick), fed.nature.per_second) for tick in table[column][table["kind"] == kind]]


# Times


def test_nothing_takes_time_by_default() -> None:
    fed = run(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 3)
    assert fed.durations().tolist() == [0, 0]
    assert (fed.now, fed.round) == (0, 3)


def test_a_method_that_takes_two_gradients_a_step_works_twice_as_long() -> None:
    class Twice(FedAvg):
        gradients = 2

    compute = Compute(job=same("0.1"), step=same("0.01"), sample=same("0.001"))
    strategies = [kind(train=steps(2, batch=2), schedule=ALL) for kind in (FedAvg, Twice)]
    once, twice = (run(quadratics([1.0], samples=[2]), strategy, 1, World(compute)) for strategy in strategies)
    work = 2 * Fraction("0.01") + 4 * Fraction("0.001")
    assert exact(once, "dispatch", "work") == [Fraction("0.1") + work]
    assert exact(twice, "dispatch", "work") == [Fraction("0.1") + 2 * work]
    assert once.ledger.steps == twice.ledger.steps == 2


def test_arrival_is_dispatch_and_travel_and_work_and_travel() -> None:
    """Two clients of 1 and 3 samples, 2 steps of up to 2 samples: 2 and 3 samples looked at."""
    compute = Compute(job=each("0.1", "0.2"), step=same("0.01"), sample=each("0.001", "0.003"))
    network = Network(up=each(1000, 500), down=each(2000, 4000), latency=each("0.05", "0.07"))
    strategy = FedAvg(train=steps(2, batch=2), schedule=ALL)
    fed = run(quadratics([1.0, 2.0], samples=[1, 3]), strategy, 2, World(compute, network))
    down, up = Fraction(fed.down_bytes), Fraction(fed.flight.up_bytes)
    ways = [[Fraction("0.05") + down / 2000, Fraction("0.05") + up / 1000], [Fraction("0.07") + down / 4000, Fraction("0.07") + up / 500]]
    work = [Fraction("0.1") + 2 * Fraction("0.01") + 2 * Fraction("0.001"), Fraction("0.2") + 2 * Fraction("0.01") + 3 * Fraction("0.003")]
    first, second = (ways[i][0] + work[i] + ways[i][1] for i in range(2))
    assert first < second
    assert exact(fed, "dispatch") == [0, 0, second, second]
    assert exact(fed, "arrival") == [first, second, second + first, 2 * second]
    assert exact(fed, "merge") == [second, second, 2 * second, 2 * second]
    for column, parts in (("down", [ways[0][0], ways[1][0]]), ("work", work), ("up", [ways[0][1], ways[1][1]])):
        assert exact(fed, "dispatch", column) == parts * 2
    assert fed.durations().tolist() == [first * NANO, second * NANO]
    assert events(fed, "dispatch")["steps"].tolist() == [2] * 4
    assert [fed.ledger.bytes_down, fed.ledger.bytes_up, fed.ledger.steps] == [4 * fed.down_bytes, 4 * fed.flight.up_bytes, 8]


def test_each_kind_of_time_alone() -> None:
    zero, node, two = np.zeros(1, dtype=np.int64), np.array([0]), np.array([2])
    size = np.array([3000])

    def times(**world: Any) -> list[int]:
        of = nature(World(**world))
        found = of.times(node, of.work(node, two, np.array([5])), size, np.array([7000]))
        return [int(part[0]) for part in found]

    assert times() == [0, 0, 0]
    assert times(compute=Compute(job=same(3))) == [0, 3 * NANO, 0]
    assert times(compute=Compute(step=same("0.25"))) == [0, NANO // 2, 0]
    assert times(compute=Compute(sample=same("0.1"))) == [0, NANO // 2, 0]
    assert times(network=Network(latency=same("0.05"))) == [NANO // 20, 0, NANO // 20]
    assert times(network=Network(up=same(1000))) == [0, 0, 7 * NANO]
    assert times(network=Network(down=same(1000))) == [3 * NANO, 0, 0]
    assert nature(World(network=Network(down=same(7)))).times(node, zero, size, zero).down[0] == round(Fraction(3000 * NANO, 7))


def test_a_linear_spread_is_exact_in_ticks() -> None:
    """F-80 with 20 clients: 1 s - 0.8 i / 19 s."""
    fed = run(quadratics([0.0] * 20), FedAvg(train=steps(), schedule=ALL), 1, spread(80))
    assert fed.nature.per_second == 19 * NANO
    assert exact(fed, "dispatch", "work") == [1 - Fraction(8, 10) * i / 19 for i in range(20)]
    assert exact(fed, "arrival") == sorted(1 - Fraction(8, 10) * i / 19 for i in range(20))
    assert exact(fed, "arrival")[0] == Fraction(1, 5)
    latency = World(spread(80).compute, Network(latency=same(Fraction(1, 7))))
    assert sorted(latency.denominators(Population(20))) == [1, 1, 7, 19]


def test_drawn_times_have_their_median_and_deviation() -> None:
    nodes = 20_000
    world = World(Compute(job=PerNode(LogNormal(Fraction(2), 0.5)), step=PerNode(LogNormal(Fraction(2), 0.5))))
    first, other = nature(world, nodes), nature(world, nodes, seed=1)
    logs = np.log(first.job / NANO)
    assert abs(np.median(logs) - np.log(2)) < CERTAIN * sqrt(np.pi / 2) * 0.5 / sqrt(nodes)
    assert abs(logs.std() - 0.5) < CERTAIN * 0.5 / sqrt(2 * nodes)
    for independent in (first.step, other.job):  # of other settings and other seeds
        assert abs(np.corrcoef(logs, np.log(independent / NANO))[0, 1]) < CERTAIN / sqrt(nodes)
    assert np.array_equal(first.job, nature(world, nodes).job)


def test_settings_that_do_not_fit_are_named() -> None:
    people = [
        ("compute.job", World(compute=Compute(job=each(1, 2)))),
        ("network.latency", World(network=Network(latency=each(1, 2)))),
        ("network.up", World(network=Network(up=each(1, 2)))),
        ("faults.lost", World(faults=Faults(lost=PerNode((0.1, 0.2))))),
        ("availability.chance", World(availability=Bernoulli(PerNode((0.1, 0.2))))),
    ]
    for name, world in people:
        with pytest.raises(SettingError, match=f"^world.{name}: a list of 2 values for 3 nodes$"):
            nature(world, 3)


# Peers


def exchange(world: World, size: int) -> int:
    return int(nature(world).exchange(np.array([0]), np.array([size]), np.array([size]))[0])


def test_an_exchange_is_one_latency_and_the_bytes_out_and_in() -> None:
    assert exchange(World(network=Network(latency=same("0.05"))), 100) == NANO // 20
    world = World(network=Network(up=same(1000), down=same(500), latency=same("0.05")))
    assert exchange(world, 100) == NANO // 20 + NANO // 10 + NANO // 5
    assert exchange(world, 0) == 0


@pytest.mark.parametrize(("schedule", "degree"), [(Gossip(), 2), (Gossip(Complete()), 4), (Pairwise(), 1)])
def test_peers_exchange_with_each_neighbour(schedule: Any, degree: int) -> None:
    world = World(durations(1, 2, 3, 4, 5).compute, Network(up=same(1000), down=same(500), latency=same("0.05")))
    fed = run(quadratics([0.0] * 5), Dsgd(train=steps(), schedule=schedule), 1, world)
    way = Fraction("0.05") + degree * fed.flight.peer_bytes * (Fraction(1, 1000) + Fraction(1, 500))
    assert exact(fed, "dispatch", "down")[:5] == [0] * 5
    assert exact(fed, "dispatch", "up")[:5] == [way] * 5
    assert fed.durations().tolist() == [(i + 1 + way) * fed.nature.per_second for i in range(5)]
    if schedule.name == "gossip":
        assert exact(fed, "merge") == [5 + way] * 5
        assert fed.ledger.bytes_cross == 5 * degree * fed.flight.peer_bytes


def test_a_peer_alone_sends_nothing() -> None:
    world = World(durations(2).compute, Network(up=same(1), latency=same(1)))
    fed = run(quadratics([0.0]), Dsgd(train=steps()), 2, world)
    assert exact(fed, "merge") == [2, 4]
    assert fed.ledger.bytes == 0


# Who is there


def presence(world: World, nodes: int, versions: int) -> np.ndarray[Any, Any]:
    of = nature(world, nodes)
    return np.array([of.present(version) for version in range(versions)])


def test_presence_has_its_frequency_and_is_drawn_anew_at_each_merge() -> None:
    chance, versions = np.array([0.0, 0.1, 0.5, 0.9, 1.0]), 1000
    world = World(availability=Bernoulli(PerNode(tuple(chance.tolist()))))
    there = presence(world, 5, versions)
    assert (np.abs(there.mean(0) - chance) <= CERTAIN * np.sqrt(chance * (1 - chance) / versions)).all()
    both = (there[1:, 1:4] & there[:-1, 1:4]).mean(0)  # merges are independent
    assert (np.abs(both - chance[1:4] ** 2) < CERTAIN / 2 / sqrt(versions)).all()
    pair = (there[:, 2] & there[:, 3]).mean()  # nodes too
    assert abs(pair - 0.45) < CERTAIN / 2 / sqrt(versions)
    assert np.array_equal(there[:50], presence(world, 5, 50))


def test_a_drawn_chance_stays_with_its_node() -> None:
    world = World(availability=Bernoulli(PerNode(Uniform(0.0, 1.0))))
    often = presence(world, 400, 400).mean(0)
    assert abs(often.mean() - 0.5) < CERTAIN * sqrt(1 / 12 / 400)
    assert abs(often.std() - sqrt(1 / 12)) < 0.04  # 0.025 if it were drawn anew each time
    assert presence(World(availability=Bernoulli(PerNode(Linear(0.0, 1.0)))), 3, 50).mean(0).tolist()[::2] == [0, 1]


def test_only_those_who_are_there_are_asked() -> None:
    world = World(durations(*[1] * 6).compute, availability=Bernoulli(PerNode(0.4)))
    fed = run(quadratics([0.0] * 6), FedAvg(train=steps(), schedule=ALL), 40, world)
    asked, merged = events(fed, "dispatch"), events(fed, "merge")
    for version in range(40):
        there = np.flatnonzero(fed.nature.present(version)).tolist()
        assert asked["node"][asked["version"] == version].tolist() == there
        assert merged["node"][merged["version"] == version + 1].tolist() == (there or [-1])
    assert -1 in merged["node"]  # nobody was there: an empty merge


def test_those_who_return_while_away_make_room_for_others() -> None:
    """With a place for two of six, whoever starts is there at the version of the start."""
    world = World(durations(*["1", "1.1", "1.3", "1.7", "1.9", "2.3"]).compute, availability=Bernoulli(PerNode(0.5)))
    fed = run(quadratics([0.0] * 6), FedAvg(train=steps(), schedule=Buffered(2, Count(2))), 60, world)
    asked = events(fed, "dispatch")
    assert all(fed.nature.present(int(version))[node] for node, version in zip(asked["node"], asked["version"], strict=True))
    assert set(asked["node"].tolist()) == set(range(6))


# What breaks


def test_fates_have_their_chances_by_group() -> None:
    turns, people = 5000, {"good": range(1), "bad": range(1, 3)}
    crash = PerNode[float]({"good": PerNode(0.05), "bad": PerNode(0.3)})
    lost = PerNode[float]({"good": PerNode(0.0), "bad": PerNode((0.5, 1.0))})
    of = nature(World(faults=Faults(crash, lost)), 3, groups=people)
    for node, broken, gone in ((0, 0.05, 0.0), (1, 0.3, 0.5), (2, 0.3, 1.0)):
        fate = of.fate(np.full(turns, node), np.arange(turns))
        assert fate is not None
        away = (1 - broken) * gone  # what crashed can't get lost
        for seen, chance in ((fate.crash, broken), (fate.lost, away)):
            assert abs(seen.mean() - chance) <= CERTAIN * sqrt(chance * (1 - chance) / turns)
        assert not (fate.crash & fate.lost).any()
        point = np.sort(fate.point[fate.crash])  # uniform, also among those that crash
        assert np.abs(point - (np.arange(len(point)) + 0.5) / len(point)).max() < 1.95 / sqrt(len(point))
        again = of.fate(np.full(3, node), np.array([4, 0, 7]))
        assert again is not None
        assert again.point.tolist() == fate.point[[4, 0, 7]].tolist()


def test_nothing_breaks_by_default() -> None:
    assert nature(World()).fate(np.array([0]), np.array([1])) is None
    assert nature(World()).certain
    assert not nature(World(faults=Faults(lost=PerNode(0.1)))).certain
    assert not nature(World(availability=Bernoulli(PerNode(1.0)))).certain


@pytest.mark.parametrize("schedule", [ALL, Buffered(2), Ticks(Fraction(3))])
def test_crashes_end_during_the_work_and_lost_updates_at_its_end(schedule: Any) -> None:
    world = World(
        durations(*range(1, 7)).compute,
        Network(up=same(1000), down=same(2000), latency=same("0.01")),
        faults=Faults(crash=PerNode(0.3), lost=PerNode(0.3)),
    )
    fed = run(quadratics([1.0] * 6), FedAvg(train=steps(), schedule=schedule), 30, world)
    starts, ends, drops = (events(fed, kind) for kind in ("dispatch", "arrival", "drop"))
    times = {int(job): at for at, job in enumerate(starts["job"])}
    turn = {int(job): int((starts["node"][: at + 1] == starts["node"][at]).sum()) for job, at in times.items()}
    kinds = {0: 0, fed.flight.up_bytes: 0}
    for job, time, sent, node in zip(drops["job"], drops["time"], drops["bytes_up"], drops["node"], strict=True):
        begun, down, work, up = (starts[name][times[job]] for name in ("time", "down", "work", "up"))
        fate = fed.nature.fate(np.array([node]), np.array([turn[job]]))
        assert fate is not None
        assert (bool(fate.crash[0]), bool(fate.lost[0])) == (sent == 0, sent > 0)
        expected = begun + down + work * fate.point[0] if fate.crash[0] else begun + down + work + up
        assert time == pytest.approx(expected, abs=2e-9)
        kinds[int(sent)] += 1
    assert min(kinds.values()) > 5
    assert fed.ledger.dropped == len(drops["job"]) == sum(kinds.values())
    assert fed.ledger.bytes_up == fed.flight.up_bytes * (len(ends["job"]) + kinds[fed.flight.up_bytes])
    assert fed.ledger.bytes_down == fed.down_bytes * len(starts["job"])
    assert len(starts["job"]) == len(ends["job"]) + len(drops["job"]) + fed.in_flight
    assert not set(ends["job"]) & set(drops["job"])
    assert all((time > 0).all() for time in (starts["down"], starts["up"]))


def test_a_journey_is_known_before_it_begins() -> None:
    """The chances a job has do not depend on when it is sent."""
    fed = federation(quadratics([1.0] * 50), FedAvg(train=steps(), schedule=ALL), 1, World(faults=Faults(crash=PerNode(0.5))))
    nodes, none = np.arange(50), np.zeros(50, dtype=np.int64)
    early, late = (fed.flight.journey(nodes, none + at, none) for at in (0, 10**9))
    assert early.fate.tolist() == late.fate.tolist()
    assert (late.ends - early.ends == 10**9).all()
    assert 10 < (early.fate == 1).sum() < 40
    assert isinstance(early.times, Times)
