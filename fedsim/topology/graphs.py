"""Graphs that stay: by formula, or from a file."""

# n: nodes

from abc import abstractmethod
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.settings.anchored import anchored_file
from fedsim.settings.part import setting
from fedsim.topology.base import Topology

Edges = NDArray[np.int64]  # [edges, 2]: from, to
Rule = Literal["metropolis", "uniform", "max_degree", "lazy"]


def adjacency(edges: Edges, nodes: int, directed: bool) -> Any:
    """csr [n, n]: 1 where the row hears the column, double edges once, nobody hears itself."""
    from scipy.sparse import csr_array

    sender, hearer = edges[:, 0], edges[:, 1]
    if not directed:
        sender, hearer = np.concatenate([sender, hearer]), np.concatenate([hearer, sender])
    apart = sender != hearer
    matrix = csr_array((np.ones(apart.sum()), (hearer[apart], sender[apart])), shape=(nodes, nodes))
    matrix.data[:] = 1.0
    return matrix


def weighted(graph: Any, rule: Rule, directed: bool) -> Any:
    """Mixing weights of an adjacency matrix. Directed: each sender splits evenly over those who hear it and itself (columns sum to 1)."""
    from scipy.sparse import diags_array, eye_array

    nodes = graph.shape[0]
    if directed:
        return (graph + eye_array(nodes)) @ diags_array(1 / (1 + graph.sum(0)))
    degree = graph.sum(1)
    if rule == "uniform":
        return diags_array(1 / (1 + degree)) @ (graph + eye_array(nodes))
    edges = graph.tocoo()
    row, column = edges.coords
    edges.data = 1 / (1 + np.maximum(degree[row], degree[column])) if rule != "max_degree" else np.full(edges.nnz, 1 / (1 + degree.max()))
    whole = (edges + diags_array(1 - edges.sum(1))).tocsr()
    return (whole + eye_array(nodes)) / 2 if rule == "lazy" else whole


@dataclass(frozen=True)
class Graph(Topology):
    """Weights: `metropolis` 1 / (1 + the larger degree of both); `uniform` 1 / (1 + own degree), which on graphs whose degrees differ
    gives nodes with more neighbours more say; `max_degree` 1 / (1 + the largest degree); `lazy` half Metropolis, half staying."""

    abstract: ClassVar[bool] = True
    directed: ClassVar[bool] = False

    weights: Rule = setting("metropolis", "how much a node takes of each neighbour; the rest is its own")
    connected: bool = setting(True, "refuse a graph in several parts")

    @abstractmethod
    def edges(self, nodes: int, key: Tensor) -> Edges:
        """int64 [edges, 2]; for directed graphs from and to. Raises ValueError where there is no such graph of so many nodes."""

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        if self.directed and self.weights != "metropolis":
            raise ValueError(f"`weights: {self.weights}` is for undirected graphs; here each node splits evenly over those who hear it")
        return weighted(adjacency(self.edges(nodes, key), nodes, self.directed), self.weights, self.directed)

    def check(self, nodes: int, key: Tensor) -> None:
        super().check(nodes, key)
        if self.connected:
            apart(self.mixing(nodes, 0, key).components())


def apart(components: list[NDArray[np.int64]]) -> None:
    """Raises ValueError, naming them, where there are several."""
    if len(components) > 1:
        shown = ["{" + ", ".join(map(str, nodes[:6])) + (", ..." if len(nodes) > 6 else "") + "}" for nodes in components[:4]]
        more = f" and {len(components) - 4} more" if len(components) > 4 else ""
        raise ValueError(f"its {len(components)} parts don't hear of each other: {', '.join(shown)}{more}; `connected: false` allows it")


def pairs(graph: Any) -> Edges:
    """Edges of a networkx graph over 0 .. n - 1, or over others, numbered in their order."""
    number = {node: at for at, node in enumerate(graph.nodes)}
    return np.array([(number[a], number[b]) for a, b in graph.edges], dtype=np.int64).reshape(-1, 2)


def _offsets(nodes: int, offsets: list[int]) -> Edges:
    """Everybody to those so many places further."""
    every = np.arange(nodes)
    return np.concatenate([np.stack([every, (every + offset) % nodes], 1) for offset in offsets] or [np.zeros((0, 2), dtype=np.int64)])


@dataclass(frozen=True)
class Ring(Graph):
    """Each node and its two neighbours, a third each; two nodes share one edge, a half each."""

    def edges(self, nodes: int, key: Tensor) -> Edges:
        return _offsets(nodes, [1])


@dataclass(frozen=True)
class DirectedRing(Graph):
    """Each node hears the one before it, half and half."""

    directed: ClassVar[bool] = True

    def edges(self, nodes: int, key: Tensor) -> Edges:
        return _offsets(nodes, [1])


@dataclass(frozen=True)
class Complete(Graph):
    """Everybody with everybody, 1/n each."""

    def edges(self, nodes: int, key: Tensor) -> Edges:
        return np.stack(np.triu_indices(nodes, 1), 1)


@dataclass(frozen=True)
class Line(Graph):
    """A ring that is open between the last node and the first."""

    def edges(self, nodes: int, key: Tensor) -> Edges:
        return _offsets(nodes, [1])[: nodes - 1]


@dataclass(frozen=True)
class Star(Graph):
    """All others with node 0 only."""

    def edges(self, nodes: int, key: Tensor) -> Edges:
        return np.stack([np.zeros(nodes - 1, dtype=np.int64), np.arange(1, nodes)], 1)


@dataclass(frozen=True)
class Tree(Graph):
    """From node 0 down, level by level."""

    branches: int = setting(2, "nodes below each", ge=1)

    def edges(self, nodes: int, key: Tensor) -> Edges:
        below = np.arange(1, nodes)
        return np.stack([(below - 1) // self.branches, below], 1)


def sides(nodes: int, rows: int | None) -> tuple[int, int]:
    """Rows and columns, as square as it goes. Raises ValueError where nodes don't fill them."""
    found = rows or next(side for side in range(isqrt(nodes), 0, -1) if nodes % side == 0)
    if nodes % found:
        raise ValueError(f"{nodes} nodes don't fill {found} rows")
    if rows is None and found == 1 and nodes > 3:
        raise ValueError(f"{nodes} nodes make no rectangle; `ring` or `line` take any number")
    return found, nodes // found


@dataclass(frozen=True)
class Grid(Graph):
    """A rectangle, row by row; neighbours stand beside, above and below."""

    wrap: ClassVar[bool] = False

    rows: int | None = setting(None, "by default as square as the nodes allow", ge=1)

    def edges(self, nodes: int, key: Tensor) -> Edges:
        rows, columns = sides(nodes, self.rows)
        at = np.arange(nodes).reshape(rows, columns)
        right, down = np.roll(at, -1, 1), np.roll(at, -1, 0)
        ends = (slice(None), slice(None)) if self.wrap else (slice(None, columns - 1), slice(None, rows - 1))
        across = np.stack([at[:, ends[0]].ravel(), right[:, ends[0]].ravel()], 1)
        return np.concatenate([across, np.stack([at[ends[1]].ravel(), down[ends[1]].ravel()], 1)])


@dataclass(frozen=True)
class Torus(Grid):
    """A grid whose last row and column are beside the first; at a side of 2 the two edges are one."""

    wrap: ClassVar[bool] = True


@dataclass(frozen=True)
class Hypercube(Graph):
    """2^q nodes; neighbours differ in one bit of their ids."""

    def edges(self, nodes: int, key: Tensor) -> Edges:
        if nodes & (nodes - 1):
            raise ValueError(f"a hypercube has 2, 4, 8, ... nodes, not {nodes}")
        every = np.arange(nodes)
        flipped = [np.stack([every, every ^ (1 << bit)], 1) for bit in range(nodes.bit_length() - 1)]
        return np.concatenate([*flipped, np.zeros((0, 2), dtype=np.int64)])


@dataclass(frozen=True)
class Exponential(Graph):
    """Each node sends to those 1, 2, 4, ... places further, 1 / (q + 1) each with q = ceil(log2 n)."""

    source: ClassVar[str] = "Ying et al. 2021"
    directed: ClassVar[bool] = True

    def edges(self, nodes: int, key: Tensor) -> Edges:
        return _offsets(nodes, [1 << power for power in range((nodes - 1).bit_length())])


@dataclass(frozen=True, kw_only=True)
class File(Graph):
    """A graph of node ids from 0: an edge list (two ids a line, # for remarks) or GraphML."""

    file: str = setting(help="beside the scenario, or a path")
    oriented: bool = setting(False, "edges of an edge list go one way, from the first to the second")

    def anchored(self, base: Path) -> "File":
        """The same wherever the scenario lies: a file beside it by its absolute path."""
        return replace(self, file=anchored_file(self.file, base))

    @property
    def directed(self) -> bool:  # type: ignore[override]
        return self._read().is_directed() if Path(self.file).exists() else self.oriented

    def edges(self, nodes: int, key: Tensor) -> Edges:
        graph = self._read()
        try:
            ends = np.array([(int(a), int(b)) for a, b in graph.edges], dtype=np.int64).reshape(-1, 2)
        except ValueError:
            raise ValueError(f"{self.file}: nodes are numbers from 0 to {nodes - 1}") from None
        if len(ends) and (ends.max() >= nodes or ends.min() < 0):
            raise ValueError(f"{self.file}: node {ends.max() if ends.max() >= nodes else ends.min()} of {nodes} (the first is 0)")
        return ends

    def _read(self) -> Any:
        import networkx

        try:
            if not Path(self.file).is_file():
                raise ValueError(f"{self.file}: no such file")
            if self.file.endswith(".graphml"):
                return networkx.read_graphml(self.file)
            made = networkx.DiGraph if self.oriented else networkx.Graph
            lines = Path(self.file).read_text().splitlines()
            ends = [line.split("#")[0].split() for line in lines]
            if wrong := next((at for at, words in enumerate(ends, 1) if len(words) not in (0, 2)), 0):
                raise ValueError(f"{self.file}:{wrong}: two node ids are due")
            return made([(words[0], words[1]) for words in ends if words])
        except OSError as error:
            raise ValueError(f"{self.file}: {error.strerror}") from error
        except (networkx.NetworkXError, SyntaxError) as error:  # the latter of XML
            raise ValueError(f"{self.file}: {error}") from error
