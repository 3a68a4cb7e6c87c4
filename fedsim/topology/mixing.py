"""Mixing: how hearers combine what they hear, as a sparse matrix on rows."""

# n: hearers

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.keys import below

DENSE = 4  # with more than a quarter of all entries a dense product is faster
CLOSE = 1e-9
Keep = Literal["rows", "columns"]  # what sums to 1 also where messages are missing


class Mixing:
    """Row i of `weights` (float64, scipy csr [n, n]) says how much hearer i takes of whom, itself included.

    Where rows sum to 1 hearers average, where columns do what is sent adds up to what there was (push-sum), where both do the mean
    of all stays.
    """

    def __init__(self, matrix: Any) -> None:
        """From a tensor, an array or a scipy sparse matrix, [n, n]. Raises ValueError where it is no square of weights from 0."""
        from scipy.sparse import csr_array

        self.weights = csr_array(matrix.numpy() if isinstance(matrix, Tensor) else matrix, dtype=np.float64)
        self.weights.eliminate_zeros()
        self.weights.sort_indices()
        self.size = self.weights.shape[0]
        if self.weights.shape != (self.size, self.size):
            raise ValueError(f"a mixing matrix is square, not {' x '.join(map(str, self.weights.shape))}")
        if not np.isfinite(self.weights.data).all() or (self.weights.data < 0).any():
            raise ValueError("the weights of a mixing matrix are numbers from 0")
        self._cast: dict[tuple[torch.device, torch.dtype], Any] = {}

    def __matmul__(self, rows: Tensor) -> Tensor:
        """weights x rows, [n, ...] of rows [n, ...], in their precision; on a CPU entry by entry in the order of the ids."""
        flat = rows.flatten(1)
        if self.uniform:
            return flat.mean(0, keepdim=True).expand_as(flat).clone().view_as(rows)
        weights = self._in(rows.device, rows.dtype)
        out = weights @ flat if isinstance(weights, Tensor) else torch.from_numpy(weights @ flat.numpy())
        return out.view_as(rows)

    def _in(self, device: torch.device, dtype: torch.dtype) -> Any:
        """The weights for rows of this kind: dense, or sparse for scipy on a CPU (four times as fast as torch's) and torch elsewhere."""
        if (device, dtype) not in self._cast:
            values = torch.from_numpy(self.weights.data).to(dtype)
            if DENSE * self.weights.nnz > self.size**2:
                made: Any = torch.from_numpy(self.weights.toarray()).to(device, dtype)
            elif device.type == "cpu":
                made = self.weights.astype(values.numpy().dtype)
            else:
                first, column = (torch.from_numpy(at.astype(np.int64)) for at in (self.weights.indptr, self.weights.indices))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # torch says once that sparse tensors are new
                    made = torch.sparse_csr_tensor(first, column, values, size=self.weights.shape, device=device)
            self._cast[device, dtype] = made
        return self._cast[device, dtype]

    @cached_property
    def edges(self) -> tuple[Ints, Ints]:
        """Who hears, and whom: int64 [messages] each, without oneself, by hearer."""
        hearer, sender = self.weights.tocoo().coords
        apart = hearer != sender
        return hearer[apart].astype(np.int64), sender[apart].astype(np.int64)

    @cached_property
    def heard(self) -> Ints:
        """Messages that each hears, int64 [n]."""
        return np.bincount(self.edges[0], minlength=self.size)

    @cached_property
    def said(self) -> Ints:
        """Messages that each sends, int64 [n]."""
        return np.bincount(self.edges[1], minlength=self.size)

    @cached_property
    def averages(self) -> bool:
        """Do rows sum to 1?"""
        return bool((abs(self.weights.sum(1) - 1) < CLOSE).all())

    @cached_property
    def keeps_sums(self) -> bool:
        """Do columns sum to 1?"""
        return bool((abs(self.weights.sum(0) - 1) < CLOSE).all())

    @cached_property
    def symmetric(self) -> bool:
        return bool(abs(self.weights - self.weights.T).max() < CLOSE)

    @cached_property
    def uniform(self) -> bool:
        """Everybody takes the mean of all."""
        return self.weights.nnz == self.size**2 and bool((abs(self.weights.data * self.size - 1) < CLOSE).all())

    def averaging(self) -> "Mixing":
        """The same messages with rows that sum to 1."""
        from scipy.sparse import diags_array

        return self if self.averages else Mixing(diags_array(1 / self.weights.sum(1)) @ self.weights)

    def own(self, like: Tensor) -> Tensor:
        """[n, 1, ...]: how much each takes of itself, for rows like these."""
        return sent(torch.from_numpy(self.weights.diagonal()).to(like.dtype), like.device).view(-1, *[1] * (like.dim() - 1))

    def partner(self, node: int, key: Tensor) -> int:
        """One of those that a node hears, by keyed lot; itself where it hears nobody."""
        first, last = self.weights.indptr[node : node + 2]
        heard = self.weights.indices[first:last]
        others = heard[heard != node]
        return int(others[int(below(key, 1, len(others))[0])]) if len(others) else node

    def either_way(self, some: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Of messages (bool, as `edges`), with those the other way."""
        from scipy.sparse import csr_array

        if not some.any():
            return some
        marked = csr_array((some.astype(np.int8), self.edges), shape=self.weights.shape)
        return np.asarray((marked + marked.T)[self.edges] > 0).ravel()

    def among(self, nodes: Ints, keep: Keep = "rows") -> "Mixing":
        """Where only these nodes, rising, talk."""
        if len(nodes) == self.size:
            return self
        here = np.zeros(self.size, dtype=bool)
        here[nodes] = True
        return self.without(~(here[self.edges[0]] & here[self.edges[1]]), keep)

    def without(self, gone: NDArray[np.bool_], keep: Keep = "rows") -> "Mixing":
        """Without some of the messages (bool, as `edges`). What a hearer misses it takes of itself, so that rows sum to what they did.

        With keep="columns", what is not heard stays with its sender instead.
        """
        from scipy.sparse import csr_array

        if not gone.any():
            return self
        hearer, sender = self.edges
        weight = np.asarray(self.weights[hearer, sender]).ravel()
        back = np.bincount((hearer if keep == "rows" else sender)[gone], weight[gone], minlength=self.size)
        every = np.arange(self.size)
        data = np.concatenate([weight[~gone], self.weights.diagonal() + back])
        places = np.concatenate([hearer[~gone], every]), np.concatenate([sender[~gone], every])
        return Mixing(csr_array((data, places), shape=self.weights.shape))

    def components(self) -> list[Ints]:
        """Groups of nodes that hear of each other, over however many others; rising, the one of node 0 first."""
        from scipy.sparse.csgraph import connected_components

        count, label = connected_components(self.weights, directed=True, connection="strong")
        groups = [np.flatnonzero(label == one) for one in range(count)]
        return sorted(groups, key=lambda nodes: int(nodes[0]))

    def gap(self) -> float:
        """Spectral gap 1 - |W - 11'/n|_2: how much of the distance from the mean a step removes at least."""
        return self._gap

    @cached_property
    def _gap(self) -> float:
        return gap_of([self])


def gap_of(steps: Sequence[Mixing]) -> float:
    """Spectral gap a step of several one after the other, 1 - |W_k ... W_1 - 11'/n|_2^(1/k); a graph may mix over steps only."""
    product = steps[0].weights.toarray()
    for one in steps[1:]:
        product = one.weights @ product
    left = float(np.linalg.norm(product - 1 / len(product), 2))
    return round(1.0 - float((0.0 if left < CLOSE else left) ** (1 / len(steps))), 12) + 0.0
