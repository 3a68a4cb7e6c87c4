import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.draws import dirichlet, log_gamma
from fedsim.data.partition import Dirichlet, Draw, Iid, LogNormalSizes, Natural, Pathological, Shards, filled

LABELS = np.repeat(np.arange(10), 60)


def sizes(owner):
    return np.bincount(owner).tolist()


@st.composite
def cases(draw):
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=1, max_size=60)))
    nodes, found = draw(st.integers(1, len(labels))), len(np.unique(labels))
    classes = draw(st.integers(-(-found // nodes), found))
    return labels, draw(
        st.sampled_from(
            [
                Iid(nodes),
                LogNormalSizes(nodes, draw(st.floats(0, 5))),
                Dirichlet(draw(st.floats(1e-3, 1e3)), nodes),
                Pathological(nodes, classes),
                Shards(nodes, draw(st.integers(1, 3)), draw(st.booleans())),
            ]
        )
    )


@given(cases(), st.integers(0, 2**64 - 1))
def test_each_sample_has_a_node_and_each_node_a_sample(case, seed):
    labels, partition = case
    owner = partition.split(labels, {}, fold(seed))
    assert owner.shape == labels.shape
    counts = np.bincount(owner, minlength=partition.nodes)
    assert len(counts) == partition.nodes
    assert counts.min() >= 1
    assert np.array_equal(owner, partition.split(labels, {}, fold(seed)))


def test_iid_sizes_differ_by_one_at_most_and_seeds_differ():
    owner = Iid(7).split(LABELS, {}, fold(0))
    assert sorted(set(sizes(owner))) == [85, 86]
    assert not np.array_equal(owner, Iid(7).split(LABELS, {}, fold(1)))


def test_dirichlet_goes_from_one_class_a_node_to_iid():
    few = np.zeros((20, 10), dtype=int)
    many = few.copy()
    np.add.at(few, (Dirichlet(0.01, 20).split(LABELS, {}, fold(0)), LABELS), 1)
    np.add.at(many, (Dirichlet(1e5, 20).split(LABELS, {}, fold(0)), LABELS), 1)
    assert (few > 0).sum() < 45
    assert few.max() >= 55
    assert abs(many - 3).max() <= 1


def test_dirichlet_numbers_have_the_known_moments():
    for alpha in (0.05, 1.0, 4.0):
        logs = log_gamma(fold(0, "moments"), alpha, 100_000)
        drawn = np.exp(logs)
        assert abs(drawn.mean() - alpha) < 5 * (alpha / 1e5) ** 0.5
        assert abs(drawn.var() - alpha) < 5 * ((3 * alpha**2 + 6 * alpha - alpha**2) / 1e5) ** 0.5
        # d/da log Gamma(a) is the mean of the logarithm.
        assert abs(logs.mean() - torch.digamma(torch.tensor(alpha)).item()) < 5 * logs.std() / 1e5**0.5
    shares = dirichlet(fold(3), 1e-4, 50)
    assert shares.sum() == pytest.approx(1)
    assert shares.max() > 0.99


def test_pathological_nodes_see_that_many_classes_and_every_class_is_seen():
    for nodes, classes in ((100, 2), (7, 3), (4, 3), (10, 10)):
        owner = Pathological(nodes, classes).split(LABELS, {}, fold(5))
        seen = np.zeros((nodes, 10), dtype=bool)
        seen[owner, LABELS] = True
        assert (seen.sum(1) == classes).all()
        assert seen.any(0).all()


def test_pathological_refuses_what_can_not_be():
    for nodes, classes in ((3, 2), (3, 11)):
        with pytest.raises(SettingError, match=f"{nodes} nodes of {classes} classes can't share 10 classes"):
            Pathological(nodes, classes).split(LABELS, {}, fold(0))


def test_shards_are_dealt_in_turn_or_by_lot():
    # 20 shards of 30 samples, two of each label: node i has shards i and i + 10.
    owner = Shards(10, 2).split(LABELS, {}, fold(0))
    assert [sorted(set(LABELS[owner == i].tolist())) for i in range(3)] == [[0, 5], [0, 5], [1, 6]]
    assert sizes(owner) == [60] * 10
    lots = Shards(10, 2, shuffle=True).split(LABELS, {}, fold(0))
    assert sizes(lots) == [60] * 10
    assert max(len(set(LABELS[lots == i].tolist())) for i in range(10)) == 2
    assert not np.array_equal(owner, lots)


def test_log_normal_sizes_spread_as_sigma_says():
    labels = np.zeros(100_000, dtype=int)
    logs = np.log(sizes(LogNormalSizes(500, 0.7).split(labels, {}, fold(0))))
    assert abs(logs.std() - 0.7) < 5 * 0.7 / 1000**0.5
    assert sizes(LogNormalSizes(500, 0.0).split(labels, {}, fold(0))) == [200] * 500


def test_empty_nodes_are_filled_from_whoever_is_largest_at_that_time():
    owner = np.array([1] * 6 + [3] * 4)  # 6 and 4: moves come from 1, 1, then 1 or 3 (both have 4; the lower id gives)
    full = filled(owner, 5, fold(0))
    assert sizes(full) == [1, 3, 1, 4, 1]
    kept = full == owner
    assert kept.sum() == 7
    assert not np.array_equal(full, filled(owner, 5, fold(1)))


IDS = {"writer": np.array(["b", "a", "c", "b", "b", "c", "d", "c", "a"])}


def test_natural_nodes_are_the_ids_in_order_without_small_ones():
    labels = np.zeros(9, dtype=int)
    assert Natural("writer").split(labels, IDS, fold(0)).tolist() == [1, 0, 2, 1, 1, 2, 3, 2, 0]
    owner = Natural("writer", least=3).split(labels, IDS, fold(0))
    assert owner.tolist() == [0, -1, 1, 0, 0, 1, -1, 1, -1]
    tests = {"writer": np.array(["a", "c", "b", "z", "A"])}
    assert Natural("writer", least=3).split_test(IDS, owner, tests).tolist() == [-1, 1, 0, -1, -1]
    assert Natural("writer").split_test(IDS, owner, {"writer": np.array(["y", "z"])}) is None
    assert Natural("writer").split_test(IDS, owner, {}) is None


def test_natural_draws_nodes_by_lot():
    labels = np.zeros(9, dtype=int)
    chosen = set()
    for seed in range(20):
        owner = Natural("writer", nodes=2).split(labels, IDS, fold(seed))
        assert set(owner) == {-1, 0, 1}
        chosen.add(tuple(sorted({str(i) for i, o in zip(IDS["writer"], owner, strict=True) if o >= 0})))
    assert len(chosen) == 6  # all pairs of four


@pytest.mark.parametrize(
    ("partition", "text"),
    [
        (Natural("user"), "task.partition.by: the data have no ids `user` .*writer"),
        (Natural("writer", nodes=5, least=3), "task.partition.nodes: 5 nodes wanted, but only 2 ids of `writer` have 3"),
        (Natural("writer", least=30), "task.partition.least: 1 nodes wanted, but only 0 ids"),
    ],
)
def test_natural_ids_that_are_not_there(partition, text):
    with pytest.raises(SettingError, match=text):
        partition.split(np.zeros(9, dtype=int), IDS, fold(0))


def test_draws_are_uniform_between_least_and_most_and_the_first_nodes_do_not_depend_on_the_others():
    counts = Draw(3000, 4, least=2).draws(fold(1))
    assert sorted(set(counts.tolist())) == [2, 3, 4]
    assert (np.abs(np.bincount(counts)[2:] - 1000) < 4.5 * np.sqrt(3000 * 1 / 3 * 2 / 3)).all()
    assert np.array_equal(Draw(30, 4, least=2).draws(fold(1)), counts[:30])
    assert Draw(5, 7, least=7).draws(fold(1)).tolist() == [7] * 5
    with pytest.raises(ValueError, match="`least` is 3 and `most` only 2"):
        Draw(5, 2, least=3)


@given(st.integers(1, 12), st.integers(1, 5), st.floats(1e-3, 10), st.integers(0, 2**64 - 1))
def test_nodes_that_lack_samples_are_given_those_of_the_largest_until_each_has_as_many(nodes, least, alpha, seed):
    labels = np.arange(60) % 4
    before, after = (Dirichlet(alpha, nodes, least=k).split(labels, {}, fold(seed)) for k in (1, least))
    have, had = np.bincount(after, minlength=nodes), np.bincount(before, minlength=nodes)
    assert have.min() >= least
    assert (before != after).sum() == np.maximum(least - had, 0).sum()
    assert (have[had < least] == least).all()


def test_filling_up_by_hand():
    full = filled(np.array([1] * 6 + [3] * 4), 4, fold(0), 2)  # 6 and 4: moves come from 1, 1, then 1, then 3 (both have 3; 1 gave last)
    assert sizes(full) == [2, 3, 2, 3]
