"""Averages by hand: what they return, what f arbitrary messages can't do to them, and what they reduce to."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from frames import jobs
from hypothesis import given
from launch import TEXT, refused, simulate, write
from tools import classification, durations, inbox, models, quadratics, quick, steps
from tools import same as each
from torch import Tensor

from fedsim.base.errors import RunError, SettingError, TooFew
from fedsim.base.keys import fold, normal
from fedsim.method import average
from fedsim.method.average import Average, Bulyan, ClippedMean, GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from fedsim.method.discount import ConstantDiscount
from fedsim.schedule import Buffered, Gossip, Rounds
from fedsim.settings.values import Count
from fedsim.world import Faults, World
from strategies.fedavg import FedAvg
from strategies.fedavgm import FedAvgM
from strategies.fedbuff import FedBuff

ALL = Rounds(Count())
AVERAGES = [Mean(), ClippedMean(), ClippedMean(9.0), Median(), GeometricMedian(), TrimmedMean(1), Krum(1), MultiKrum(1), Bulyan(1)]
ROBUST = [one for one in AVERAGES if not isinstance(one, Mean | ClippedMean)]


def of(one: Average, rows: Any, weights: Any = "uniform", weight: Any = None, **more: Any) -> Any:
    news = inbox([0.1] * len(rows) if weight is None else weight, update=rows, **more)
    return one.of(news, "update", weights)[0].tolist()


def named(one: Average) -> str:
    return one.name


# What all of them do


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_messages_are_summed_by_hearer_whatever_their_numbers_and_shape(dtype: torch.dtype) -> None:
    news = replace(inbox([2, 1, 3], update=[0, 0, 0]), hearer=torch.tensor([3, 1, 3]), hearers=4)
    parts = {"wide": torch.tensor([[1, 2], [10, 20], [100, 200]]), "flat": torch.tensor([1, 10, 100])}
    parts = {name: rows.to(dtype) for name, rows in parts.items()}
    news = replace(news, parts=parts | {"square": parts["wide"][:, None]})
    assert news.sum("wide").tolist() == [[0, 0], [10, 20], [0, 0], [302, 604]] and news.sum("flat").tolist() == [0, 10, 0, 302]
    assert news.sum("square").shape == (4, 1, 2) and news.as_one.sum("flat").tolist() == [312] and news.sum("wide").dtype == dtype
    none = replace(news, parts={"wide": parts["wide"][:0], "flat": parts["flat"][:0]}, hearer=news.hearer[:0], weight=news.weight[:0])
    assert none.sum("wide").tolist() == [[0, 0]] * 4 and none.sum("flat").tolist() == [0] * 4


@pytest.mark.parametrize("one", AVERAGES, ids=named)
@given(row=st.lists(st.floats(-2, 2), min_size=1, max_size=4), count=st.integers(7, 9))
def test_equal_messages_are_their_average(one: Average, row: list[float], count: int) -> None:
    assert of(one, [row] * count) == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize("one", AVERAGES, ids=named)
@given(order=st.permutations(range(8)), seed=st.integers(0, 9))
def test_the_order_of_messages_does_not_matter(one: Average, order: list[int], seed: int) -> None:
    rows = normal(fold(seed, torch.arange(8)), 3).double()
    assert of(one, rows[order]) == pytest.approx(of(one, rows), abs=1e-9)


@pytest.mark.parametrize("one", AVERAGES, ids=named)
def test_slabs_and_shapes_change_nothing(one: Average, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(fold(1, torch.arange(9)), 60)
    news = inbox([0.1] * 9, update=[0.0] * 9)
    news.parts["update"] = rows.view(9, 5, 12)
    whole = one.of(news, "update", "uniform")
    assert whole.shape == (1, 5, 12) and whole.dtype == torch.float32
    monkeypatch.setattr(average, "SLAB", 63)
    assert torch.allclose(one.of(news, "update", "uniform"), whole, atol=1e-6)


@pytest.mark.parametrize("one", [*ROBUST, ClippedMean(1.0)], ids=named)
@given(seed=st.integers(0, 5), lie=st.floats(-1e6, 1e6))
def test_one_attacker_in_nine_leads_none_astray(one: Average, seed: int, lie: float) -> None:
    honest = normal(fold(seed, torch.arange(8)), 5).double()
    found = torch.tensor(of(one, torch.cat([honest, torch.full((1, 5), lie).double()])))
    assert (found - honest.mean(0)).norm() < 2 * honest.std(0).norm()
    assert abs(lie) < 100 or torch.tensor(of(Mean(), torch.cat([honest, torch.full((1, 5), lie).double()]))).norm() > 10


@pytest.mark.parametrize("one", [Median(), TrimmedMean(3)], ids=named)
@given(lies=st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), min_size=3, max_size=3), seed=st.integers(0, 5))
def test_arbitrary_messages_cannot_leave_the_honest_range(one: Average, lies: list[list[float]], seed: int) -> None:
    """nan and infinities among them; 3 of 7."""
    honest = normal(fold(seed, torch.arange(4)), 4).double()
    found = torch.tensor(of(one, torch.cat([honest, torch.tensor(lies).double()])), dtype=torch.float64)
    assert (honest.min(0).values <= found).all() and (found <= honest.max(0).values).all()


@pytest.mark.parametrize("one", [GeometricMedian(), Krum(2), MultiKrum(2), Bulyan(2)], ids=named)
@pytest.mark.parametrize("lie", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_left_out(one: Average, lie: float) -> None:
    rows = torch.cat([torch.full((2, 3), lie), normal(fold(3, torch.arange(9)), 3)]).double()
    assert torch.tensor(of(one, rows)).isfinite().all()
    assert not torch.tensor(of(one, rows[:1].expand(11, -1))).isfinite().any()  # where none is, the run must end


# Each by hand


def test_medians() -> None:
    assert of(Median(), [[1, 9], [5, 2], [-3, 4]]) == [1, 4]
    assert of(Median(), [[1], [2], [7], [100]]) == [4.5]


def test_the_trimmed_mean_drops_ends_by_coordinate() -> None:
    rows = [[0, 50], [1, 1], [2, 2], [4, -9], [90, 3]]
    assert of(TrimmedMean(1), rows) == [7 / 3, 2]  # (1 + 2 + 4) / 3, (1 + 2 + 3) / 3
    assert of(TrimmedMean(2), rows) == [2, 2] == of(Median(), rows)
    assert of(TrimmedMean(0.2), rows) == of(TrimmedMean(1), rows)
    assert of(TrimmedMean(0.19), rows) == of(TrimmedMean(0), rows) == pytest.approx(of(Mean(), rows))


def test_krums_choice_by_hand() -> None:
    # m = 5, f = 1: the two nearest of each. 0: 1 + 9, 1: 1 + 4, 3: 4 + 9, 10: 49 + 81, 50: 1600 + 47^2
    assert of(Krum(1), [[0], [1], [3], [10], [50]]) == [1]
    assert of(Krum(1), [[50], [10], [3], [0], [1]]) == [1]
    # the liars agree, but three near ones count: 9: 0 + 4 + 4.5^2, 2: 1 + 4 + 2.5^2, 3: 1 + 1.5^2 + 9, 4.5: 1.5^2 + 2 x 2.5^2
    assert of(Krum(2), [[9], [9], [0], [2], [3], [4.5], [7]]) == [2]
    # without attackers m - 2 near ones: 0: 1 + 9 = 10, 1: 1 + 4 = 5, 3: 4 + 9 = 13, 10: 49 + 81
    assert of(Krum(0), [[0], [1], [3], [10]]) == [1]


def test_multi_krum_is_the_mean_of_the_best() -> None:
    rows = [[0], [1], [3], [10], [50]]  # scores 10, 5, 13, 130, 3809
    assert of(MultiKrum(1, keep=1), rows) == of(Krum(1), rows)
    assert of(MultiKrum(1, keep=3), rows) == pytest.approx([4 / 3])
    assert of(MultiKrum(1), rows) == [3.5]  # m - f = 4


def test_bulyan_by_hand() -> None:
    # m = 7, f = 1, four nearest: 0 has 1 + 4 + 9 + 25 and 60 the most, 7 the second most. Of 0 1 2 3 5 the three nearest to 2
    assert of(Bulyan(1), [[60], [1], [2], [0], [3], [5], [7]]) == [2]


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=8), st.integers(0, 7))
def test_the_numbers_nearest_to_the_median(column: list[int], fewer: int) -> None:
    count = max(1, len(column) - fewer)
    values = torch.tensor(sorted(column)).double()[:, None]
    median = average.middle(values).item()
    found = average.central(values, count).item() * count
    ways = [*combinations(column, count)]
    far = [sum(abs(value - median) for value in way) for way in ways]
    assert round(found) in {sum(way) for way, distance in zip(ways, far, strict=True) if distance == min(far)}


@pytest.mark.parametrize(("weights", "expected"), [("uniform", 0.0), ("samples", 1.0)])
def test_the_geometric_median_of_three_points(weights: Any, expected: float) -> None:
    """On a line it is the (weighted) median; on an equilateral triangle the centre; where an angle has 120 degrees, that corner."""
    assert of(GeometricMedian(), [[-5], [0], [1]], weights, [0.1, 0.2, 0.7]) == pytest.approx([expected], abs=1e-5)
    triangle = [[0, 0], [2, 0], [1, 3**0.5]]
    assert of(GeometricMedian(), triangle) == pytest.approx([1, 3**-0.5], abs=1e-8)
    assert of(GeometricMedian(), [[0, 0], [5, 1], [-5, 1]]) == pytest.approx([0, 0], abs=1e-4)


def test_the_fermat_point_of_a_right_triangle() -> None:
    # corners 0, (3, 0), (0, 3): on the diagonal, x = y = 3 (3 - sqrt 3) / 6, where all three angles are 120 degrees
    x = 3 * (3 - 3**0.5) / 6
    assert of(GeometricMedian(), [[0, 0], [3, 0], [0, 3]]) == pytest.approx([x, x], abs=1e-7)


def test_clipped_means() -> None:
    # lengths 5, 1, 10, their median 5
    rows = [[3, 4], [0, 1], [-10, 0]]
    assert of(ClippedMean(), rows) == pytest.approx([(3 + 0 - 5) / 3, (4 + 1) / 3])
    assert of(ClippedMean(1.0), rows) == pytest.approx([(0.6 - 1) / 3, 1.8 / 3])
    assert of(ClippedMean(1.0), rows, "samples", [0.5, 0.25, 0.25]) == pytest.approx([0.3 - 0.25, 0.4 + 0.25])
    assert of(ClippedMean(), [[0, 0]] * 3) == [0, 0]


@pytest.mark.parametrize("one", [Median(), TrimmedMean(1), Krum(1), MultiKrum(1), Bulyan(1)], ids=named)
def test_those_that_count_each_message_once_do_so(one: Average) -> None:
    rows = normal(fold(5, torch.arange(7)), 2).double()
    assert of(one, rows, "samples", [0.4, 0.3, 0.1, 0.1, 0.05, 0.03, 0.02]) == of(one, rows)


# What they reduce to, in runs


def trained(strategy: FedAvg, rounds: int = 4) -> Tensor:
    return models(quick(classification([7, 11, 9, 13, 5]), strategy, rounds))


@pytest.mark.parametrize(
    ("one", "exact"),
    [(MultiKrum(0), True), (ClippedMean(1e9), True), (TrimmedMean(0), False), (Bulyan(0), False)],
    ids=["multi_krum", "clipped_mean", "trimmed_mean", "bulyan"],
)
def test_without_attackers_it_is_the_uniform_mean(one: Average, exact: bool) -> None:
    settings: Any = {"train": steps(3, 0.2, batch=4), "schedule": ALL, "weights": "uniform"}
    plain, other = trained(FedAvg(**settings)), trained(FedAvg(**settings, average=one))
    assert torch.equal(plain, other) if exact else torch.allclose(plain, other, atol=1e-6)


def test_subclasses_of_fedavg_have_them() -> None:
    fed = quick(quadratics([1.0, 2.0, 90.0]), FedAvgM(train=steps(lr=0.5), schedule=ALL, average=Median()), 1)
    assert fed.state["model"].item() == 1  # half of the way to 2


def test_the_buffers_average_is_of_discounted_updates() -> None:
    news = inbox([0.1, 0.2, 0.7], age=[0, 3, 8], update=[1, 4, 9])
    state = {"model": torch.zeros(1, 1, dtype=torch.float64)}
    assert FedBuff(average=Median()).merge(dict(state), news)["model"].item() == 2  # of 1, 4 / 2 and 9 / 3
    assert FedBuff(average=ClippedMean(2.0)).merge(dict(state), news)["model"].item() == pytest.approx((1 + 2 + 2) / 3)
    assert FedBuff(average=Krum(0), discount=ConstantDiscount()).merge(dict(state), news)["model"].item() == 1  # distances 3, 3, 5


def test_a_buffered_run() -> None:
    settings: Any = {"train": steps(lr=0.5), "schedule": Buffered(size=3), "discount": ConstantDiscount()}
    world = durations(*jobs(5))
    lie = quadratics([1e6, 1.0, 1.0, 1.0, 1.0])  # the slowest lies: once in a buffer
    assert abs(quick(lie, FedBuff(**settings, average=Median()), 9, world=world).state["model"].item() - 1) < 1
    assert quick(lie, FedBuff(**settings), 9, world=world).state["model"].item() > 1e4


# What is refused


@pytest.mark.parametrize(
    ("one", "least"), [(TrimmedMean(2), 5), (Krum(2), 7), (MultiKrum(2), 7), (Bulyan(2), 11), (MultiKrum(0, keep=6), 6)], ids=str
)
def test_too_few_messages_are_refused_before_the_start(one: Average, least: int) -> None:
    settings: Any = {"train": steps(), "average": one}
    for schedule in (Rounds(Count(least - 1)), Rounds(Count(), wait_for=least - 1)):
        with pytest.raises(SettingError, match=rf"strategy.average: .*{least} .* there are {least - 1} at most"):
            quick(quadratics([1.0] * 12), FedAvg(**settings, schedule=schedule), 1)
    with pytest.raises(SettingError, match=f"there are {least - 1} at most"):
        quick(quadratics([1.0] * 12), FedBuff(**settings, schedule=Buffered(least - 1)), 1, world=durations(*range(1, 13)))
    quick(quadratics([1.0] * 12), FedAvg(**settings, schedule=Rounds(Count(least))), 1)


def test_a_share_of_attackers_is_rounded_down() -> None:
    assert [Krum(0.2).among(m) for m in (3, 4, 5, 10, 50)] == [0, 0, 1, 2, 10]
    with pytest.raises(TooFew, match="`krum` against 3 attackers needs 9 messages a merge, and there are 8"):
        Krum(0.4).among(8)


def test_a_merge_with_too_few_ends_the_run_naming_the_round() -> None:
    world = World(faults=Faults(crash=each(0.4)))
    strategy = FedAvg(train=steps(), schedule=ALL, average=Krum(2))
    with pytest.raises(RunError, match=r"^round \d+: `krum` against 2 attackers needs 7 messages a merge, and there are [3-6]$"):
        quick(quadratics([1.0] * 8), strategy, 200, world=world)
    quick(quadratics([1.0] * 8), FedAvg(train=steps(), schedule=ALL, average=TrimmedMean(0.2)), 20, world=world)


@pytest.mark.parametrize("one", [ClippedMean(), Median(), GeometricMedian(), Krum(0)], ids=named)
def test_peers_have_no_average(one: Average) -> None:
    with pytest.raises(SettingError, match=f"average `{one.name}` is a server's"):
        quick(quadratics([1.0] * 5), FedAvg(train=steps(), schedule=Gossip(), average=one), 1)


def test_in_a_scenario(folder: Any) -> None:
    run = simulate(folder, text=TEXT.replace("strategy: fedavg", "strategy: {name: fedprox, average: {name: trimmed_mean, attackers: 1}}"))
    assert run.info["final"]["round"] == 4
    text = TEXT.replace("strategy: fedavg", "strategy: {name: fedavg, average: {name: krum, attackers: 1}}")
    said = "strategy.average: `krum` against 1 attackers needs 5 messages a merge, and there are 4 at most"
    assert said in refused("run", write(folder, text).name)
    for bad in ("-1", "1.5", "120 %"):
        assert "strategy.average.attackers" in refused("run", write(folder, text.replace("attackers: 1", f"attackers: {bad}")).name)
    assert "unknown key `strategy.average`" in refused("run", write(folder, text.replace("fedavg", "fedstale")).name)


def test_private_messages_have_no_medians(folder: Any) -> None:
    text = TEXT.replace("strategy: fedavg", "strategy: {name: fedavg, weights: uniform, average: median}\nprivacy: {clip: 1, noise: 1}")
    assert "`privacy` lets out noisy means only" in refused("run", write(folder, text).name)
