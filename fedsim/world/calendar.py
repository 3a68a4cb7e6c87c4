"""Who is there at which time: pure functions of node and time, so that any time can be asked in any order."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import FOREVER, Ints
from fedsim.base.keys import fold, fold_array, interior, interior_array
from fedsim.settings.values import Floats

Mask = NDArray[np.bool_]


class Calendar:
    """When nodes are there; times are ticks, and times FOREVER or later never come. It keeps what it last found of each node, to be fast;
    what it says depends on node and time alone."""

    def __init__(self, nodes: int) -> None:
        self.nodes, self.there = np.arange(nodes), np.zeros(nodes, dtype=bool)
        self.since, self.until = np.full(nodes, FOREVER), np.zeros(nodes, dtype=np.int64)  # `there` holds in [since, until)

    def spell(self, nodes: Ints, at: Ints) -> tuple[Mask, Ints]:
        """Of nodes [m] at times [m]: bool, whether each is there, and int64, until when that holds for sure; if so it leaves then."""
        raise NotImplementedError

    def present(self, now: int) -> Mask:
        """bool [nodes]"""
        stale = self.nodes[(now < self.since) | (now >= self.until)]
        if len(stale):
            self.there[stale], self.until[stale] = self.spell(stale, np.full(len(stale), now))
            self.since[stale] = now
        return self.there.copy()

    def comes(self, now: int) -> int:
        """The next time after `now` at which somebody comes who is away now."""
        away = ~self.present(now)
        return int(self.until[away].min(initial=FOREVER))

    def leaves(self, nodes: Ints, at: Ints) -> Ints:
        """int64 [m]: the next time after `at` [m] at which each of the nodes [m], all there then, leaves."""
        return self.spell(nodes, at)[1]


class Windows(Calendar):
    """Node n is there in [start[i], end[i]) for first[n] <= i < first[n + 1], which rise and do not overlap; again after each period[n]."""

    def __init__(self, start: Ints, end: Ints, first: Ints, period: Ints) -> None:
        super().__init__(len(period))
        self.start, self.end, self.first, self.period = start, end, first, period

    def spell(self, nodes: Ints, at: Ints) -> tuple[Mask, Ints]:
        there, place, turn = self._inside(nodes, at)
        until = np.full(len(nodes), FOREVER)
        until[there] = self._ends(nodes[there], place[there], (at - turn)[there])
        away = ~there & (self.first[nodes + 1] > self.first[nodes])
        until[away] = self._begins(nodes[away], place[away] + 1, (at - turn)[away])
        return there, until

    def _ends(self, nodes: Ints, place: Ints, base: Ints) -> Ints:
        """When windows end that began in periods from `base` on; one up to a period's end goes on where the next begins at once."""
        end, first, period = self.end[place], self.first[nodes], self.period[nodes]
        wraps = (end == period) & (self.start[first] == 0) & (period < FOREVER)
        whole = wraps & (self.end[first] == period)
        return np.where(whole | (end >= FOREVER), FOREVER, base + np.where(wraps, period + self.end[first], end))

    def _begins(self, nodes: Ints, place: Ints, base: Ints) -> Ints:
        """When the windows at `place` begin, or the first of the next period where there are no more."""
        more, period = place < self.first[nodes + 1], self.period[nodes]
        begin = self.start[np.where(more, place, self.first[nodes])]
        return base + np.where(more, begin, period + begin)

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


class Coins(Calendar):
    """Alternating exponential stays and absences, means `on` and `off` [nodes] in ticks; in the long run from the start.

    Two independent Poisson processes of a node, coming at rate 1 / off and leaving at rate 1 / on, decide: who came last is there. The
    times between a coming and the next leaving are exponential because the processes have no memory. Both are drawn in cells of one
    mean length, keyed by node and cell, so any time is found by looking at a cell or two.
    """

    def __init__(self, on: Ints, off: Ints, key: Tensor) -> None:
        super().__init__(len(on))
        self.length, self.key = {"come": off, "leave": on}, {kind: int(fold(key, kind)) for kind in ("come", "leave")}
        u = interior(fold(key, "start", torch.from_numpy(self.nodes)), 1)[:, 0].numpy()
        self.began: Mask = u * (on.astype(np.float64) + off) < on

    def spell(self, nodes: Ints, at: Ints) -> tuple[Mask, Ints]:
        came, left = (self._last(kind, nodes, at) for kind in ("come", "leave"))
        there = np.where((came < 0) & (left < 0), self.began[nodes], came >= left)
        until = np.empty(len(nodes), dtype=np.int64)
        until[there], until[~there] = self._next("leave", nodes[there], at[there]), self._next("come", nodes[~there], at[~there])
        return there, until

    def _points(self, kind: str, nodes: Ints, cell: Ints) -> Ints:
        """int64 [m, 24]: the points of a cell, rising; those that fall behind it are FOREVER. More than 24 come once in 1e24 cells."""
        length = self.length[kind][nodes]
        keys = fold_array(self.key[kind], nodes, cell)
        place: Floats = np.cumsum(-np.log(interior_array(keys, 24)), 1)
        inside = place < 1
        ticks = cell[:, None] * length[:, None] + (np.where(inside, place, 0) * length[:, None]).astype(np.int64)
        return np.where(inside, ticks, FOREVER)

    def _last(self, kind: str, nodes: Ints, at: Ints) -> Ints:
        """int64 [m]: the last point at or before each time, -1 where there is none."""
        cell, found = at // self.length[kind][nodes], np.full(len(nodes), -1, dtype=np.int64)
        waiting = np.arange(len(nodes))
        while len(waiting):
            points = self._points(kind, nodes[waiting], cell[waiting])
            found[waiting] = np.where(points <= at[waiting, None], points, -1).max(1)
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
