"""Environments of reinforcement learning: samples are the states that episodes begin in, and models are policies."""

# B: episodes, S: numbers of a state, O: numbers that a policy sees of it

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, uniform
from fedsim.data.arrays import Array, Arrays
from fedsim.data.source import Source
from fedsim.data.sparse import check_size
from fedsim.settings.part import setting


@dataclass(frozen=True)
class Environment(Source):
    """States in, actions out. All randomness is in the states that episodes begin in; of their targets each is the best return from there.

    States are rows, so that all episodes of all policies go on together: no branch on numbers, no change in place.
    """

    abstract: ClassVar[bool] = True
    actions: ClassVar[int]  # how many there are

    @property
    def sees(self) -> tuple[int, ...]:
        """The shape of what a policy sees of one state."""
        raise NotImplementedError

    @property
    def limit(self) -> int:
        """Steps after which an episode ends by itself."""
        raise NotImplementedError

    def seen(self, state: Tensor) -> Tensor:
        """[B, O]: what a policy sees of states [B, S]."""
        return state

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next states [B, S], rewards [B] and whether episodes are over, bool [B], after int64 actions [B] in states [B, S]."""
        raise NotImplementedError

    def success(self, state: Tensor, over: Tensor) -> Tensor:
        """bool [B]: did episodes reach what is wanted? By their last states [B, S] and whether they were over before the limit [B]."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cartpole(Environment):
    """A cart is pushed left or right so that the pole on it stays up: a reward of 1 a step until the pole or the cart is too far off.

    A state is the cart's place and speed, and the pole's angle and its speed, seen as they are. Friction is left out.
    """

    source: ClassVar[str] = "Barto, Sutton & Anderson 1983, Neuronlike adaptive elements that can solve difficult learning control problems"
    actions: ClassVar[int] = 2

    episodes: int = setting(256, "first states that nodes have, drawn by lot", ge=1)
    tests: int = setting(128, "further ones to test on", ge=1)
    steps: int = setting(500, "of an episode at most", ge=1)
    spread: float = setting(0.05, "each number of a first state lies within this of 0", ge=0, lt=0.2)

    @property
    def sees(self) -> tuple[int, ...]:
        return (4,)

    @property
    def limit(self) -> int:
        return self.steps

    def load(self, base: Path) -> Arrays:
        check_size(self.episodes + self.tests, 4, self.name)
        number = torch.arange(self.episodes + self.tests)
        x = ((2 * uniform(fold(0, "cartpole", number), 4) - 1) * self.spread).numpy()
        y = np.full(len(x), float(self.steps), dtype=np.float32)
        train, test = slice(self.episodes), slice(self.episodes, None)
        return Arrays(x[train], y[train], x[test], y[test], environment=self)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # s, ds: place and speed of the cart in m and m/s; a, da: the pole's angle from upright and its speed in rad and rad/s
        g, cart, pole, half, push, dt = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02  # m/s^2, kg, kg, half the pole's length in m, N, s
        s, ds, a, da = state.unbind(-1)
        sin, cos, mass = a.sin(), a.cos(), cart + pole
        pushed = (push * (2 * action - 1) + pole * half * da * da * sin) / mass
        dda = (g * sin - cos * pushed) / (half * (4 / 3 - pole * cos * cos / mass))
        dds = pushed - pole * half * dda * cos / mass
        after = torch.stack([s + dt * ds, ds + dt * dds, a + dt * da, da + dt * dda], -1)
        over = (after[..., 0].abs() > 2.4) | (after[..., 2].abs() > math.radians(12))
        return after, torch.ones_like(s), over

    def success(self, state: Tensor, over: Tensor) -> Tensor:
        return ~over


WAYS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # up, right, down, left: rows and columns


@dataclass(frozen=True)
class GridWorld(Environment):
    """A walk up, right, down or left to the goal: a reward of -1 a step; who walks into a wall or off the map stays where he is.

    A state is row and column, of which the policy sees one 1 among as many numbers as there are places. Episodes begin at each place from
    which the goal can be reached, in training and in tests.
    """

    source: ClassVar[str] = "after Sutton & Barto 2018, Reinforcement Learning, example 4.1"
    actions: ClassVar[int] = len(WAYS)

    map: tuple[str, ...] = setting((".....", ".###.", "...#.", ".#..G"), "rows of `.` (free), `#` (wall) and `G` (goal)")
    steps: int = setting(30, "of an episode at most", ge=1)

    @property
    def sees(self) -> tuple[int, ...]:
        return (len(self.map) * len(self.map[0]),)

    @property
    def limit(self) -> int:
        return self.steps

    def load(self, base: Path) -> Arrays:
        self._check()
        away = distances(self.map)
        starts = np.argwhere((away > 0) & (away <= self.steps))
        if not len(starts):
            raise SettingError("task.data.map", f"from no place can a `G` be reached in {self.steps} steps")
        x, y = starts.astype(np.float32), -away[tuple(starts.T)].astype(np.float32)
        keys = {"row": starts[:, 0], "column": starts[:, 1]}
        return Arrays(x, y, x, y, keys, keys, environment=self)

    def _check(self) -> None:
        """Raises SettingError where the map is none."""
        for row, line in enumerate(self.map):
            if len(line) != len(self.map[0]):
                raise SettingError(f"task.data.map.{row}", f"has {len(line)} places, and row 0 has {len(self.map[0])}")
            if odd := set(line) - set(".#G"):
                raise SettingError(f"task.data.map.{row}", f"`{min(odd)}` means nothing; `.` is free, `#` a wall, `G` a goal")
        if not any("G" in line for line in self.map):
            raise SettingError("task.data.map", "has no goal, `G`")

    def seen(self, state: Tensor) -> Tensor:
        place = self._place(state)
        return (place[..., None] == torch.arange(self.sees[0], device=state.device)).to(state.dtype)

    def step(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        after = _moves(self.map, state.device)[self._place(state) * self.actions + action].to(state.dtype)
        return after, -torch.ones_like(after[..., 0]), self._there(after)

    def success(self, state: Tensor, over: Tensor) -> Tensor:
        return over

    def _place(self, state: Tensor) -> Tensor:
        """int64 [B]"""
        return (state[..., 0] * len(self.map[0]) + state[..., 1]).to(torch.int64)

    def _there(self, state: Tensor) -> Tensor:
        return _goals(self.map, state.device)[self._place(state)]


def distances(map: tuple[str, ...]) -> Array:
    """int64, a number a place: steps to the nearest goal, -1 where there is no way."""
    goal, free = _cells(map, "G"), ~_cells(map, "#")
    away = np.where(goal, 0, -1)
    for step in range(1, away.size):
        near = np.zeros_like(free)
        for row, column in WAYS:
            near |= _shifted(away == step - 1, row, column)
        away[near & free & (away < 0)] = step
    return away


def _cells(map: tuple[str, ...], mark: str) -> Array:
    return np.array([[one == mark for one in line] for line in map])


def _shifted(cells: Array, row: int, column: int) -> Array:
    """Truth values moved by rows and columns; what leaves the map is gone."""
    padded = np.pad(cells, 1)
    return np.asarray(padded[1 - row : 1 - row + cells.shape[0], 1 - column : 1 - column + cells.shape[1]])


@lru_cache(maxsize=16)
def _moves(map: tuple[str, ...], device: torch.device) -> Tensor:
    """int64 [places x 4, 2]: row and column after each move from each place."""
    rows, columns, wall = len(map), len(map[0]), _cells(map, "#")
    found = []
    for row, column in np.ndindex(rows, columns):
        for down, right in WAYS:
            to = (row + down, column + right)
            inside = 0 <= to[0] < rows and 0 <= to[1] < columns
            found.append(to if inside and not wall[to] else (row, column))
    return torch.tensor(found, device=device)


@lru_cache(maxsize=16)
def _goals(map: tuple[str, ...], device: torch.device) -> Tensor:
    """bool [places]"""
    return torch.from_numpy(_cells(map, "G").flatten()).to(device)
