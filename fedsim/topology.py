"""Who talks to whom among peers: mixing matrices and partners."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.keys import below
from fedsim.part import Part


class Topology(Part):
    """A graph over the nodes that may change with the round."""

    slot: ClassVar[str] = "topology"
    default: ClassVar[str] = "ring"

    def matrix(self, nodes: int, step: int) -> Tensor:
        """Mixing matrix, float64 [nodes, nodes], rows sum to 1; row i says what node i hears."""
        raise NotImplementedError

    def degree(self, nodes: int) -> int:
        """Most neighbours that a node exchanges models with in a round."""
        raise NotImplementedError

    def partner(self, node: int, nodes: int, key: Tensor) -> int:
        """A neighbour by keyed lot."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ring(Topology):
    """Each node and its two neighbours, a third each; two nodes share one edge, a half each."""

    def matrix(self, nodes: int, step: int) -> Tensor:
        eye = torch.eye(nodes, dtype=torch.float64)
        near = ((eye + eye.roll(1, 0) + eye.roll(-1, 0)) > 0).double()
        return near / near.sum(1, keepdim=True)

    def degree(self, nodes: int) -> int:
        return min(2, nodes - 1)

    def partner(self, node: int, nodes: int, key: Tensor) -> int:
        return (node + 1 - 2 * int(below(key, 1, 2)[0])) % nodes


@dataclass(frozen=True)
class Complete(Topology):
    """Everybody with everybody, 1/n each."""

    def matrix(self, nodes: int, step: int) -> Tensor:
        return torch.full((nodes, nodes), 1.0 / nodes, dtype=torch.float64)

    def degree(self, nodes: int) -> int:
        return nodes - 1

    def partner(self, node: int, nodes: int, key: Tensor) -> int:
        return (node + 1 + int(below(key, 1, max(1, nodes - 1))[0])) % nodes
