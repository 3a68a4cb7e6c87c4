"""Who is there at which time: pure functions of node and time, so that any time can be asked in any order."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.clock import FOREVER, Ints
from fedsim.keys import fold, interior
from fedsim.values import Floats

Mask = NDArray[np.bool_]


class Calendar(Protocol):
    """When nodes are there; times are ticks, and times FOREVER or later never come."""

    def present(self, now: int) -> Mask:
        """bool [nodes]"""

    def comes(self, now: int) -> int:
        """The next time after `now` at which somebody comes."""

    def leaves(self, nodes: Ints, at: Ints) -> Ints:
        """int64 [m]: the next time after `at` [m] at which each of the nodes [m], all there then, leaves."""


class Windows:
    """Node n is there in [start[i], end[i]) for first[n] <= i < first[n + 1], which rise and do not overlap; again after each period[n]."""

    def __init__(self, start: Ints, end: Ints, first: Ints, period: Ints) -> None:
        self.start, self.end, self.first, self.period = start, end, first, period
        self.nodes = np.arange(len(period))

    def present(self, now: int) -> Mask:
        return self._inside(self.nodes, np.full(len(self.nodes), now))[0]

    def comes(self, now: int) -> int:
        inside, at, turn = self._inside(self.nodes, np.full(len(self.nodes), now))
        away = self.nodes[~inside & (self.first[1:] > self.first[:-1])]
        if not len(away):
            return FOREVER
        after, base = at[away] + 1, now - turn[away]
        more = after < self.first[away + 1]
        begin = self.start[np.where(more, after, self.first[away])]
        return int(np.where(more, base + begin, self._later(base, self.period[away], begin)).min())

    def leaves(self, nodes: Ints, at: Ints) -> Ints:
        _, place, turn = self._inside(nodes, at)
        base, end = at - turn, self.end[place].copy()
        left = base + end
        # a stay that reaches the end of the period goes on where the next one begins at once
        first = self.first[nodes]
        wraps = (end == self.period[nodes]) & (self.start[first] == 0) & (self.period[nodes] < FOREVER)
        whole = wraps & (self.end[first] == self.period[nodes])
        left = np.where(wraps, base + self.period[nodes] + self.end[first], left)
        return np.where(whole | (end >= FOREVER), FOREVER, left)

    def _later(self, base: Ints, period: Ints, begin: Ints) -> Ints:
        return np.where(period >= FOREVER, FOREVER, base + np.minimum(period, FOREVER) + begin)

    def _inside(self, nodes: Ints, at: Ints) -> tuple[Mask, Ints, Ints]:
        """Whether each of the nodes [m] is there at its time [m], its last window that has begun (first - 1: none), time of its period."""
        turn = at % self.period[nodes]
        low, high = self.first[nodes] - 1, self.first[nodes + 1] - 1
        while (low < high).any():  # the last window with start <= turn, each node's own binary search
            middle = (low + high + 1) // 2
            begun = (middle > low) & (self.start[np.minimum(middle, len(self.start) - 1)] <= turn) & (low < high)
            low, high = np.where(begun, middle, low), np.where(begun, high, np.where(low < high, middle - 1, high))
        known = low >= self.first[nodes]
        inside = known & (turn < self.end[np.maximum(low, 0)]) if len(self.end) else known
        return inside, low, turn


class Coins:
    """Alternating exponential stays and absences, means `on` and `off` [nodes] in ticks; in the long run from the start.

    Two independent Poisson processes of a node, coming at rate 1 / off and leaving at rate 1 / on, decide: who came last is there. The
    times between a coming and the next leaving are exponential because the processes have no memory. Both are drawn in cells of one
    mean length, keyed by node and cell, so any time is found by looking at a cell or two.
    """

    def __init__(self, on: Ints, off: Ints, key: Tensor) -> None:
        self.length = {"come": off, "leave": on}
        self.key, self.nodes = key, np.arange(len(on))
        u = interior(fold(key, "start", torch.arange(len(on))), 1)[:, 0].numpy()
        self.began: Mask = u * (on.astype(np.float64) + off) < on

    def present(self, now: int) -> Mask:
        came, left = (self._last(kind, self.nodes, now) for kind in ("come", "leave"))
        return np.where((came < 0) & (left < 0), self.began, came >= left)

    def comes(self, now: int) -> int:
        away = self.nodes[~self.present(now)]
        return int(self._next("come", away, np.full(len(away), now)).min()) if len(away) else FOREVER

    def leaves(self, nodes: Ints, at: Ints) -> Ints:
        return self._next("leave", nodes, at)

    def _points(self, kind: str, nodes: Ints, cell: Ints) -> Ints:
        """int64 [m, 24]: the points of a cell, rising; those that fall behind it are FOREVER. More than 24 come once in 1e24 cells."""
        length = self.length[kind][nodes]
        keys = fold(self.key, kind, torch.from_numpy(nodes), torch.from_numpy(cell))
        place: Floats = np.cumsum(-np.log(interior(keys, 24).numpy()), 1)
        inside = place < 1
        ticks = cell[:, None] * length[:, None] + (np.where(inside, place, 0) * length[:, None]).astype(np.int64)
        return np.where(inside, ticks, FOREVER)

    def _last(self, kind: str, nodes: Ints, now: int) -> Ints:
        """int64 [m]: the last point at or before now, -1 where there is none."""
        cell, found = now // self.length[kind][nodes], np.full(len(nodes), -1, dtype=np.int64)
        waiting = np.arange(len(nodes))
        while len(waiting):
            points = self._points(kind, nodes[waiting], cell[waiting])
            found[waiting] = np.where(points <= now, points, -1).max(1)
            cell[waiting] -= 1
            waiting = waiting[(found[waiting] < 0) & (cell[waiting] >= 0)]
        return found

    def _next(self, kind: str, nodes: Ints, at: Ints) -> Ints:
        """int64 [m]: the first point after each time."""
        cell, found = at // self.length[kind][nodes], np.full(len(nodes), FOREVER, dtype=np.int64)
        waiting = np.arange(len(nodes))
        while len(waiting):
            points = self._points(kind, nodes[waiting], cell[waiting])
            found[waiting] = np.where(points > at[waiting, None], points, FOREVER).min(1)
            cell[waiting] += 1
            waiting = waiting[found[waiting] >= FOREVER]
        return found
