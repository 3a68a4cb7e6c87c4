"""Partitions by sizes, labels and properties: numbers by hand, properties over all cases, and flwr-datasets' own results."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import TEXT, refused, write
from numpy.typing import NDArray

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold
from fedsim.data.partition import Dirichlet, Iid, LogNormalSizes, Partition, Pathological, Shards
from fedsim.data.partition_keys import Continuous, GroupedNaturalId
from fedsim.data.partition_labels import Distribution, InnerDirichlet, LabelQuantity
from fedsim.data.partition_sizes import ExponentialSizes, LinearSizes, Quantity, Size, SquareSizes
from fedsim.task.split import split_by

LABELS = np.repeat(np.arange(10), 60)
NONE: Mapping[str, NDArray[Any]] = {}


def split(partition: Partition, labels: Any = LABELS, keys: Mapping[str, NDArray[Any]] = NONE, seed: int = 0) -> NDArray[np.int64]:
    return partition.split(np.asarray(labels), keys, fold(seed))


def sizes(owner: NDArray[np.int64]) -> list[int]:
    return [int(size) for size in np.bincount(owner[owner >= 0])]


def table(owner: NDArray[np.int64], labels: Any = LABELS) -> NDArray[np.int64]:
    """[nodes, classes]: how many samples of each class each node has."""
    counts = np.zeros((owner.max() + 1, np.max(labels) + 1), dtype=np.int64)
    np.add.at(counts, (owner[owner >= 0], np.asarray(labels)[owner >= 0]), 1)
    return counts


@dataclass(frozen=True)
class Mine(Partition):
    """One of one's own, which says nothing of `least`."""

    nodes: int = 3

    def split(self, labels: Any, keys: Any, key: Any) -> Any:
        return np.repeat(np.arange(self.nodes), [10, 20, len(labels) - 30])


# Sizes


def test_sizes_follow_the_position_and_the_last_takes_what_is_over() -> None:
    # 600 x (1, 2, 3, 4) / 10; 600 x (1, 4, 9) / 14 = 42.9, 171.4, 385.7; 600 x (1, e, e^2) / 11.1 = 54.0, 146.8, 399.1
    assert sizes(split(LinearSizes(4))) == [60, 120, 180, 240]
    assert sizes(split(SquareSizes(3))) == [42, 171, 387]
    assert sizes(split(ExponentialSizes(3))) == [54, 146, 400]
    assert not np.array_equal(split(LinearSizes(4)), split(LinearSizes(4), seed=1))


def test_positions_too_many_to_have_a_part_are_given_one_sample() -> None:
    found = sizes(split(ExponentialSizes(20)))
    assert len(found) == 20 and min(found) == 1 and sum(found) == 600
    assert found[-1] == 600 - sum(found[:-1])


def test_given_sizes_leave_the_rest_to_nobody() -> None:
    owner = split(Size((5, 10, 20)))
    assert sizes(owner) == [5, 10, 20] and (owner == -1).sum() == 565


def test_quantity_skew_has_the_variance_of_a_dirichlet() -> None:
    # A share of Dirichlet(a, ..., a) over n has mean 1/n and variance (1/n)(1 - 1/n) / (n a + 1)
    many = np.zeros(100_000, dtype=np.int64)
    shares = np.array(sizes(split(Quantity(2.0, 400), many))) / 100_000
    assert shares.mean() == pytest.approx(1 / 400)
    assert shares.var() == pytest.approx((1 / 400) * (1 - 1 / 400) / 801, rel=0.3)
    assert max(sizes(split(Quantity(1e6, 4)))) - 150 <= 1


# Labels


@given(st.integers(5, 12), st.integers(1, 5), st.integers(0, 2**64 - 1))
def test_label_quantity_is_exact_and_even(nodes: int, each: int, seed: int) -> None:
    labels = np.repeat(np.arange(5), [13, 12, 30, 17, 40])
    counts = table(split(LabelQuantity(nodes, each), labels, seed=seed), labels)
    has = counts > 0
    assert (has.sum(1) == each).all() and counts.sum() == len(labels)
    assert has[np.arange(nodes), np.arange(nodes) % 5].all()
    for column in counts.T:
        assert np.ptp(column[column > 0]) <= 1


def test_inner_dirichlet_keeps_sizes_and_goes_from_one_class_to_all() -> None:
    assert sizes(split(InnerDirichlet(0.5, 7))) == [85, 86, 86, 85, 86, 86, 86]
    own = InnerDirichlet(0.5, sizes=(100, 1, 60))
    owner = split(own)
    assert own.nodes == 3 and sizes(owner) == [100, 1, 60] and (owner == -1).sum() == 439
    few = table(split(InnerDirichlet(1e-4, sizes=(6,) * 10)))  # a class has enough for all ten, so nobody needs a second
    assert ((few > 0).sum(1) == 1).all()
    alike = table(split(InnerDirichlet(1e6, 2)))
    # 300 draws from ten equal classes: each about 30 +- 5, and what is left over for the other
    assert alike.sum(1).tolist() == [300, 300] and abs(alike - 30).max() < 21


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50), st.data(), st.floats(1e-3, 1e3), st.integers(0, 2**64 - 1))
def test_inner_dirichlet_uses_every_sample_once(labels: list[int], data: Any, alpha: float, seed: int) -> None:
    nodes = data.draw(st.integers(1, len(labels)))
    owner = split(InnerDirichlet(alpha, nodes), labels, seed=seed)
    assert owner.min() == 0 and len(np.unique(owner)) == nodes
    assert sum(sizes(owner)) == len(labels) and np.ptp(sizes(owner)) <= 1


def test_distribution_deals_shares_to_adjacent_labels() -> None:
    # Three classes of 12, six nodes of one label: class 0 has nodes 0 and 3, in parts 1 to 3 of 12 - 2, and one each before
    labels = np.repeat([0, 1, 2], 12)
    shares = ((1.0, 4.0), (1.0, 1.0), (0.0, 1.0))
    counts = table(split(Distribution(6, 1, shares, least=1), labels), labels)
    assert counts.tolist() == [[3, 0, 0], [0, 6, 0], [0, 0, 1], [9, 0, 0], [0, 6, 0], [0, 0, 11]]
    # Two labels a node: node i has i and i + 1; drawn shares use all samples
    counts = table(split(Distribution(6, 2), labels), labels)
    assert [np.flatnonzero(row).tolist() for row in counts] == [[0, 1], [1, 2], [0, 2]] * 2
    assert counts.sum(0).tolist() == [12, 12, 12]
    assert np.ptp(table(split(Distribution(6, 2, sigma=0.0), labels), labels).sum(1)) == 0


# Properties and ids


def test_continuous_goes_from_the_order_of_the_property_to_iid() -> None:
    keys = {"age": np.array([5.0, 1, 4, 2, 3, 0, 6])}
    assert split(Continuous("age", 3), np.zeros(7), keys).tolist() == [2, 0, 1, 0, 1, 0, 2]
    age = {"age": np.arange(6000) % 3000}
    spread = [[float(age["age"][split(Continuous("age", 4, s), np.zeros(6000), age) == i].mean()) for i in range(4)] for s in (0, 0.5, 1)]
    assert np.ptp(spread[0]) < 200 < np.ptp(spread[1]) < np.ptp(spread[2]) == 2250


IDS = {"writer": np.array(["c", "a", "b", "d", "e", "a"])}


@pytest.mark.parametrize(
    ("rest", "owner"),
    [("smaller", [1, 0, 0, 1, 2, 0]), ("bigger", [0, 0, 0, 1, 1, 0]), ("drop", [1, 0, 0, 1, -1, 0])],
)
def test_groups_of_ids(rest: Any, owner: list[int]) -> None:
    partition = GroupedNaturalId("writer", 2, rest)
    found = split(partition, np.zeros(6), IDS)
    assert found.tolist() == owner
    tests = {"writer": np.array(["e", "z", "a"])}
    assert partition.split_test(IDS, found, tests).tolist() == [owner[4], -1, owner[1]]  # type: ignore[union-attr]


def test_groups_by_lot_are_as_large() -> None:
    ids = {"writer": np.arange(60)}
    owner = split(GroupedNaturalId("writer", 7, shuffle=True), np.zeros(60), ids)
    assert sizes(owner) == [7] * 8 + [4] and not np.array_equal(owner, np.arange(60) // 7)


# As flwr-datasets


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Samples of each node by one of the package's partitioners."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    datasets = pytest.importorskip("datasets")

    def run(partitioner: Any, **columns: Any) -> list[list[int]]:
        partitioner.dataset = datasets.Dataset.from_dict({"row": list(range(len(next(iter(columns.values()))))), **columns})
        return [partitioner.load_partition(i)["row"][:] for i in range(partitioner.num_partitions)]

    return run


@pytest.mark.parametrize(("name", "nodes"), [("Linear", 7), ("Square", 6), ("Exponential", 5)])
def test_sizes_are_the_packages(theirs: Any, name: str, nodes: int) -> None:
    import flwr_datasets.partitioner as package

    ours = {"Linear": LinearSizes, "Square": SquareSizes, "Exponential": ExponentialSizes}[name](nodes)
    found = theirs(getattr(package, f"{name}Partitioner")(nodes), label=LABELS.tolist())
    assert sizes(split(ours)) == [len(rows) for rows in found]


def test_continuous_is_the_packages(theirs: Any) -> None:
    from flwr_datasets.partitioner import ContinuousPartitioner

    age = (np.arange(23) * 7 % 23).astype(np.float64)
    found = theirs(ContinuousPartitioner(4, "age", 1.0, shuffle=False), age=age.tolist())
    owner = split(Continuous("age", 4), np.zeros(23), {"age": age})
    assert [sorted(rows) for rows in found] == [np.flatnonzero(owner == i).tolist() for i in range(4)]


@pytest.mark.parametrize(("mode", "rest"), [("allow-smaller", "smaller"), ("allow-bigger", "bigger"), ("drop-reminder", "drop")])
def test_groups_are_the_packages(theirs: Any, mode: Any, rest: Any) -> None:
    from flwr_datasets.partitioner import GroupedNaturalIdPartitioner

    writer = np.arange(40) * 3 % 11
    found = theirs(GroupedNaturalIdPartitioner("writer", 3, mode, sort_unique_ids=True), writer=writer.tolist())
    owner = split(GroupedNaturalId("writer", 3, rest), np.zeros(40), {"writer": writer})
    assert [sorted(rows) for rows in found] == [np.flatnonzero(owner == i).tolist() for i in range(len(found))]


def test_distribution_is_the_packages(theirs: Any) -> None:
    from flwr_datasets.partitioner import DistributionPartitioner

    labels = np.repeat([0, 1, 2], 26)
    shares = ((1.0, 2.0, 1.0, 4.0), (4.0, 2.0, 1.0, 1.0), (1.0, 1.0, 5.0, 1.0))  # of 24 - 8 = 16 samples: whole numbers
    labels = labels[np.concatenate([np.arange(24), 26 + np.arange(24), 52 + np.arange(24)])]
    found = theirs(DistributionPartitioner(np.array(shares), 6, 2, "label", 2, shuffle=False), label=labels.tolist())
    counts = table(split(Distribution(6, 2, shares, least=2), labels), labels)
    assert [np.bincount(labels[rows], minlength=3).tolist() for rows in found] == counts.tolist()


def test_label_quantity_with_one_label_is_the_packages(theirs: Any) -> None:
    from flwr_datasets.partitioner import PathologicalPartitioner

    labels = np.repeat([0, 1, 2], [10, 11, 9])
    found = theirs(PathologicalPartitioner(7, "label", 1, "first-deterministic", shuffle=False), label=labels.tolist())
    counts = table(split(LabelQuantity(7, 1), labels), labels)
    assert [np.bincount(labels[rows], minlength=3).tolist() for rows in found] == counts.tolist()


# Bad input


@pytest.mark.parametrize(
    ("partition", "text"),
    [
        (Size(()), "task.partition.sizes: one size a node is due"),
        (Size((500, 101)), "task.partition.sizes: 601 samples in all, but there are only 600"),
        (InnerDirichlet(1.0, sizes=(601,)), "task.partition.sizes: 601 samples"),
        (LabelQuantity(20, 11), "task.partition.labels: 11 labels a node, but the data have 10"),
        (LabelQuantity(9, 2), "task.partition.nodes: 9 nodes for 10 classes"),
        (LabelQuantity(610, 1), "task.partition.labels: 61 nodes were to share class 0, which has 60"),
        (Distribution(12, 2), "task.partition.nodes: 12 is no multiple of the 10 classes"),
        (Distribution(10, 11), "task.partition.labels: 11 labels"),
        (Distribution(10, 2, ((1.0, 2.0),) * 9), "task.partition.shares: 10 rows .* of 2 numbers are due, not 9 of 2"),
        (Distribution(10, 1, ((1.0,),) * 9 + ((0.0,),)), "task.partition.shares: row 9 is 0"),
        (Distribution(10, 2, least=31), "task.partition.least: 2 nodes with 31 samples each of class 0, which has 60"),
        (Continuous("age"), "task.partition.by: the data have no ids `age` .*flat"),
        (Continuous("flat"), "task.partition.by: `flat` is the same for all"),
        (Continuous("name"), "task.partition.by: `name` holds <U1, and a number"),
        (Continuous("hole"), "task.partition.by: `hole` has NaN or infinity in row 3"),
        (GroupedNaturalId("user", 2), "task.partition.by: the data have no ids `user`"),
        (GroupedNaturalId("name", 2, "strict"), "task.partition.size: 1 ids of `name` are no multiple of 2"),
        (GroupedNaturalId("name", 2, "drop"), "task.partition.size: 2 ids a node, but there are only 1"),
    ],
)
def test_what_can_not_be(partition: Partition, text: str) -> None:
    keys = {"flat": np.zeros(600), "name": np.full(600, "a"), "hole": np.where(np.arange(600) == 3, np.nan, 1.0)}
    with pytest.raises(SettingError, match=text):
        split(partition, keys=keys)


@pytest.mark.parametrize(
    "partition",
    [LogNormalSizes(9, 3.0), Dirichlet(0.01, 9), LinearSizes(9), SquareSizes(9), ExponentialSizes(9), Quantity(0.05, 9)],
    ids=lambda one: one.name,
)
def test_where_sizes_differ_each_node_has_least_samples(partition: Partition) -> None:
    drawn = sizes(split(partition))
    assert min(drawn) < 15
    assert min(sizes(split(replace(partition, least=15)))) == 15


@pytest.mark.parametrize(
    "partition",
    [
        Iid(7),
        Pathological(7, 2),
        Shards(7, 2),
        Size((500, 7)),
        InnerDirichlet(1.0, sizes=(20, 30)),
        LabelQuantity(11, 2),
        Continuous("age", 7),
        GroupedNaturalId("age", 250),
        Mine(3),
    ],
    ids=lambda one: one.name,
)
def test_where_something_else_fixes_sizes_fewer_is_an_error(partition: Partition) -> None:
    keys = {"age": np.arange(600)}
    fewest = min(sizes(split(partition, keys=keys)))
    assert split_by(replace(partition, least=fewest), LABELS, 10, keys, 0)[0].shape == (600,)
    text = f"task.partition.least: {fewest + 1} samples a node, but ({partition.name} gives node . only {fewest}|there are only 600)"
    with pytest.raises(SettingError, match=text):
        split_by(replace(partition, least=fewest + 1), LABELS, 10, keys, 0)


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"task\.partition\.least: 67 samples a node, but there are only 600 for 9 nodes"):
        split_by(Dirichlet(0.1, 9, least=67), LABELS, 10, {}, 0)


def test_they_are_reached_from_a_scenario(folder: Path) -> None:
    from fedsim.scenario import load

    written = {
        "{name: size, sizes: [7, 2]}": Size((7, 2)),
        "{name: distribution, nodes: 10, shares: [[1, 2], [3, 4]]}": Distribution(10, 2, ((1.0, 2.0), (3.0, 4.0))),
        "{name: grouped_natural_id, by: writer, size: 3, rest: drop}": GroupedNaturalId("writer", 3, "drop"),
        "{name: inner_dirichlet, alpha: 0.1, sizes: [3, 4]}": InnerDirichlet(0.1, 2, (3, 4)),
        "{name: label_quantity, labels: 3}": LabelQuantity(10, 3),
        "{name: quantity, alpha: 2}": Quantity(2.0),
        "exponential": ExponentialSizes(),
        "{name: dirichlet, alpha: 1, nodes: 9, least: 5}": Dirichlet(1.0, 9, least=5),
        "{name: continuous, by: age, strictness: 0.5}": Continuous("age", 10, 0.5),
    }
    for text, part in written.items():
        small = TEXT.replace("cohort: 4", "cohort: 1")
        [loaded] = load(write(folder, small.replace("{name: dirichlet, alpha: 0.5, nodes: 8}", text)))
        assert loaded.scenario.task.partition == part
    wrong = TEXT.replace("{name: dirichlet, alpha: 0.5, nodes: 8}", "{name: label_quantity, nodes: 8}")
    assert "small.yaml:1:63: task.partition.nodes: 8 nodes for 10 classes" in refused("validate", write(folder, wrong).name)
