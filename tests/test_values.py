"""Values that differ over nodes or change over rounds."""

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.base.keys import fold
from fedsim.settings.values import (
    ALL,
    Constant,
    Cosine,
    Count,
    Curve,
    Exponential,
    Linear,
    LogNormal,
    Periodic,
    PerNode,
    Points,
    Population,
    PowerLaw,
    Ramp,
    Steps,
    Uniform,
    Warmup,
)

KEY = fold(0, "values")
SIX = Population(6, {"fast": range(2), "slow": range(2, 6)})
NANO = 10**9


def floats(value: Any, people: Population = SIX) -> list[float]:
    return PerNode(value).floats(people, KEY).tolist()  # type: ignore[no-any-return]


def ticks(value: Any, people: Population = SIX, per_second: int = NANO) -> list[int]:
    return PerNode(value).ticks(people, KEY, per_second).tolist()  # type: ignore[no-any-return]


def by_group(fast: Any, slow: Any) -> dict[str, PerNode[Any]]:
    return {"slow": PerNode(slow), "fast": PerNode(fast)}


def test_counts() -> None:
    assert [ALL.of(7), Count(number=3, strict=True).of(7), Count(number=9).of(7)] == [7, 3, 7]
    assert [Count(share=share).of(10) for share in (0.01, 0.2, 0.26, 1.0)] == [1, 2, 3, 10]
    with pytest.raises(ValueError, match=r"^8 of 7 nodes$"):
        Count(number=8, strict=True).of(7)


def test_one_value_a_list_and_groups() -> None:
    assert floats(0.5) == [0.5] * 6
    assert floats([1, 2, 3, 4, 5, 6]) == [1, 2, 3, 4, 5, 6]
    assert floats(by_group(0.25, Fraction(3, 2))) == [0.25] * 2 + [1.5] * 4
    assert floats(by_group([7, 8], Linear(0.0, 3.0))) == [7, 8, 0, 1, 2, 3]
    assert ticks(Fraction(1, 3), per_second=3) == [1] * 6
    assert ticks([Fraction(i, 7) for i in range(6)], per_second=7) == [0, 1, 2, 3, 4, 5]
    assert ticks(by_group(Fraction(1, 4), [Fraction(i, 2) for i in range(4)]), per_second=4) == [1, 1, 0, 2, 4, 6]


@pytest.mark.parametrize(
    ("value", "people", "message"),
    [
        ([1, 2], SIX, "a list of 2 values for 6 nodes"),
        (by_group(1, [1, 2, 3]), SIX, "a list of 3 values for 4 nodes"),
        (by_group([1], 2), SIX, "a list of 1 values for 2 nodes"),
        ({"fast": PerNode(1)}, SIX, "by group needs one value for each of the groups (fast, slow), not fast"),
        (by_group(1, 2) | {"idle": PerNode(3)}, SIX, "by group needs one value for each of the groups (fast, slow), not slow, fast, idle"),
        ({"fast": PerNode(1)}, Population(6), "by group needs one value for each of the groups (none: `groups` is not set), not fast"),
    ],
)
def test_values_that_do_not_fit_the_population(value: Any, people: Population, message: str) -> None:
    for read in (floats, ticks):
        with pytest.raises(ValueError, match=re.escape(message)):
            read(value, people)


def test_a_constant_is_known_as_one() -> None:
    assert PerNode(Fraction(1, 2)).constant == Fraction(1, 2)
    assert [PerNode[Any](value).constant for value in ([1], by_group(1, 1), Linear(1.0, 1.0))] == [None] * 3


def test_linear_is_exact_in_ticks() -> None:
    """Five nodes from 1 s to 0.2 s; twenty need nineteenths."""
    assert ticks(Linear(Fraction(1), Fraction(1, 5)), Population(5), 10) == [10, 8, 6, 4, 2]
    twenty, f80 = Population(20), PerNode[Fraction](Linear(Fraction(1), Fraction(1, 5)))
    assert f80.denominator(twenty) == 19
    assert f80.ticks(twenty, KEY, 19 * NANO).tolist() == [19 * NANO - 800_000_000 * i for i in range(20)]
    assert f80.ticks(twenty, KEY, NANO)[7] == round(Fraction(10**9) - Fraction(7 * 800_000_000, 19))  # rounded where ticks are too long
    assert f80.floats(twenty, KEY) == pytest.approx([1 - 0.8 * i / 19 for i in range(20)], rel=1e-15)
    assert floats(Linear(3.0, 9.0), Population(1)) == [3]


def test_denominators_join() -> None:
    assert PerNode(Fraction(1, 3)).denominator(SIX) == 3
    assert PerNode[Fraction]([Fraction(1, 3), Fraction(1, 7), *[Fraction(1, 8)] * 4]).denominator(SIX) == 21  # 1/8 s is whole nanoseconds
    assert PerNode(by_group(Fraction(1, 11), Linear(Fraction(0), Fraction(1)))).denominator(SIX) == 33
    assert PerNode[Fraction](LogNormal(Fraction(1, 3), 1.0)).denominator(SIX) == 1


@given(st.fractions(0, 10, max_denominator=60), st.fractions(0, 10, max_denominator=60), st.integers(1, 12))
def test_ticks_of_a_line_have_no_rounding(first: Fraction, last: Fraction, nodes: int) -> None:
    value, people = PerNode[Fraction](Linear(first, last)), Population(nodes)
    per_second = NANO * value.denominator(people)
    exact = [Fraction(int(tick), per_second) for tick in value.ticks(people, KEY, per_second)]
    assert exact == [first + (last - first) * i / max(1, nodes - 1) for i in range(nodes)]


def test_drawn_values_have_their_distribution() -> None:
    many = Population(20_000)
    drawn = np.log(floats(LogNormal(3.0, 0.5), many))
    assert abs(np.median(drawn) - np.log(3)) < 4 * 1.2533 * 0.5 / np.sqrt(20_000)
    assert abs(drawn.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * 20_000)
    assert floats(LogNormal(3.0, 0.0)) == [3] * 6
    flat = np.sort(floats(Uniform(-1.0, 4.0), many))
    assert flat[0] >= -1
    assert flat[-1] < 4
    assert np.abs(flat - np.linspace(-1, 4, 20_000)).max() < 5 * 1.95 / np.sqrt(20_000)  # Kolmogorov, 0.1 %


def test_draws_belong_to_the_node_whatever_the_groups() -> None:
    """Two groups with the same spread have draws of their own."""
    for spread in (LogNormal(1.0, 1.0), Uniform(0.0, 1.0)):
        whole = floats(spread)
        assert floats(by_group(spread, spread)) == whole
        assert len(set(whole)) == 6
        assert ticks(spread) == np.rint(np.array(whole) * NANO).tolist()


ROUNDS = np.arange(6)


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        (Constant(0.1), [0.1] * 6),
        (Exponential(8.0, 0.5), [8, 4, 2, 1, 0.5, 0.25]),
        (Exponential(9.0, 0.5, end=1.0), [9, 5, 3, 2, 1.5, 1.25]),
        (PowerLaw(1.0), [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]),
        (PowerLaw(0.5, 0.5, 4.0), [1 / (k + 4) ** 0.5 for k in range(6)]),  # a = start x k0^t = 1
        (PowerLaw(3.0, 0.0), [3] * 6),
        (Points((1, 3, 4), (2.0, 0.0, 5.0)), [2, 2, 1, 0, 5, 5]),
        (Points((2,), (7.0,)), [7] * 6),
        (Cosine(1.0, 4), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),
        (Cosine(3.0, 2, end=1.0), [3, 2, 1, 1, 1, 1]),
        (Ramp(1.0, 0.0, 4), [1, 0.75, 0.5, 0.25, 0, 0]),
        (Ramp(0.0, 2.0, 1), [0, 2, 2, 2, 2, 2]),
        (Steps(8.0, 0.5, (1, 4)), [8, 4, 4, 4, 2, 2]),
        (Steps(8.0, 0.5, (4, 1)), [8, 4, 4, 4, 2, 2]),
        (Steps(8.0, 0.5, ()), [8] * 6),
        (Warmup(3, Ramp(8.0, 6.0, 2)), [2, 4, 6, 8, 7, 6]),
        (Periodic(2, Ramp(8.0, 0.0, 2), 0.5), [8, 4, 4, 2, 2, 1]),
        (Warmup(1, Periodic(2, Steps(4.0, 0.5, (1,)))), [2, 4, 2, 4, 2, 4]),
    ],
)
def test_curves_by_hand(curve: Curve, values: list[float]) -> None:
    found = curve.at(ROUNDS)
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx(values, rel=1e-15, abs=1e-16)
    assert curve.at(np.array([5, 0])).tolist() == pytest.approx([values[5], values[0]], rel=1e-15, abs=1e-16)


@pytest.mark.parametrize(("rounds", "values"), [((), ()), ((1, 2), (1.0,)), ((2, 2), (1.0, 2.0)), ((3, 2), (1.0, 2.0))])
def test_points_have_a_value_at_each_of_rising_rounds(rounds: tuple[int, ...], values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="one value for each of some rising rounds"):
        Points(rounds, values)
