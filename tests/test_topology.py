"""Mixing matrices by their equations."""

import math

import pytest
import torch

from fedsim.keys import fold
from fedsim.topology import Complete, Ring, Topology

BOTH = [Ring(), Complete()]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("topology", BOTH)
def test_matrices_are_symmetric_and_doubly_stochastic(topology: Topology, nodes: int) -> None:
    matrix = topology.matrix(nodes, 0)
    assert matrix.shape == (nodes, nodes)
    assert matrix.dtype == torch.float64
    assert torch.equal(matrix, matrix.T)
    assert (matrix >= 0).all()
    assert (matrix.diagonal() > 0).all()
    ones = torch.ones(nodes, dtype=torch.float64)
    assert torch.allclose(matrix.sum(0), ones, rtol=0, atol=1e-15)
    assert torch.allclose(matrix.sum(1), ones, rtol=0, atol=1e-15)


def test_matrices_by_hand() -> None:
    third = 1 / 3
    assert Ring().matrix(4, 7).tolist() == [
        [third, third, 0, third],
        [third, third, third, 0],
        [0, third, third, third],
        [third, 0, third, third],
    ]
    for topology in BOTH:
        assert topology.matrix(1, 0).tolist() == [[1]]
        assert topology.matrix(2, 0).tolist() == [[0.5, 0.5], [0.5, 0.5]]
        assert topology.matrix(3, 0).tolist() == [[third] * 3] * 3
    assert Complete().matrix(5, 0).tolist() == [[0.2] * 5] * 5


@pytest.mark.parametrize("nodes", [3, 4, 5, 10, 32])
def test_eigenvalues_of_the_ring(nodes: int) -> None:
    """(1 + 2 cos(2 pi k / n)) / 3; the second largest tells how fast peers agree."""
    expected = sorted((1 + 2 * math.cos(2 * math.pi * k / nodes)) / 3 for k in range(nodes))
    found = torch.linalg.eigvalsh(Ring().matrix(nodes, 0)).tolist()
    assert found == pytest.approx(expected, abs=1e-14)
    assert found[-2] == pytest.approx((1 + 2 * math.cos(2 * math.pi / nodes)) / 3, abs=1e-14)


def test_a_complete_graph_agrees_at_once() -> None:
    assert torch.linalg.eigvalsh(Complete().matrix(6, 0)).tolist() == pytest.approx([0] * 5 + [1], abs=1e-15)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("topology", BOTH)
def test_degree_is_the_number_of_neighbours(topology: Topology, nodes: int) -> None:
    matrix = topology.matrix(nodes, 0)
    assert ((matrix > 0).sum(1) - 1).tolist() == [topology.degree(nodes)] * nodes


@pytest.mark.parametrize("nodes", [2, 3, 4, 6])
@pytest.mark.parametrize("topology", BOTH)
def test_partners_are_neighbours_and_each_as_likely(topology: Topology, nodes: int) -> None:
    for node in range(nodes):
        drawn = torch.tensor([topology.partner(node, nodes, fold(0, node, turn)) for turn in range(400)])
        counts = drawn.bincount(minlength=nodes)
        neighbours = topology.matrix(nodes, 0)[node] > 0
        neighbours[node] = False
        assert ((counts > 0) == neighbours).all()
        chance = 1 / int(neighbours.sum())
        assert (counts[neighbours] / 400 - chance).abs().max() < 4 * math.sqrt(chance * (1 - chance) / 400) + 1e-9
    assert topology.partner(0, nodes, fold(3)) == topology.partner(0, nodes, fold(3))
