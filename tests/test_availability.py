"""Who is there by the clock: windows by hand, shares in closed form, and what schedules do when nobody is there."""

import json
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools import durations, events, federation, quadratics, steps
from tools import quick as run
from torch import Tensor

from fedsim.base.clock import FOREVER
from fedsim.base.errors import RunError, SettingError
from fedsim.base.keys import fold
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Ticks
from fedsim.settings.values import Count, PerNode, Population
from fedsim.world import Diurnal, Markov, Nature, Scheduled, Timetable, TraceAvailability, World
from fedsim.world.availability import chosen, daily
from fedsim.world.calendar import Calendar, Coins, Windows
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

CERTAIN = 4.5  # standard deviations
HOUR = 3600
ALL = Rounds(cohort=Count())


def calendar(availability: Any, nodes: int, seed: int = 0, per_second: int = 1, groups: Any = None) -> Calendar:
    found = Nature(World(availability=availability), Population(nodes, groups or {}), seed, per_second).calendar
    assert found is not None
    return found


def same(value: Any) -> PerNode[Any]:
    return PerNode(Fraction(value))


# Calendars


def test_windows_by_hand() -> None:
    """Node 0 is there in [2, 4) and [7, 9) of every 10, node 1 never, node 2 in [0, 3) and [8, 10) of every 10: over the end of it."""
    of = Windows(np.array([2, 7, 0, 8]), np.array([4, 9, 3, 10]), np.array([0, 2, 2, 4]), np.array([10, 10, 10]))
    there = [of.present(time).tolist() for time in range(20)]
    assert [time for time in range(20) if there[time][0]] == [2, 3, 7, 8, 12, 13, 17, 18]
    assert [time for time in range(20) if there[time][2]] == [0, 1, 2, 8, 9, 10, 11, 12, 18, 19]
    assert not any(one[1] for one in there)
    assert [of.comes(time) for time in (0, 2, 3, 4, 7, 9)] == [2, FOREVER, 8, 7, 8, 12]  # of those who are away
    assert of.leaves(np.array([0, 0, 2, 2, 2]), np.array([3, 17, 1, 8, 29])).tolist() == [4, 19, 3, 13, 33]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_what_a_calendar_says_of_the_future_comes_true(data: st.DataObject) -> None:
    nodes, day, times = data.draw(st.integers(1, 4)), 20, 200
    start = data.draw(st.lists(st.integers(0, day - 1), min_size=nodes, max_size=nodes))
    length = data.draw(st.lists(st.integers(1, day), min_size=nodes, max_size=nodes))
    of: Calendar = daily(np.array(start), np.array(length), day)
    exact = data.draw(st.booleans())
    if not exact:
        of = Coins(np.array(length), np.array(start) + 1, fold(data.draw(st.integers(0, 99)), "calendar"))
    there = np.array([of.present(time) for time in range(times)])
    assert not exact or (there[:100].mean(0) == np.array(length) / day).all()
    for now in (0, 7, 19, 20, 33):
        came = [time for time in range(now + 1, times) if (there[time] & ~there[now]).any()]
        assert of.comes(now) == came[0] if came else of.comes(now) >= times
        inside = np.flatnonzero(there[now])
        for node, leaves in zip(inside, of.leaves(inside, np.full(len(inside), now)).tolist(), strict=True):
            gone = [time for time in range(now + 1, times) if not there[time, node]] or [times]
            assert there[now : min(leaves, times), node].all()
            assert leaves == gone[0] or leaves >= times or not exact  # one who leaves and comes in the same tick is not seen to leave


def test_a_share_is_there_over_the_day_and_a_triangle_around_the_peak() -> None:
    nodes, share, peak = 4000, 0.4, 2 * HOUR
    length = share * 24 * HOUR
    of = calendar(Diurnal(share=PerNode(share), peak=Fraction(peak)), nodes)
    whole = np.zeros(nodes)
    for hour in np.arange(0, 24, 0.5):
        now = int(hour * HOUR)
        far = abs((now - peak + 12 * HOUR) % (24 * HOUR) - 12 * HOUR)
        expected = max(0.0, 1 - far / length)
        there = of.present(now + 24 * HOUR)
        assert abs(there.mean() - expected) <= CERTAIN * sqrt(expected * (1 - expected) / nodes) + 1e-3
        assert np.array_equal(there, of.present(now))  # the same every day
        whole += there / 48
    assert np.abs(whole - share).max() <= 0.5 / 24 + 1e-9  # each node's own day, seen every half hour
    few = calendar(Diurnal(share=PerNode(share)), 50)
    assert isinstance(few, Windows)
    total = np.add.reduceat(few.end - few.start, few.first[:-1])
    assert (total == round(length)).all()  # exactly


def test_zones_shift_the_day() -> None:
    """In 24 zones a share is there at any time; with two zones the peaks are 12 hours apart."""
    nodes = 4000
    there = [calendar(Diurnal(share=PerNode(0.4), zones=24), nodes).present(hour * HOUR).mean() for hour in range(0, 24, 6)]
    assert np.abs(np.array(there) - 0.4).max() < CERTAIN * sqrt(0.24 / nodes)
    two = calendar(Diurnal(share=PerNode(0.25), peak=Fraction(0), zones=2), nodes)
    east, west = two.present(12 * HOUR), two.present(0)
    assert not (east & west).any()
    assert (east | west).all()
    assert abs(east.mean() - 0.5) < CERTAIN / 2 / sqrt(nodes)
    assert calendar(Diurnal(share=PerNode(1.0)), 5).leaves(np.arange(5), np.full(5, 77)).tolist() == [FOREVER] * 5


def test_markov_has_its_share_its_lengths_and_no_memory() -> None:
    nodes, on, off = 3000, 300, 700
    of = calendar(Markov(on=same(on), off=same(off)), nodes)
    for now in (0, 50, 10_000):
        assert abs(of.present(now).mean() - 0.3) < CERTAIN * sqrt(0.21 / nodes)
    gap, rate = 120, 1 / on + 1 / off
    first, second = of.present(5000), of.present(5000 + gap)
    both, expected = (first & second).mean(), 0.3 * (0.3 + 0.7 * np.exp(-rate * gap))  # of the two-state chain
    assert abs(both - expected) < CERTAIN * sqrt(expected * (1 - expected) / nodes)
    inside = np.flatnonzero(first)
    stay = of.leaves(inside, np.full(len(inside), 5000)) - 5000.0
    assert abs(stay.mean() - on) < CERTAIN * on / sqrt(len(inside)) + 1
    assert abs((stay > on).mean() - np.exp(-1)) < CERTAIN / 2 / sqrt(len(inside))
    single = calendar(Markov(on=same(on), off=same(off)), 1, seed=3)
    now, away = 0, []
    for _ in range(400):
        while not single.present(now)[0]:
            now = single.comes(now)
        now = int(single.leaves(np.array([0]), np.array([now]))[0])
        back = now if single.present(now)[0] else single.comes(now)
        away.append(back - now)
    rest = np.array([time for time in away if time])  # a stay that a coming interrupts goes on
    assert abs(rest.mean() - off) < CERTAIN * off / sqrt(len(rest))


def test_a_timetable_by_hand() -> None:
    there = Timetable(joins={"4..5": Fraction(20), "1": Fraction(50)}, leaves={"0": Fraction(40), "5": Fraction(30), "2": Fraction(10)})
    of = calendar(there, 6)
    assert [np.flatnonzero(of.present(time)).tolist() for time in (0, 10, 20, 30, 40, 50)] == [
        [0, 2, 3], [0, 3], [0, 3, 4, 5], [0, 3, 4], [3, 4], [1, 3, 4],
    ]  # fmt: skip
    assert [of.comes(time) for time in (0, 20, 49, 50)] == [20, 50, 50, FOREVER]
    assert of.leaves(np.array([0, 2, 3]), np.zeros(3, dtype=np.int64)).tolist() == [40, 10, FOREVER]
    people = Population(6, {"old": range(2)})
    assert [chosen(text, people).tolist() for text in ("odd", "old", "2..4", "5")] == [[1, 3, 5], [0, 1], [2, 3, 4], [5]]
    for bad, said in (
        ({"9": Fraction(1)}, "`9` of 6 nodes"),
        ({"many": Fraction(1)}, "means no nodes"),
        ({"0": Fraction(1), "even": Fraction(2)}, "twice"),
    ):
        with pytest.raises(SettingError, match=f"^world.availability: .*{said}"):
            calendar(Timetable(joins=bad), 6)
    with pytest.raises(SettingError, match=r"^world.availability: node 2 leaves at 10 s, before it joins at 50 s$"):
        calendar(Timetable(joins={"even": Fraction(50)}, leaves={"2..3": Fraction(10)}), 6)


def test_a_trace_repeats(tmp_path: Path) -> None:
    file = tmp_path / "behave.json"
    file.write_text(json.dumps({"1": {"active": [10], "inactive": [30], "finish_time": 100, "duration": 20}}))
    of = calendar(TraceAvailability(file=str(file)), 3, per_second=10)
    assert [of.present(time).tolist() for time in (99, 100, 299, 300, 1100)] == [[v] * 3 for v in (False, True, True, False, True)]
    assert of.comes(0) == 100
    assert of.comes(400) == 1100


# Schedules


def timetable(leaving: Any = "finish", **times: Any) -> Timetable:
    return Timetable(leaving=leaving, **{name: {k: Fraction(v) for k, v in one.items()} for name, one in times.items()})


@dataclass(frozen=True, kw_only=True)
class Back(Scheduled):
    """All leave at 1 s; nodes 1 and 2 are back at 100 s, 0 at 200 s, 3 at 300 s."""

    def calendar(self, people: Population, key: Tensor, per_second: int) -> Windows:
        start, end = np.array([[0, back] for back in (200, 100, 100, 300)]), np.array([[1, 1000]] * 4)
        return Windows(start.ravel() * per_second, end.ravel() * per_second, np.arange(0, 10, 2), np.full(4, FOREVER))


@pytest.mark.parametrize("schedule", [Rounds(Count(2)), Buffered(1, Count(2)), Ticks(Fraction(1)), Gossip(), Pairwise()])
def test_with_nobody_there_the_clock_moves_on_to_who_comes_first(schedule: Any) -> None:
    """Jobs of 2 s."""
    world = World(durations(2, 2, 2, 2).compute, availability=Back())
    strategy = (Dsgd if schedule.peers else FedAvg)(train=steps(), schedule=schedule)
    fed = run(quadratics([1.0, 2.0, 3.0, 4.0]), strategy, seconds=104, world=world)
    sent = events(fed, "dispatch")
    late = sent["time"][sent["time"] > 0]
    assert late.min() == 100
    assert set(sent["node"][(sent["time"] > 0)].tolist()) == {1, 2}
    assert len(events(fed, "merge")["time"]) < 20


def test_nobody_ever_again_is_an_error_or_the_end() -> None:
    world = World(durations(2, 2).compute, availability=timetable(leaves={"all": 1}))
    strategy = FedAvg(train=steps(), schedule=ALL)
    with pytest.raises(RunError, match="round 2: nobody is there any more, and nobody comes again"):
        run(quadratics([1.0, 2.0]), strategy, 10, world)
    fed = run(quadratics([1.0, 2.0]), strategy, seconds=50, world=world)
    assert (fed.version, fed.now) == (1, 50 * fed.nature.per_second)


@pytest.mark.parametrize(
    ("leaving", "ends"), [("finish", [("arrival", 0, 2.0), ("arrival", 1, 3.0)]), ("drop", [("arrival", 0, 2.0), ("drop", 1, 2.5)])]
)
def test_who_leaves_at_work_finishes_or_drops_it(leaving: str, ends: list[Any]) -> None:
    """Node 0 leaves exactly when its job of 2 s arrives: in time."""
    world = World(durations(2, 3).compute, availability=timetable(leaving, leaves={"0": 2, "1": "2.5"}))
    fed = federation(quadratics([1.0, 2.0]), FedAvg(train=steps(), schedule=ALL), 1, world)
    assert fed.nature.faultless is (leaving == "finish")
    fed.run()
    table = events(fed, "arrival", "drop")
    assert list(zip(table["kind"].tolist(), table["node"].tolist(), table["time"].tolist(), strict=True)) == ends


@pytest.mark.parametrize("schedule", [Rounds(Count(3)), Buffered(2, Count(3)), Buffered(4, Count(3)), Ticks(Fraction(1, 2)), Pairwise()])
@pytest.mark.parametrize(
    "availability", [Markov(on=same(3), off=same(2)), Markov(on=same(3), off=same(2), leaving="drop"), Diurnal(share=PerNode(0.3), zones=3)]
)
def test_whoever_starts_is_there(schedule: Any, availability: Any) -> None:
    world = World(durations(*["1", "1.1", "1.3", "1.7", "1.9", "2.3"]).compute, availability=availability)
    strategy = (Dsgd if schedule.peers else FedAvg)(train=steps(), schedule=schedule)
    fed = run(quadratics([0.0] * 6), strategy, seconds=60, world=world)
    table = fed.ledger.columns()
    sent = table["kind"] == "dispatch"
    assert sent.sum() > 20
    for time, node in zip(table["time"][sent].tolist(), table["node"][sent].tolist(), strict=True):
        assert fed.nature.present(0, time)[node]
    if getattr(availability, "leaving", "") == "drop":
        assert fed.ledger.dropped > 0
    again = run(quadratics([0.0] * 6), strategy, seconds=60, world=world, chunk=2)
    assert np.array_equal(again.ledger.rows[: again.ledger.used], fed.ledger.rows[: fed.ledger.used])


def test_sampling_knows_its_chances_among_those_who_are_there() -> None:
    """Of n there, a cohort of 2 is asked with 2 / n each, whatever the clock says."""
    world = World(durations(*[1] * 6).compute, availability=Markov(on=same(10), off=same(10)))
    fed = federation(quadratics([0.0] * 6), FedAvg(train=steps(), schedule=Rounds(Count(2))), 1, world)
    for now in range(0, 100, 7):
        fed.now = now * fed.nature.per_second
        there = int(fed.present().sum())
        cohort = fed.sample(fed.schedule.sampling, Count(2))  # type: ignore[attr-defined]
        assert cohort.chance is not None
        assert cohort.chance.tolist() == [min(1.0, 2 / there)] * min(2, there)
