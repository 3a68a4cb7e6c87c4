"""What few seeds can tell: numbers by hand."""

from math import isnan, sqrt

import pytest

from fedsim.report.comparison.statistics import enough, floor, holm, paired, sign_flip


def test_a_t_interval_of_three_differences() -> None:
    """1, 2, 3: mean 2, deviation 1, error 1/sqrt(3). With two degrees of freedom Student's distribution has a closed form,
    P(T < -t) = 1/2 - t / (2 sqrt(2 + t^2)): for t = 2 sqrt(3) p is 1 - sqrt(12 / 14), and 97.5 % lie below sqrt(2 a^2 / (1 - a^2)) with
    a = 0.95.
    """
    found = paired([1.0, 2.0, 3.0])
    assert (found.number, found.mean) == (3, 2.0)
    assert found.p == pytest.approx(1 - sqrt(12 / 14))
    assert found.half == pytest.approx(sqrt(2 * 0.95**2 / (1 - 0.95**2)) / sqrt(3))
    assert found.half == pytest.approx(4.302653 / sqrt(3))  # as in tables
    assert found.interval == pytest.approx((2 - found.half, 2 + found.half))
    assert found.flip == 2 / 8


def test_signs_turned_round() -> None:
    """1, 2, -4 add up to -1: of the sums 7, 3, 5, 1 and their opposites all are as far from 0; without the last, 1 + 2 and its opposite."""
    assert sign_flip([1.0, 2.0, -4.0]) == 1.0
    assert sign_flip([1.0, 2.0]) == 2 / 4
    assert sign_flip([3.0, 3.0, -1.0, 3.0]) == 4 / 16  # 8, 10 and their opposites; 4 and 2 are nearer
    assert sign_flip([0.1] * 6) == 2 / 64  # also where sums are rounded
    assert sign_flip([0.0, 0.0]) == 1.0


def test_holm_by_hand() -> None:
    """0.01 x 3, then 0.03 x 2, then 0.04 x 1, which may not be less than the one before: 0.06."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    corrected = holm([0.5, float("nan"), 0.9])
    assert corrected[0] == 1.0 and isnan(corrected[1]) and corrected[2] == 1.0
    assert holm([]) == []


def test_what_so_few_seeds_can_decide() -> None:
    assert [floor(pairs) for pairs in (1, 3, 6)] == [1.0, 0.25, 0.03125]
    assert floor(6, 3) == pytest.approx(0.09375)
    assert [enough(), enough(2), enough(3)] == [6, 7, 7] and floor(enough(3), 3) < 0.05 < floor(enough(3) - 1, 3)


def test_too_few_or_all_alike() -> None:
    assert isnan(paired([]).mean) and isnan(paired([1.0]).p) and paired([1.0]).mean == 1.0
    alike = paired([0.1, 0.1, 0.1])
    assert isnan(alike.p) and isnan(alike.half) and (alike.mean, alike.flip) == (pytest.approx(0.1), 0.25)
    assert isnan(sign_flip([1.0] * 21))
