"""Random scenarios: the federation has the same events and, to rounding, the same models as the slow simulator."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import SharedLink, Simple, There
from tools import classification, durations, events, federation, run, steps

from fedsim.base.keys import fold, interior
from fedsim.federation.federation import Federation
from fedsim.method.strategy import Strategy
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Schedule, Ticks, sampling
from fedsim.settings.values import Count, PerNode, Population
from fedsim.topology import Complete, Ring
from fedsim.world import Always, Compute, GilbertElliottBursts, Network, Scheduled, World
from fedsim.world.calendar import Windows
from fedsim.world.compute import UniformJitter
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg
from strategies.fedbuff import FedBuff

TIMES = st.sampled_from([Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(1), Fraction(1), Fraction(3, 2), Fraction(2)])


@st.composite
def schedules(draw: st.DrawFn, nodes: int) -> Schedule:
    kind = draw(st.sampled_from(["rounds", "buffered", "ticks", "gossip", "pairwise"]))
    if kind == "rounds":
        cohort = draw(st.integers(1, nodes))
        wait = draw(st.none() | st.integers(1, cohort))
        deadline = draw(st.none() | TIMES)
        return Rounds(Count(cohort), wait_for=wait, deadline=deadline, late=draw(st.sampled_from(["drop", "keep"])))
    if kind == "buffered":
        busy = draw(st.integers(1, nodes))
        restart = draw(st.sampled_from(["arrival", "merge"]))
        size, bound = draw(st.integers(1, busy if restart == "merge" else 2 * busy)), draw(st.none() | st.integers(0, 3))
        return Buffered(size, Count(busy), restart, bound)
    if kind == "ticks":
        return Ticks(draw(TIMES))
    topology = draw(st.sampled_from([Ring(), Complete()]))
    return Gossip(topology) if kind == "gossip" else Pairwise(topology)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_events_and_models_are_those_of_the_simple_simulator(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(2, 7))
    schedule = data.draw(schedules(nodes))
    seconds = data.draw(st.lists(TIMES, min_size=nodes, max_size=nodes))
    counts = data.draw(st.lists(st.integers(1, 9), min_size=nodes, max_size=nodes))
    task = classification(counts)
    strategy: Strategy = (Dsgd if schedule.peers else FedAvg)(train=steps(2, 0.3), schedule=schedule)
    merges = 3 * schedule.merges_a_round(nodes) + 3 * (not schedule.peers)
    simple, rounds = Simple(task, seconds, 2, 0.3), merges // schedule.merges_a_round(nodes)
    large, sparse = data.draw(st.sampled_from([(sampling.LARGE, sampling.SPARSE), (1, 1), (1, 3)]))  # how lots are drawn
    with patch.multiple(sampling, LARGE=large, SPARSE=sparse):
        expected = simple.run(schedule, merges)
        fed = run(task, strategy, rounds, durations(*seconds), plan="looped", chunk=data.draw(st.integers(1, 5)))
    torch.testing.assert_close(fed.strategy.model(fed.state), expected, rtol=1e-4, atol=1e-5)
    table = events(fed, "dispatch", "arrival", "merge", "drop")
    ours = list(zip(table["kind"].tolist(), table["node"].tolist(), table["version"].tolist(), table["staleness"].tolist(), strict=True))
    assert sorted(map(str, ours)) == sorted(str((kind, *rest)) for _, kind, *rest in simple.events)
    for (time, *_), ticks in zip(
        _ordered(simple.events), sorted(fed.ledger.columns()["time"][fed.ledger.columns()["kind"] != "mix"]), strict=True
    ):
        assert time * fed.nature.per_second == int(ticks)  # exact, ties included
    assert fed.now == simple.now * fed.nature.per_second


@dataclass(frozen=True, kw_only=True)
class Written(Scheduled):
    """Stays by hand."""

    there: There

    def calendar(self, people: Population, key: torch.Tensor, per_second: int) -> Windows:
        ticks = [[(int(a * per_second), int(b * per_second)) for a, b in stays] for stays in self.there.stays]
        flat = np.array([pair for pairs in ticks for pair in pairs], dtype=np.int64).reshape(-1, 2)
        first = np.cumsum([0, *map(len, ticks)])
        return Windows(flat[:, 0], flat[:, 1], first, np.full(people.nodes, int(self.there.period * per_second)))


@st.composite
def stays(draw: st.DrawFn, nodes: int) -> There:
    """Some halves of seconds of every six; the first node has at least one."""
    found = []
    for node in range(nodes):
        edges = draw(st.lists(st.integers(0, 12), unique=True, min_size=2 * (node == 0), max_size=6).map(sorted))
        found.append([(Fraction(a, 2), Fraction(b, 2)) for a, b in zip(edges[::2], edges[1::2], strict=False)])
    return There(found, Fraction(6), draw(st.booleans()))


def slow(node: int, turn: int) -> float:
    """Jitter of one job at a time, and a chain that is followed from the first turn on."""
    key = fold(fold(0, "world"), "bursts", node)
    numbers = [float(interior(fold(key, at), 1)[0]) for at in range(turn + 1)]
    state = numbers[0] < 0.3 / 0.7
    for u in numbers[1:]:
        state = u < 1 - 0.4 if state else u < 0.3
    factor = float(JITTER.factors(fold(fold(0, "world"), "jitter", torch.tensor([node]), torch.tensor([turn])))[0])
    return factor * (2.0 if state else 1.0)


JITTER = UniformJitter(0.5, 1.5)
BURSTS = GilbertElliottBursts(PerNode(0.3), PerNode(0.4), PerNode(2.0))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_people_who_come_and_go_and_work_at_changing_speed(data: st.DataObject) -> None:
    nodes = data.draw(st.integers(2, 6))
    schedule = data.draw(schedules(nodes))
    seconds = data.draw(st.lists(TIMES, min_size=nodes, max_size=nodes))
    there, varies = data.draw(st.none() | stays(nodes)), data.draw(st.booleans())
    task = classification(data.draw(st.lists(st.integers(1, 9), min_size=nodes, max_size=nodes)))
    strategy: Strategy = (Dsgd if schedule.peers else FedAvg)(train=steps(2, 0.3), schedule=schedule)
    rounds = 4 if schedule.merges_a_round(nodes) == 1 else 1
    compute = Compute(durations(*seconds).compute.job, **({"jitter": JITTER, "bursts": BURSTS} if varies else {}))
    world = World(compute, availability=Written(there=there, leaving="drop" if there.drop else "finish") if there else Always())
    fed = federation(task, strategy, rounds, world, plan="looped", chunk=data.draw(st.integers(1, 5)))
    simple = Simple(task, seconds, 2, 0.3, slow if varies else None, Fraction(1, fed.nature.per_second), there)
    expected = simple.run(schedule, rounds * schedule.merges_a_round(nodes))
    fed.run()
    torch.testing.assert_close(fed.strategy.model(fed.state), expected, rtol=1e-4, atol=1e-5)
    assert told(fed) == sorted((time * fed.nature.per_second, *map(str, rest)) for time, *rest in simple.events)
    assert fed.now == simple.now * fed.nature.per_second
    counts = [sum(kind == one for _, kind, *_ in simple.events) for one in ("dispatch", "arrival")]
    assert [fed.ledger.bytes_down, fed.ledger.bytes_up] == [counts[0] * fed.down_bytes, counts[1] * fed.flight.up_bytes]


def told(fed: Federation) -> list[tuple[Any, ...]]:
    table = fed.ledger.columns()
    keep = np.isin(table["kind"], ("dispatch", "arrival", "merge", "drop"))
    columns = (table[name][keep].tolist() for name in ("time", "kind", "node", "version", "staleness"))
    return sorted((time, *map(str, rest)) for time, *rest in zip(*columns, strict=True))


@given(st.data())
@settings(max_examples=24, deadline=None)
def test_a_shared_link_is_that_of_exact_fractions(data: st.DataObject) -> None:
    """Times differ by rounding; odd numbers keep them apart."""
    nodes = data.draw(st.integers(2, 5))
    schedule = data.draw(schedules(nodes).filter(lambda one: not one.peers and not getattr(one, "deadline", None)))
    odd = st.integers(100, 900).map(lambda value: Fraction(value, 997))
    seconds = data.draw(st.lists(odd, min_size=nodes, max_size=nodes, unique=True))
    own = data.draw(st.lists(st.integers(300, 2000).map(Fraction), min_size=nodes, max_size=nodes, unique=True))
    server = (Fraction(data.draw(st.integers(500, 3000))), Fraction(data.draw(st.integers(500, 3000))))
    task, strategy = classification([3] * nodes), FedAvg(train=steps(2, 0.3), schedule=schedule)
    rates = PerNode(tuple(own))
    world = World(durations(*seconds).compute, Network(rates, rates, server_down=server[0], server_up=server[1]))
    fed = federation(task, strategy, 4, world, plan="looped", chunk=data.draw(st.integers(1, 5)))
    simple = Simple(task, seconds, 2, 0.3, link=SharedLink(server, own), bytes=fed.down_bytes)
    assert fed.down_bytes == fed.flight.up_bytes
    expected = simple.run(schedule, 4)
    fed.run()
    ours, theirs = told(fed), sorted((time, *map(str, rest)) for time, *rest in simple.events)
    key = str if isinstance(schedule, Rounds) else None  # a cohort's jobs may end nanoseconds apart
    assert sorted((one[1:] for one in ours), key=key) == sorted((one[1:] for one in theirs), key=key)
    times = np.array([float(one[0]) for one in theirs])
    assert np.allclose(np.array([one[0] for one in ours]) / fed.nature.per_second, times, rtol=0, atol=1e-6)
    torch.testing.assert_close(fed.strategy.model(fed.state), expected, rtol=1e-4, atol=1e-5)


def _ordered(all_events: list[tuple[Fraction, ...]]) -> list[tuple[Fraction, ...]]:
    return sorted(all_events, key=lambda one: one[0])


@pytest.mark.parametrize(
    "strategy",
    [
        FedAvg(schedule=Rounds(Count(4))),
        FedAvg(schedule=Rounds(Count(4), wait_for=2, late="keep")),
        FedBuff(schedule=Buffered(3, Count(5))),
        FedAvg(schedule=Ticks(Fraction(1, 2))),
        Dsgd(schedule=Gossip()),
        Dsgd(schedule=Pairwise()),
    ],
    ids=lambda s: f"{s.name}-{s.schedule.name}",
)
def test_bits_do_not_depend_on_how_jobs_are_grouped(strategy: Strategy) -> None:
    task = classification([3, 40, 7, 1, 22, 5])
    world = durations(1, "1/2", "2/3", "3/2", 1, "1/3")
    whole = run(task, strategy, 8, world)
    for chunk in (1, 2, 3, 4):
        other = run(task, strategy, 8, world, chunk=chunk)
        assert torch.equal(whole.state["model"], other.state["model"])
        mine, theirs = whole.ledger, other.ledger
        assert torch.equal(torch.from_numpy(mine.rows[: mine.used]), torch.from_numpy(theirs.rows[: theirs.used]))
    assert torch.equal(run(task, strategy, 8, world).state["model"], whole.state["model"])
    assert not torch.equal(run(task, strategy, 8, world, seed=1).state["model"], whole.state["model"])
