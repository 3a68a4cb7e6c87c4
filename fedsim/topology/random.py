"""Graphs by keyed lot that stay."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.keys import fold, uniform
from fedsim.settings.part import setting
from fedsim.settings.values import Share
from fedsim.topology.graphs import Edges, Graph, adjacency, pairs, weighted
from fedsim.topology.mixing import Mixing

TRIES = 100


@dataclass(frozen=True)
class RandomGraph(Graph):
    """Drawn until it is connected, a hundred times at most, where `connected` asks for that."""

    abstract: ClassVar[bool] = True

    @abstractmethod
    def draw(self, nodes: int, key: Tensor) -> Edges:
        """int64 [edges, 2]. Raises ValueError where there is no such graph of so many nodes."""

    def edges(self, nodes: int, key: Tensor) -> Edges:
        found = np.zeros((0, 2), dtype=np.int64)
        for turn in range(TRIES if self.connected else 1):
            found = self.draw(nodes, fold(key, "graph", turn))
            if len(Mixing(adjacency(found, nodes, False)).components()) == 1:
                break
        return found


def _seed(key: Tensor) -> int:
    """For networkx."""
    return int(key) & 0xFFFFFFFF


@dataclass(frozen=True)
class Regular(RandomGraph):
    """A random graph in which all nodes have the same number of neighbours."""

    degree: int = setting(4, "neighbours a node", ge=1)

    def draw(self, nodes: int, key: Tensor) -> Edges:
        import networkx

        if self.degree >= nodes or self.degree * nodes % 2:
            raise ValueError(f"no graph of {nodes} nodes has {self.degree} neighbours at each: fewer than nodes, and an even product")
        return np.array(networkx.random_regular_graph(self.degree, nodes, seed=_seed(key)).edges, dtype=np.int64)


@dataclass(frozen=True)
class ErdosRenyi(RandomGraph):
    """Each pair of nodes is joined by its own coin."""

    source: ClassVar[str] = "Erdős & Rényi 1959"

    chance: Share | None = setting(None, "of each pair; by default 2 ln(n) / n, which mostly connects all", gt=0, le=1)

    def draw(self, nodes: int, key: Tensor) -> Edges:
        import networkx

        chance = self.chance if self.chance is not None else min(1.0, 2 * np.log(max(2, nodes)) / nodes)
        return pairs(networkx.gnp_random_graph(nodes, float(chance), seed=_seed(key)))


@dataclass(frozen=True)
class SmallWorld(RandomGraph):
    """A ring in which each node knows its nearest ones, and some edges lead elsewhere."""

    source: ClassVar[str] = "Watts & Strogatz 1998"

    degree: int = setting(4, "nearest ones that each knows, an even number", ge=2)
    rewire: Share = setting(0.1, "share of edges that lead elsewhere", ge=0, le=1)

    def draw(self, nodes: int, key: Tensor) -> Edges:
        import networkx

        if self.degree % 2 or self.degree >= nodes:
            raise ValueError(f"`degree` is an even number below {nodes}, not {self.degree}")
        return pairs(networkx.watts_strogatz_graph(nodes, self.degree, float(self.rewire), seed=_seed(key)))


@dataclass(frozen=True)
class BarabasiAlbert(RandomGraph):
    """Nodes come one after the other and join those that already have many neighbours."""

    source: ClassVar[str] = "Barabási & Albert 1999"

    joins: int = setting(2, "edges of each that comes", ge=1)

    def draw(self, nodes: int, key: Tensor) -> Edges:
        import networkx

        if self.joins >= nodes:
            raise ValueError(f"`joins` is below the number of nodes, {nodes}, not {self.joins}")
        return pairs(networkx.barabasi_albert_graph(nodes, self.joins, seed=_seed(key)))


@dataclass(frozen=True)
class Geometric(RandomGraph):
    """Nodes lie in a unit square and hear those who are near. With a speed they move, each straight on, turning at the walls.

    Those who move may be out of reach of all others for a while.
    """

    radius: float = setting(0.3, "how far a node is heard, in sides of the square", gt=0)
    speed: float = setting(0.0, "sides of the square that a node moves in a step", ge=0)

    @property
    def changes(self) -> bool:  # type: ignore[override]
        return self.speed > 0

    def places(self, nodes: int, step: int, key: Tensor) -> NDArray[np.float64]:
        """float64 [nodes, 2] after so many steps."""
        draw = uniform(fold(key, "place", torch.arange(nodes)), 3).double().numpy()
        way = 2 * np.pi * draw[:, 2:]
        gone = draw[:, :2] + step * self.speed * np.concatenate([np.cos(way), np.sin(way)], 1)
        return np.asarray(1 - abs(gone % 2 - 1))  # as between mirrors

    def draw(self, nodes: int, key: Tensor) -> Edges:
        return self._near(self.places(nodes, 0, key))

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        if not self.speed:
            return super().matrix(nodes, step, key)
        return weighted(adjacency(self._near(self.places(nodes, step, fold(key, "graph", 0))), nodes, False), self.weights, False)

    def check(self, nodes: int, key: Tensor) -> None:
        if not self.speed:
            super().check(nodes, key)

    def _near(self, places: NDArray[np.float64]) -> Edges:
        from scipy.spatial import KDTree

        return np.asarray(KDTree(places).query_pairs(self.radius, output_type="ndarray"), dtype=np.int64).reshape(-1, 2)
