"""Codes of one round: each worker sends one sum over chunks, and the whole sum comes out of any n - s of them (Tandon et al. 2017)."""

# n: workers, s: stragglers, K: chunks

from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.base.keys import fold, normal
from fedsim.settings.values import Floats

Bools = NDArray[np.bool_]
GREATEST = 1e4  # of the coefficients of a cyclic code: other draws are ill conditioned
EXACT = 1e-6  # how far from 1 a chunk may be counted in what is decoded


@dataclass(frozen=True, eq=False)
class Code:
    """`matrix` [n, K]: worker i sends sum_j matrix[i, j] g_j. `whole` [n] decodes all workers, `null` [r, n] times the matrix is 0."""

    matrix: Floats
    whole: Floats
    null: Floats

    @classmethod
    def of(cls, matrix: Floats) -> "Code":
        """The code of a matrix [n, K]."""
        left, sizes, _ = np.linalg.svd(matrix)
        rank = int((sizes > sizes[0] * 1e-12).sum())
        whole = np.linalg.lstsq(matrix.T, np.ones(matrix.shape[1]), rcond=None)[0].astype(np.float64)
        return cls(matrix, whole, left[:, rank:].T)

    def decode(self, got: Bools) -> Floats | None:
        """a [n], 0 where nothing was got, with a' matrix = 1'; None where there is none. The shortest there is, once a pattern."""
        return _decode(self, np.packbits(got).tobytes())


@lru_cache(maxsize=4096)
def _decode(code: Code, pattern: bytes) -> Floats | None:
    """All solutions are whole + null' c: those that are 0 at the missing solve a system of their size, not of the code's."""
    got = np.unpackbits(np.frombuffer(pattern, np.uint8), count=len(code.matrix)).astype(bool)
    missing = ~got
    shift = np.linalg.lstsq(code.null[:, missing].T, -code.whole[missing], rcond=None)[0]
    found: Floats = np.where(got, code.whole + shift @ code.null, 0.0)
    return found if np.abs(found @ code.matrix - 1).max() < EXACT else None


@lru_cache(maxsize=32)
def fractional(workers: int, stragglers: int) -> Code:
    """Groups of s + 1 workers, each of whom has the group's s + 1 chunks. Raises ValueError where s + 1 does not divide n."""
    at_least(workers, stragglers)
    if workers % (stragglers + 1):
        near = [s for s in range(workers) if workers % (s + 1) == 0]
        best = min(near, key=lambda s: abs(s - stragglers))
        raise ValueError(f"groups of {stragglers + 1} don't divide {workers} workers; with `stragglers: {best}` they would")
    group = np.arange(workers) // (stragglers + 1)
    return Code.of((group[:, None] == group).astype(np.float64))


@lru_cache(maxsize=32)
def cyclic(workers: int, stragglers: int) -> Code:
    """Worker i has chunks i to i + s; coefficients from a keyed random matrix (Algorithm 2). Raises ValueError for s >= n."""
    at_least(workers, stragglers)
    if not stragglers:
        return Code.of(np.eye(workers))
    for draw in count():
        matrix = _cyclic(workers, stragglers, draw)
        if np.abs(matrix).max() <= GREATEST:
            return Code.of(matrix)
    raise AssertionError


def _cyclic(workers: int, stragglers: int, draw: int) -> Floats:
    """Rows in the null space of H [s, n], whose rows sum to 0: of dimension n - s, with 1 in it."""
    rows = fold(0, "gradient code", workers, stragglers, draw, torch.arange(stragglers))
    h: Floats = normal(rows, workers).double().numpy()
    h[:, -1] = -h[:, :-1].sum(1)
    own = np.arange(workers)
    others = (own[:, None] + 1 + np.arange(stragglers)) % workers
    matrix = np.eye(workers)
    matrix[own[:, None], others] = np.linalg.solve(h.T[others].transpose(0, 2, 1), -h.T[:, :, None])[:, :, 0]
    return matrix


def at_least(workers: int, stragglers: int) -> None:
    """Raises ValueError where nobody would be left."""
    if stragglers >= workers:
        raise ValueError(f"{stragglers} stragglers of {workers} workers leave nobody")
