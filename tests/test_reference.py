"""Random scenarios: the federation has the same events and, to rounding, the same models as the slow simulator."""

from fractions import Fraction
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Simple
from tools import classification, durations, events, run, steps

from fedsim import sampling
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Schedule, Ticks
from fedsim.strategy import Strategy
from fedsim.topology import Complete, Ring
from fedsim.values import Count
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
        return Buffered(draw(st.integers(1, busy if restart == "merge" else 2 * busy)), Count(busy), restart)
    if kind == "ticks":
        return Ticks(draw(TIMES))
    topology = draw(st.sampled_from([Ring(), Complete()]))
    return Gossip(topology) if kind == "gossip" else Pairwise(topology)


@given(st.data())
@settings(max_examples=200, deadline=None)
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
