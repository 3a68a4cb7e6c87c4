"""Statistics of a split, by closed forms."""

from pathlib import Path

import numpy as np
import pytest
from folders import simulate, write_run
from hypothesis import given
from hypothesis import strategies as st
from launch import TEXT, call, write

from fedsim.data.skew import PAIRS, hellinger, jensen_shannon, label_skew, pairs, size_skew
from fedsim.report.inspection import inspect_run
from fedsim.run.folders import RunFolder

HALF, ONE, OTHER = (np.array(p) for p in ([0.5, 0.5], [1.0, 0.0], [0.0, 1.0]))


def test_distances_are_0_for_the_same_and_1_for_disjoint_distributions() -> None:
    for distance in (hellinger, jensen_shannon):
        assert distance(HALF, HALF) == distance(ONE, ONE) == 0
        assert distance(ONE, OTHER) == 1
    # sqrt(1 - sqrt(1/2)); (log2(4/3) + (log2(2/3) + log2 2) / 2) / 2
    assert hellinger(HALF, ONE) == pytest.approx((1 - 0.5**0.5) ** 0.5)
    assert jensen_shannon(HALF, ONE) == pytest.approx((np.log2(4 / 3) + (np.log2(2 / 3) + 1) / 2) / 2)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=2, max_size=9))
def test_distances_are_symmetric_and_within_their_bounds(rows: list[tuple[int, int, int]]) -> None:
    p = np.array(rows) / np.array(rows).sum(1, keepdims=True)
    for distance in (hellinger, jensen_shannon):
        found = distance(p, p[::-1])
        assert np.allclose(found, distance(p[::-1], p)) and (found >= 0).all() and (found <= 1).all()
    # JS is between H^4 / 2 and H^2 / ln 2 in bits (from 1 - sum sqrt(pq) and Pinsker's bound)
    assert (jensen_shannon(p, p[::-1]) <= hellinger(p, p[::-1]) ** 2 / np.log(2) + 1e-12).all()


def test_label_skew_of_one_class_a_node_and_of_equal_nodes() -> None:
    apart = label_skew([[5, 0], [0, 5], [0, 0]])
    assert apart is not None
    far, bits = (1 - 0.5**0.5) ** 0.5, float(jensen_shannon(HALF, ONE))
    assert (apart.hellinger, apart.least, apart.most) == pytest.approx((far, far, far))
    assert apart.hellinger_pairs == 1 and apart.jensen_shannon == pytest.approx(bits)
    assert str(apart) == "Hellinger 0.54 (0.54 to 0.54), pairs 1.00; Jensen-Shannon 0.31 bits"
    alike = label_skew([[2, 4], [1, 2], [10, 20]])
    assert alike is not None and alike.most < 1e-7 and alike.hellinger_pairs < 1e-7 and alike.jensen_shannon == 0
    alone = label_skew([[3, 1]])
    assert alone is not None and str(alone) == "Hellinger 0.00 (0.00 to 0.00); Jensen-Shannon 0.00 bits"
    assert label_skew(np.zeros((4, 0), dtype=np.int64)) is None


def test_size_skew_by_hand() -> None:
    # 1, 1, 2: mean 4/3, deviation sqrt(2/9); Gini (-2 x 1 + 0 x 1 + 2 x 2) / (3 x 4); 16 / 6 equal nodes
    found = size_skew([1, 2, 1])
    assert (found.variation, found.gini, found.effective) == pytest.approx((2**0.5 / 4, 1 / 6, 8 / 3))
    assert size_skew([7] * 5) == size_skew([1] * 5) and size_skew([7] * 5).effective == pytest.approx(5)
    assert str(size_skew([1, 2, 1])) == "coefficient of variation 0.35, Gini 0.17, as 2.7 of 3 equal nodes"


def test_pairs_are_all_or_a_sample_without_a_node_with_itself() -> None:
    first, second = pairs(5)
    assert len({*zip(first.tolist(), second.tolist(), strict=True)}) == 10 and (first < second).all()
    first, second = pairs(1_000_000)
    assert len(first) == PAIRS and (first != second).all() and second.max() < 1_000_000
    assert np.array_equal(pairs(1_000_000)[1], second)
    counts = np.zeros((1000, 10), dtype=np.int64)
    counts[np.arange(1000), np.arange(1000) % 10] = 1
    skew = label_skew(counts)
    assert skew is not None and skew.hellinger_pairs == pytest.approx(0.9, abs=0.02)  # one pair in ten has the same class


def test_validate_and_inspect_show_them(folder: Path) -> None:
    shifted = TEXT.replace("model: logistic", "model: logistic, shift: [{name: noise, sigma: 0.1, nodes: even}]")
    text = call("validate", write(folder, shifted.replace("alpha: 0.5", "alpha: 0.01"))).output
    sizes, labels, shift = (
        next(line for line in text.splitlines() if line.startswith(f"  {word}")) for word in ("sizes", "labels", "shift")
    )
    assert "Gini" in sizes and "of 8 equal nodes" in sizes and "Jensen-Shannon" in labels and shift == "  shift     noise on 4 of 8 nodes"
    assert max(map(len, (sizes, labels))) < 80
    rows, records = simulate([300, 200], 1, 2000, 1000)
    run = write_run(folder / "run", rows, records)
    np.savez(run / "labels.npz", counts=np.array([[5, 0], [0, 5]]))
    lines = inspect_run(RunFolder(run))[0].splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("  sizes"))
    assert lines[first] == "  sizes  coefficient of variation 0.00, Gini 0.00, as 2.0 of 2 equal nodes"
    assert lines[first + 1] == "  labels  Hellinger 0.54 (0.54 to 0.54), pairs 1.00; Jensen-Shannon 0.31 bits"
