"""How unlike nodes' data are: distances of label distributions and spread of sizes, all at once from counts [nodes, classes]."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PAIRS = 20_000  # pairs of nodes that are compared at most


def hellinger(p: Floats, q: Floats) -> Floats:
    """Hellinger distance of distributions [..., C], 0 (the same) to 1 (disjoint): sqrt(1 - sum sqrt(p q))."""
    overlap: Floats = np.sqrt(p * q).sum(-1)
    return np.sqrt(np.clip(1 - overlap, 0, 1))


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Jensen-Shannon divergence of distributions [..., C] in bits, 0 (the same) to 1 (disjoint)."""
    middle = (p + q) / 2
    return np.clip((_information(p, middle) + _information(q, middle)) / 2, 0, 1)


def _information(p: Floats, q: Floats) -> Floats:
    """Kullback-Leibler divergence in bits, 0 log 0 = 0."""
    there = p > 0
    found: Floats = (p * np.log2(np.where(there, p, 1) / np.where(there, q, 1))).sum(-1)
    return found


def distributions(counts: Ints) -> Floats:
    """Rows of counts [..., C], none of them empty, as distributions."""
    shares: Floats = counts / counts.sum(-1, keepdims=True)
    return shares


def pairs(nodes: int) -> tuple[Ints, Ints]:
    """Each pair of nodes once where these are PAIRS at most, else so many drawn, always the same ones."""
    if nodes * (nodes - 1) // 2 <= PAIRS:
        first, second = np.triu_indices(nodes, 1)
        return first, second
    draw = np.random.default_rng(0)
    first = draw.integers(0, nodes, PAIRS)
    return first, (first + draw.integers(1, nodes, PAIRS)) % nodes


@dataclass(frozen=True)
class LabelSkew:
    """Distances of nodes' label distributions to that of all nodes' samples together, and between pairs of nodes (nan for one node)."""

    hellinger: float  # mean over nodes
    least: float
    most: float
    jensen_shannon: float  # bits, mean over nodes
    hellinger_pairs: float  # mean over pairs

    def __str__(self) -> str:
        between = "" if np.isnan(self.hellinger_pairs) else f", pairs {self.hellinger_pairs:.2f}"
        return (
            f"Hellinger {self.hellinger:.2f} ({self.least:.2f} to {self.most:.2f}){between}; Jensen-Shannon {self.jensen_shannon:.2f} bits"
        )


@dataclass(frozen=True)
class SizeSkew:
    """How nodes differ in samples; `effective`: so many nodes of equal size would have the same sum of squared weights."""

    variation: float  # standard deviation over mean
    gini: float
    effective: float
    nodes: int

    def __str__(self) -> str:
        return (
            f"coefficient of variation {self.variation:.2f}, Gini {self.gini:.2f}, as {self.effective:,.1f} of {self.nodes:,} equal nodes"
        )


def label_skew(counts: Any) -> LabelSkew | None:
    """From counts [n, C] of samples a node and class; None without classes. Nodes without samples do not count."""
    table = np.asarray(counts, dtype=np.int64)
    table = table[table.sum(1) > 0] if table.size else table
    if not table.size:
        return None
    own, all_ = distributions(table), distributions(table.sum(0))
    distance = hellinger(own, all_)
    first, second = pairs(len(own))
    between = float(hellinger(own[first], own[second]).mean()) if len(first) else float("nan")
    return LabelSkew(float(distance.mean()), float(distance.min()), float(distance.max()), float(jensen_shannon(own, all_).mean()), between)


def size_skew(sizes: Any) -> SizeSkew:
    """From samples a node [n]."""
    n = np.sort(np.asarray(sizes, dtype=np.float64))
    rank, total = np.arange(1, len(n) + 1), n.sum()
    gini = float((2 * rank - len(n) - 1) @ n / (len(n) * total))
    return SizeSkew(float(n.std() / n.mean()), gini, float(total**2 / (n @ n)), len(n))
