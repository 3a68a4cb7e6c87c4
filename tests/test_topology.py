"""Graphs and their mixing weights: by their equations, by hand, and against the specification's figures."""

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.base.keys import fold
from fedsim.settings.values import Constant, Every, Ramp
from fedsim.topology import Complete, Mixing, Ring, Topology
from fedsim.topology.changing import Alone, Epidemic, FinalMerge, Matchings, OnePeerExponential, RandomPulls, Sequence
from fedsim.topology.graphs import DirectedRing, Exponential, File, Grid, Hypercube, Line, Star, Torus, Tree
from fedsim.topology.mixing import gap_of
from fedsim.topology.random import BarabasiAlbert, ErdosRenyi, Geometric, Regular, SmallWorld

KEY = fold(0, "topology")
UNDIRECTED = [Ring(), Complete(), Line(), Star(), Tree(), Grid(), Torus(), Hypercube()]
RANDOM = [Regular(degree=3), ErdosRenyi(), SmallWorld(), BarabasiAlbert(), Geometric(radius=0.5)]
BOTH_WAYS = [*UNDIRECTED, *RANDOM]
SUMS_STAY = [*BOTH_WAYS, DirectedRing(), Exponential(), OnePeerExponential(), Matchings(), Epidemic(2, oracle=True), Alone()]
ROWS_ONLY = [RandomPulls(Constant(1.3)), Epidemic(2), RandomPulls(Constant(0.4), among=Ring())]


def name(topology: Topology) -> str:
    return topology.name


def weights(topology: Topology, nodes: int, step: int = 0, key: torch.Tensor = KEY) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    return topology.mixing(nodes, step, key).weights.toarray()


@pytest.mark.parametrize("topology", SUMS_STAY, ids=name)
def test_rows_and_columns_sum_to_one(topology: Topology) -> None:
    for nodes in (8, 16):
        for step in range(3):
            matrix = weights(topology, nodes, step)
            assert (matrix >= 0).all() and (matrix.diagonal() > 0).all()
            assert matrix.sum(0) == pytest.approx(np.ones(nodes), abs=1e-14)
            assert matrix.sum(1) == pytest.approx(np.ones(nodes), abs=1e-14)
    topology.check(16, KEY)


@pytest.mark.parametrize("topology", ROWS_ONLY, ids=name)
def test_pulls_and_pushes_by_lot_average_but_do_not_keep_the_mean(topology: Topology) -> None:
    mixings = [topology.mixing(8, step, KEY) for step in range(20)]
    assert all(mixing.averages for mixing in mixings) and not all(mixing.keeps_sums for mixing in mixings)
    assert len({mixing.weights.toarray().tobytes() for mixing in mixings}) > 10
    again = topology.mixing(8, 3, fold(0, "topology"))
    assert np.array_equal(again.weights.toarray(), mixings[3].weights.toarray())


@pytest.mark.parametrize("topology", BOTH_WAYS, ids=name)
@pytest.mark.parametrize("rule", ["metropolis", "max_degree", "lazy"])
def test_undirected_graphs_are_symmetric(topology: Topology, rule: str) -> None:
    one = type(topology)(**{**vars(topology), "weights": rule})
    matrix = weights(one, 16)
    assert np.array_equal(matrix, matrix.T)
    assert matrix.sum(1) == pytest.approx(np.ones(16), abs=1e-14)
    if rule == "lazy":
        assert np.linalg.eigvalsh(matrix).min() > -1e-12


def test_weights_by_hand() -> None:
    third, path = 1 / 3, Line()
    ring = [[third, third, 0, third], [third, third, third, 0], [0, third, third, third], [third, 0, third, third]]
    assert weights(Ring(), 4) == pytest.approx(np.array(ring))
    close = [[2 / 3, third, 0], [third, third, third], [0, third, 2 / 3]]
    assert weights(path, 3) == pytest.approx(np.array(close))
    assert weights(Line("uniform"), 3) == pytest.approx(np.array([[0.5, 0.5, 0], [third, third, third], [0, 0.5, 0.5]]))
    assert weights(Line("lazy"), 3) == pytest.approx((np.array(close) + np.eye(3)) / 2)
    assert weights(Star(), 4)[0] == pytest.approx([0.25] * 4) and weights(Star(), 4)[2] == pytest.approx([0.25, 0, 0.75, 0])
    assert weights(DirectedRing(), 3).tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert weights(Tree(), 4)[1] == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])  # below 0: 1 and 2, below 1: 3
    for topology in (Ring(), Complete()):
        assert weights(topology, 1).tolist() == [[1]]
        assert weights(topology, 2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert weights(topology, 3) == pytest.approx(np.full((3, 3), third))
    assert np.array_equal(weights(Torus(), 4), weights(Ring(), 4)[:, [0, 1, 3, 2]][[0, 1, 3, 2]])  # a side of 2: the ring 0 1 3 2
    assert (weights(Grid(rows=2), 6) > 0).sum() == 6 + 2 * 7  # 2 x 3: 4 edges across, 3 down
    assert Grid(rows=3).mixing(6, 0, KEY).heard.tolist() == [2, 2, 3, 3, 2, 2]


@pytest.mark.parametrize(
    ("topology", "nodes", "gap"),
    [
        (Ring(), 16, 0.0507470),
        (Torus(), 16, 0.4),
        *[(Exponential(), nodes, gap) for nodes, gap in ((16, 0.4), (6, 0.5), (10, 0.4), (12, 0.4), (20, 1 / 3))],
        (Complete(), 7, 1.0),
        (Star(), 5, 1 / 5),
        (Hypercube(), 16, 2 / 5),
        (Alone(), 4, 0.0),
    ],
    ids=str,
)
def test_spectral_gaps(topology: Topology, nodes: int, gap: float) -> None:
    assert topology.mixing(nodes, 0, KEY).gap() == pytest.approx(gap, abs=5e-8)


@pytest.mark.parametrize("nodes", [3, 4, 5, 10, 32])
def test_eigenvalues_of_the_ring(nodes: int) -> None:
    expected = sorted((1 + 2 * math.cos(2 * math.pi * k / nodes)) / 3 for k in range(nodes))
    assert np.linalg.eigvalsh(weights(Ring(), nodes)).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("powers", [1, 2, 4])
def test_one_peer_exponential_agrees_after_q_steps(powers: int) -> None:
    nodes = 2**powers
    product = np.linalg.multi_dot([np.eye(nodes), *(weights(OnePeerExponential(), nodes, step) for step in range(powers))])
    assert np.array_equal(product, np.full((nodes, nodes), 1 / nodes))


def test_matchings_are_pairs() -> None:
    mixing = Matchings().mixing(7, 2, KEY)
    assert sorted(mixing.heard.tolist()) == [0] + [1] * 6 and mixing.symmetric


@pytest.mark.parametrize("peers", [0.0, 0.3, 1.0, 2.4, 5.0])
def test_random_pulls_on_average(peers: float) -> None:
    """E[W]: who pulls c keeps 1 / (1 + c), and c is r up or down; what is left is shared by all others alike (up to r = 1: 1 - r/2)."""
    nodes, steps = 6, 4000
    every = [RandomPulls(Constant(peers)).mixing(nodes, step, KEY) for step in range(steps)]
    heard = np.array([mixing.heard for mixing in every])
    assert heard.mean() == pytest.approx(peers, abs=4 * 0.5 / math.sqrt(nodes * steps))
    assert set(heard.ravel().tolist()) <= {math.floor(peers), math.ceil(peers)}
    low, more = math.floor(peers), peers % 1
    own = (1 - more) / (1 + low) + more / (2 + low)
    assert peers > 1 or own == pytest.approx(1 - peers / 2)
    mean = np.mean([mixing.weights.toarray() for mixing in every], 0)
    expected = np.full((nodes, nodes), (1 - own) / (nodes - 1)) + (own - (1 - own) / (nodes - 1)) * np.eye(nodes)
    assert abs(mean - expected).max() < 5 * 0.5 / math.sqrt(steps)


@given(nodes=st.integers(1, 30), peers=st.floats(0, 31), seed=st.integers(0, 99))
def test_pulls_are_of_different_others(nodes: int, peers: float, seed: int) -> None:
    mixing = RandomPulls(Constant(peers)).mixing(nodes, 0, fold(seed))
    rows = mixing.weights.toarray()
    assert set(mixing.heard.tolist()) <= {min(math.floor(peers), nodes - 1), min(math.ceil(peers), nodes - 1)}
    assert rows == pytest.approx((rows > 0) / (1 + mixing.heard)[:, None]) and (rows.diagonal() > 0).all()
    said = Epidemic(1 + int(peers)).mixing(nodes, 0, fold(seed)).said
    assert said.tolist() == [min(1 + int(peers), nodes - 1)] * nodes


def test_ten_thousand_nodes_pull_without_a_matrix_of_all_pairs() -> None:
    nodes = 10_000
    pulls, around = RandomPulls(Constant(0.2)), RandomPulls(Constant(1.5), among=SmallWorld())
    for topology, messages in (
        (pulls, 0.2 * nodes),
        (around, 1.5 * nodes),
        (Epidemic(3), 3 * nodes),
        (Epidemic(3, oracle=True), 3 * nodes),
    ):
        began = perf_counter()
        mixing = topology.mixing(nodes, 1, KEY)
        assert mixing.averages and mixing.heard.sum() == pytest.approx(messages, abs=250)
        assert perf_counter() - began < 10  # all pairs took 40 s and more


def test_random_pulls_may_change_with_the_rounds_and_keep_to_a_graph() -> None:
    growing = RandomPulls(Ramp(0.0, 5.0, 10))
    assert growing.mixing(6, 0, KEY).heard.sum() == 0 and growing.mixing(6, 10, KEY).uniform
    near = RandomPulls(Constant(1.0), among=Ring()).mixing(9, 4, KEY)
    assert all((hearer - sender) % 9 in (1, 8) for hearer, sender in zip(*near.edges, strict=True)) and near.heard.tolist() == [1] * 9
    star = RandomPulls(Constant(3.0), among=Star()).mixing(9, 0, KEY)  # leaves know one, the centre eight
    assert star.heard.tolist() == [3] + [1] * 8 and (star.edges[1][star.edges[0] > 0] == 0).all()
    either = [RandomPulls(Constant(1.0), among=Line()).mixing(3, step, KEY).edges[1][1] for step in range(400)]
    assert set(either) == {0, 2} and 160 < sum(one == 0 for one in either) < 240


def test_epidemic_learning_sends_to_s_others() -> None:
    for oracle in (False, True):
        mixing = Epidemic(3, oracle).mixing(10, 1, KEY)
        assert mixing.said.tolist() == [3] * 10
        assert np.allclose(mixing.weights.data, 1 / (1 + np.repeat(mixing.heard, np.diff(mixing.weights.indptr))))
        assert oracle == (mixing.heard.tolist() == [3] * 10)


def test_sequences_and_the_final_merge() -> None:
    one = Sequence(parts=(Alone(), Ring(), Complete()), switch=(Every(rounds=2), Every(rounds=5)))
    assert [int(one.mixing(6, step, KEY).heard[0]) for step in range(7)] == [0, 0, 2, 2, 2, 5, 5]
    last = FinalMerge(one)
    assert int(last.mixing(6, 2, KEY).heard[0]) == 2 and last.last(6, 3, KEY).uniform and last.at_end
    for switch, wrong in (((Every(rounds=2),), "2 rising rounds, not 1"), ((Every(seconds=2), Every(rounds=5)), "in rounds")):
        with pytest.raises(ValueError, match=wrong):
            Sequence(parts=(Alone(), Ring(), Complete()), switch=switch)


def test_those_who_move_hear_others() -> None:
    moving = Geometric(radius=0.3, speed=0.05)
    matrices = {weights(moving, 20, step).tobytes() for step in range(6)}
    assert len(matrices) > 3
    assert np.array_equal(weights(moving, 20, 5), weights(moving, 20, 5).T)
    still, start = moving.places(20, 0, KEY), moving.places(20, 1, KEY)
    assert np.linalg.norm(still - start, axis=1) == pytest.approx([0.05] * 20, abs=0.0500001)
    assert ((moving.places(20, 400, KEY) >= 0) & (moving.places(20, 400, KEY) <= 1)).all()


@pytest.mark.parametrize("topology", RANDOM, ids=name)
def test_random_graphs_are_connected_keyed_and_of_their_kind(topology: Topology) -> None:
    first, other = (topology.mixing(24, 0, fold(seed, "topology")) for seed in (0, 1))
    assert len(first.components()) == 1
    assert not np.array_equal(first.weights.toarray(), other.weights.toarray())
    if isinstance(topology, Regular):
        assert first.heard.tolist() == [3] * 24
    if isinstance(topology, SmallWorld):
        assert first.heard.sum() == 24 * 4
    if isinstance(topology, BarabasiAlbert):
        assert first.heard.sum() == 2 * 2 * (24 - 2) and first.heard.max() > 5


# What messages do


@given(st.integers(2, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_sums_stay_what_they_were_where_messages_are_missing(nodes: int, data: st.DataObject) -> None:
    topology = data.draw(st.sampled_from([Ring(), Complete(), DirectedRing(), Exponential(), RandomPulls(Constant(1.5))]))
    mixing = topology.mixing(nodes, 1, KEY)
    gone = np.array(data.draw(st.lists(st.booleans(), min_size=len(mixing.edges[0]), max_size=len(mixing.edges[0]))), dtype=bool)
    for keep, axis in (("rows", 1), ("columns", 0)):
        left = mixing.without(gone, keep)
        assert left.weights.sum(axis) == pytest.approx(mixing.weights.sum(axis), abs=1e-12)
        assert (left.weights.data >= 0).all() and len(left.edges[0]) == (~gone).sum()
    here = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=nodes, max_size=nodes)))
    among = mixing.among(here)
    assert all(one in here for ends in among.edges for one in ends) and among.averages


@pytest.mark.parametrize("topology", [Ring(), Complete(), Star()], ids=name)
def test_what_is_marked_one_way_is_marked_both_ways(topology: Topology) -> None:
    mixing = topology.mixing(6, 0, KEY)
    hearer, sender = mixing.edges
    marked = mixing.either_way((hearer == 0) & (sender == 1))
    assert sorted(zip(hearer[marked].tolist(), sender[marked].tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert not mixing.either_way(hearer < 0).any() and mixing.either_way(hearer >= 0).all()


@pytest.mark.parametrize("topology", [Ring(), Complete(), Exponential(), RandomPulls(Constant(2.0)), Star()], ids=name)
@pytest.mark.parametrize("nodes", [5, 40])
def test_mixing_is_the_matrix_product(topology: Topology, nodes: int) -> None:
    mixing, rows = topology.mixing(nodes, 0, KEY), torch.randn(nodes, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("ij,jkl->ikl", torch.from_numpy(mixing.weights.toarray()), rows)
    torch.testing.assert_close(mixing @ rows, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mixing @ rows.float(), expected.float(), rtol=1e-5, atol=1e-6)
    assert (mixing @ rows.float()).dtype == torch.float32
    assert torch.equal(mixing @ rows[:, :1], (mixing @ rows)[:, :1]) or mixing.weights.nnz * 4 > nodes**2


@pytest.mark.parametrize("topology", [Ring(), Complete(), Star()], ids=name)
def test_partners_are_neighbours_and_each_as_likely(topology: Topology) -> None:
    mixing = topology.mixing(6, 0, KEY)
    for node in (0, 3):
        drawn = np.bincount([mixing.partner(node, fold(0, node, turn)) for turn in range(600)], minlength=6)
        neighbours = mixing.weights.toarray()[node] > 0
        neighbours[node] = False
        assert ((drawn > 0) == neighbours).all()
        chance = 1 / neighbours.sum()
        assert abs(drawn[neighbours] / 600 - chance).max() < 4 * math.sqrt(chance * (1 - chance) / 600) + 1e-9
    assert Alone().mixing(3, 0, KEY).partner(1, KEY) == 1


# Bad input


@pytest.mark.parametrize(
    ("topology", "nodes", "message"),
    [
        (Hypercube(), 12, "2, 4, 8"),
        (Torus(), 13, "13 nodes make no rectangle"),
        (Grid(rows=4), 10, "don't fill 4 rows"),
        (Regular(degree=3), 5, "no graph of 5 nodes has 3 neighbours"),
        (SmallWorld(degree=3), 10, "even number"),
        (BarabasiAlbert(joins=9), 9, "below the number"),
        (ErdosRenyi(chance=0.01), 12, r"parts don't hear of each other: \{0\}"),
        (Geometric(radius=0.01), 5, "its 5 parts"),
        (Exponential("lazy"), 8, "for undirected graphs"),
    ],
    ids=str,
)
def test_what_there_is_not(topology: Topology, nodes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology.check(nodes, KEY)


def test_a_graph_in_parts_is_allowed_on_request() -> None:
    ErdosRenyi(connected=False, chance=0.01).check(12, KEY)
    Geometric(radius=0.01, connected=False).check(5, KEY)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_graphs_from_files(written: Callable[[str, str], str]) -> None:
    import networkx

    path = written("path.txt", "# a path\n0 1\n1 2  # the middle\n\n2 3\n")
    assert np.array_equal(weights(File(file=path), 4), weights(Line(), 4))
    one_way = File(file=path, oriented=True)
    assert one_way.mixing(4, 0, KEY).averaging().weights.toarray()[1].tolist() == [0.5, 0.5, 0, 0]
    assert one_way.mixing(4, 0, KEY).averaging().weights.sum(1).tolist() == [1] * 4
    assert weights(one_way, 4)[:, 0].tolist() == [0.5, 0.5, 0, 0]  # column 0: node 0 sends to 1 and keeps the rest
    assert one_way.mixing(4, 0, KEY).keeps_sums and not one_way.mixing(4, 0, KEY).averages
    graph = path.replace("path.txt", "ring.graphml")
    networkx.write_graphml(networkx.cycle_graph(5), graph)
    assert np.array_equal(weights(File(file=graph), 5), weights(Ring(), 5))


@pytest.mark.parametrize(
    ("text", "nodes", "message"),
    [
        ("0 1\n1\n", 2, "graph.txt:2: two node ids"),
        ("0 5\n", 3, "node 5 of 3"),
        ("a b\n", 2, "numbers from 0 to 1"),
        ("0 1\n2 3\n", 4, "2 parts"),
    ],
)
def test_broken_files(written: Callable[[str, str], str], text: str, nodes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        File(file=written("graph.txt", text)).check(nodes, KEY)


def test_matrices_that_are_none() -> None:
    for matrix, message in ((np.ones((2, 3)), "square"), (np.array([[1, -1], [1, 1.0]]), "from 0"), (np.full((2, 2), np.nan), "from 0")):
        with pytest.raises(ValueError, match=message):
            Mixing(matrix)


def test_the_gap_of_several_steps_sees_what_a_graph_mixes_over_them_only() -> None:
    """One peer a step at 1, 2 and 4 places of 8 has the mean of all after three steps; the same step again and again never has it.

    The step of p places shrinks wave k by cos(pi k p / 8); of 1 and 2 places the longest wave, k = 1, is left most.
    """
    steps = [OnePeerExponential().mixing(8, step, KEY) for step in range(4)]
    first, both = math.cos(math.pi / 8), math.cos(math.pi / 8) * math.cos(math.pi / 4)
    assert [gap_of(steps[:some]) for some in (1, 2, 3, 4)] == pytest.approx([1 - first, 1 - both**0.5, 1, 1], abs=1e-9)
    assert gap_of([steps[1]] * 5) == 0
    ring = Ring().mixing(8, 0, KEY)
    assert gap_of([ring] * 3) == pytest.approx(ring.gap(), abs=1e-9)
