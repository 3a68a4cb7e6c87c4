"""Cohorts: their sizes, frequencies and probabilities."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import comb, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launch import refused, simulate, write

from fedsim.base.keys import below, fold
from fedsim.schedule import sampling as rule
from fedsim.schedule.sampling import BernoulliSampling, Cohort, Free, Sampling, UniformSampling, Weighted, few, lowest
from fedsim.settings.spread import LogNormal
from fedsim.settings.values import Linear, PerNode, Population

CERTAIN = 4.5  # standard deviations


def cohorts(sampling: Sampling, free: list[int], count: int, share: list[float], draws: int) -> list[Cohort]:
    """Cohorts of `draws` keys."""
    size, people, there = np.array(share), Population(len(share)), of(free, len(share))
    return [sampling.draw(there, count, size, people, key) for key in fold(0, "cohort", torch.arange(draws))]


def of(free: Sequence[int], nodes: int) -> Free:
    """These of so many; the others have a job."""
    job = np.zeros(nodes, dtype=np.int64)
    job[list(free)] = -1
    return Free(job, nodes - len(free))


def frequencies(drawn: list[Cohort], nodes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.bincount(np.concatenate([cohort.nodes for cohort in drawn]), minlength=nodes) / len(drawn)


@pytest.mark.parametrize("large", [rule.LARGE, 1])
@pytest.mark.parametrize("count", range(6))
def test_uniform_draws_each_subset_equally_often(count: int, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "LARGE", large)
    monkeypatch.setattr(rule, "SPARSE", 1)
    assert few(count, 5, 8) == (large == 1)
    free, draws = [1, 2, 4, 5, 7], 1000
    drawn = cohorts(UniformSampling(), free, count, [1 / 8] * 8, draws)
    seen = Counter(tuple(cohort.nodes.tolist()) for cohort in drawn)
    assert set(seen) == set(combinations(free, count))
    chance = 1 / comb(5, count)
    assert max(abs(times / draws - chance) for times in seen.values()) <= CERTAIN * sqrt(chance * (1 - chance) / draws)
    assert all(cohort.chance is not None and (cohort.chance == count / 5).all() for cohort in drawn)


def test_all_are_taken_where_more_are_wanted_than_are_there() -> None:
    for sampling in (UniformSampling(), Weighted()):
        (cohort,) = cohorts(sampling, [0, 2, 3], 10, [0.2, 0.3, 0.1, 0.4], 1)
        assert cohort.nodes.tolist() == [0, 2, 3]
        assert cohort.chance is not None
        assert cohort.chance.tolist() == [1, 1, 1]


def test_nobody_is_taken_where_nobody_is_there() -> None:
    for sampling in (UniformSampling(), Weighted(), BernoulliSampling(PerNode(1.0))):
        (cohort,) = cohorts(sampling, [], 2, [0.5, 0.5], 1)
        assert cohort.nodes.tolist() == []
        assert cohort.nodes.dtype == np.int64


def test_weighted_probabilities_by_hand() -> None:
    def chances(share: list[float], count: int) -> list[float]:
        sizes = np.array(share)
        return Weighted().chances(np.arange(len(share)), count, sizes, Population(len(share)), fold(0)).tolist()  # type: ignore[no-any-return]

    assert chances([0.125, 0.125, 0.25, 0.5], 1) == [0.125, 0.125, 0.25, 0.5]
    assert chances([0.125, 0.125, 0.25, 0.5], 2) == [0.25, 0.25, 0.5, 1]
    assert chances([0.125, 0.125, 0.25, 0.5], 3) == [0.5, 0.5, 1, 1]
    # 2 x 0.7 is capped: one place is left for 0.1, 0.1 and 0.1
    assert chances([0.1, 0.7, 0.1, 0.1], 2) == pytest.approx([1 / 3, 1, 1 / 3, 1 / 3], rel=1e-15)
    # the cap of the first lifts the second above 1: 3 x (0.6, 0.28) = (1.8, 0.84), then 2 x 0.28 / 0.4 = 1.4
    assert chances([0.6, 0.28, 0.04, 0.04, 0.04], 3) == pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 3], rel=1e-15)


sizes = st.lists(st.integers(1, 1000), min_size=1, max_size=20)


@given(sizes, st.integers(0, 25), st.data())
def test_weighted_probabilities_sum_to_the_count_and_are_at_most_one(samples: list[int], count: int, data: st.DataObject) -> None:
    share = np.array(samples) / sum(samples)
    free = np.array(sorted(data.draw(st.sets(st.integers(0, len(samples) - 1), min_size=1))))
    chance = Weighted().chances(free, count, share, Population(len(samples)), fold(0))
    assert chance.sum() == pytest.approx(min(count, len(free)), rel=1e-12)
    assert chance.max() <= 1 + 1e-12
    below = chance < 1 - 1e-9
    ratio = chance[below] / share[free][below]
    assert ratio == pytest.approx(np.full(below.sum(), ratio.mean() if below.any() else 0), rel=1e-9)
    # whoever is sure has more data than proportional sampling could use
    assert not below.any() or (share[free][~below] * ratio.mean() >= 1 - 1e-9).all()


@given(sizes, st.integers(0, 25), st.integers(0, 2**62))
def test_weighted_cohorts_have_the_exact_size(samples: list[int], count: int, seed: int) -> None:
    share, nodes = np.array(samples) / sum(samples), len(samples)
    cohort = Weighted().draw(of(range(nodes), nodes), count, share, Population(nodes), fold(seed))
    assert len(cohort.nodes) == min(count, nodes)
    assert (np.diff(cohort.nodes) > 0).all()


def test_weighted_frequencies_are_the_probabilities() -> None:
    samples, free, draws = np.array([5, 30, 2, 8, 11, 40, 4]), [0, 1, 3, 4, 5, 6], 3000
    drawn = cohorts(Weighted(), free, 3, (samples / 100).tolist(), draws)
    chance = Weighted().chances(np.array(free), 3, samples / 100, Population(7), fold(0))
    # 3 x 40 of 98 is over 1, then 2 x 30 of 58; one place is left for 28
    assert chance.tolist() == pytest.approx([5 / 28, 1, 8 / 28, 11 / 28, 1, 4 / 28], rel=1e-14)
    assert (np.abs(frequencies(drawn, 7)[free] - chance) <= CERTAIN * np.sqrt(chance * (1 - chance) / draws) + 1e-12).all()
    assert all(cohort.chance is not None and np.array_equal(cohort.chance, chance[np.searchsorted(free, cohort.nodes)]) for cohort in drawn)


def test_weighted_neighbours_vary() -> None:
    """The order is drawn anew for each key, so that any pair can meet."""
    drawn = cohorts(Weighted(), list(range(6)), 2, [1 / 6] * 6, 500)
    pairs = Counter(tuple(cohort.nodes.tolist()) for cohort in drawn)
    assert set(pairs) == set(combinations(range(6), 2))


def test_bernoulli_tosses_a_coin_for_each() -> None:
    free, draws = [0, 1, 3], 1500
    sampling = BernoulliSampling(PerNode([0.0, 0.25, 0.5, 1.0]))
    drawn = cohorts(sampling, free, 99, [0.25] * 4, draws)
    assert (np.abs(frequencies(drawn, 4) - [0, 0.25, 0, 1]) <= [0, CERTAIN * sqrt(0.1875 / draws), 0, 0]).all()
    assert {tuple(cohort.nodes.tolist()) for cohort in drawn} == {(3,), (1, 3)}
    assert all(cohort.chance is not None and cohort.chance.tolist() in ([1], [0.25, 1]) for cohort in drawn)
    both = cohorts(BernoulliSampling(PerNode(0.5)), [0, 1], 1, [0.5, 0.5], draws)  # independent: all four subsets
    seen = Counter(tuple(cohort.nodes.tolist()) for cohort in both)
    assert max(abs(times / draws - 1 / 4) for times in seen.values()) < CERTAIN * sqrt(0.1875 / draws)
    assert len(seen) == 4


def test_bernoulli_chances_may_differ_over_nodes() -> None:
    sampling = BernoulliSampling(PerNode(Linear(0.0, 1.0)))
    chance = sampling.chances(np.array([1, 4]), 0, np.full(5, 0.2), Population(5), fold(0))
    assert chance.tolist() == [0.25, 1]


def test_a_drawn_chance_above_one_is_one() -> None:
    spread = LogNormal(0.8, 1.0)
    drawn = spread.floats(range(50), fold(fold(0), "chance"))
    assert (drawn > 1).any()
    chance = BernoulliSampling(PerNode(spread)).chances(np.arange(50), 0, np.full(50, 0.02), Population(50), fold(0))
    assert chance.tolist() == [min(1.0, one) for one in drawn.tolist()]


@pytest.mark.parametrize("sampling", [UniformSampling(), Weighted(), BernoulliSampling(PerNode(0.4))])
def test_a_cohort_is_a_function_of_the_key(sampling: Sampling) -> None:
    share = [0.1, 0.2, 0.3, 0.05, 0.15, 0.1, 0.1]
    first, again = (cohorts(sampling, [0, 1, 2, 4, 5, 6], 3, share, 30) for _ in range(2))
    assert [cohort.nodes.tolist() for cohort in first] == [cohort.nodes.tolist() for cohort in again]
    assert len({tuple(cohort.nodes.tolist()) for cohort in first}) > 5


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=12, unique=True), st.integers(0, 14))
def test_lowest(score: list[int], count: int) -> None:
    at = lowest(np.array(score, dtype=np.int64), count).tolist()
    assert at == sorted(sorted(range(len(score)), key=score.__getitem__)[:count])


def test_a_few_of_many_are_the_first_free_ones_among_keyed_numbers() -> None:
    free, key = of(range(0, 5000, 2), 5000), fold(0, 3)
    assert few(70, 2500, 5000) and not few(79, 2500, 5000) and not few(1, 4095, 4095)
    numbers = dict.fromkeys(number for number in below(key, 1000, 5000).tolist() if number % 2 == 0)
    for count in (1, 2, 70):
        assert free.lot(count, fold(0), 3).tolist() == sorted(list(numbers)[:count])
    assert "nodes" not in vars(free)  # nobody looked at all of them
    assert len(free.lot(79, key, 0)) == 79 and "nodes" in vars(free)


def test_absence_is_looked_at_where_it_is_possible() -> None:
    present = np.arange(5000) % 3 == 0
    free = Free(np.where(np.arange(5000) % 2, 7, -1), 2500, present)
    assert free.nodes.tolist() == list(range(0, 5000, 6)) and len(free) == 834
    assert (free.lot(5, fold(1), 0) % 6 == 0).all()


def test_drawing_among_very_few_free_nodes_ends() -> None:
    free = of(range(100, 132), 200_000)
    assert few(1, 32, 200_000)
    assert 100 <= int(free.lot(1, fold(5), 0)[0]) < 132


GROWING = ("schedule.cohort=2", "engine.plan=looped", "train.steps=1", "evaluate.every=1 rounds")


@pytest.mark.parametrize(
    ("growth", "sizes"),
    [
        ("{name: linear, start: 1, end: 3, rounds: 2}", [2, 4, 6, 6]),
        ("{name: exponential, start: 2, factor: 0.25}", [4, 1, 1, 1]),  # 4, 1, 0.25 and 0.06
        ("{name: steps, start: 1, factor: 9, at_rounds: [2]}", [2, 2, 8, 8]),  # 18 of 8
        ("1.5", [3, 3, 3, 3]),
    ],
)
def test_cohorts_grow_by_the_round(folder: Path, growth: str, sizes: list[int]) -> None:
    run = simulate(folder, *GROWING, f"schedule.growth={growth}")
    assert np.diff(run.column("work/updates")).tolist() == sizes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["schedule.sampling={name: bernoulli, chance: 0.5}", "schedule.cohort=at most 10"],
            "schedule.growth: `bernoulli` sampling decides",
        ),
        (["strategy.weights=uniform", "privacy={clip: 1, noise: 1}"], "cohorts change in size over rounds"),
        (
            [
                "strategy.average={name: krum, attackers: 1}",
                "schedule.cohort=3",
                "schedule.growth={name: linear, start: 2, end: 1, rounds: 3}",
            ],
            "`krum` against 1 attackers needs 5 messages a merge, and there are 3 at most",
        ),
    ],
)
def test_what_needs_a_known_size_says_so(folder: Path, settings: list[str], said: str) -> None:
    growth = "schedule.growth={name: linear, start: 1, end: 3, rounds: 2}"
    assert said in " ".join(refused("run", write(folder), growth, *settings).split())
