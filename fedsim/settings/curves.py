"""Values over rounds: constant, falling, rising, stepwise, in periods."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fedsim.settings.part import Part, setting
from fedsim.settings.spread import Floats


class Curve(Part):
    """A value over rounds. `at` takes rounds (int64 [n], from 0) and gives float64 [n]."""

    slot: ClassVar[str] = "curve"
    bare: ClassVar[tuple[str, str]] = ("constant", "value")

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Curve):
    """The same in every round; written as a bare number."""

    brief: ClassVar[str] = "value"

    value: float = setting(help="the value", ge=0)

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return np.full(len(rounds), self.value)


@dataclass(frozen=True)
class Exponential(Curve):
    """end + (start - end) x factor^round"""

    start: float = setting(help="value of the first round", ge=0)
    factor: float = setting(help="multiplied in after each round", gt=0)
    end: float = setting(0.0, "value that it goes to", ge=0)

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return self.end + (self.start - self.end) * self.factor ** rounds.astype(np.float64)


@dataclass(frozen=True)
class PowerLaw(Curve):
    """start x (offset / (round + offset))^power: a / (k + k0)^t with k0 = offset and a = start x k0^t"""

    name: ClassVar[str] = "power"

    start: float = setting(help="value of the first round", ge=0)
    power: float = setting(1.0, "how fast it falls (t)", ge=0)
    offset: float = setting(1.0, "rounds that the fall waits for about (k0)", gt=0)

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return self.start * (self.offset / (rounds.astype(np.float64) + self.offset)) ** self.power


@dataclass(frozen=True)
class Cosine(Curve):
    """Half a cosine wave from start to end over a number of rounds, then end."""

    start: float = setting(help="value of the first round", ge=0)
    rounds: int = setting(help="length of the fall", ge=1)
    end: float = setting(0.0, help="value from then on", ge=0)

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        way = np.minimum(rounds / self.rounds, 1.0)
        return self.end + (self.start - self.end) * (1 + np.cos(np.pi * way)) / 2


@dataclass(frozen=True)
class Ramp(Curve):
    """A straight line from start to end over a number of rounds, then end."""

    name: ClassVar[str] = "linear"

    start: float = setting(help="value of the first round", ge=0)
    end: float = setting(help="value from then on", ge=0)
    rounds: int = setting(help="length of the line", ge=1)

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return self.start + (self.end - self.start) * np.minimum(rounds / self.rounds, 1.0)


@dataclass(frozen=True)
class Steps(Curve):
    """start, multiplied by factor at each of the given rounds."""

    start: float = setting(help="value of the first round", ge=0)
    factor: float = setting(help="multiplied in at each step", gt=0)
    at_rounds: tuple[int, ...] = setting(help="rounds of the steps")

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        passed: NDArray[np.int64] = (rounds[:, None] >= np.array(self.at_rounds)[None]).sum(1)
        return self.start * self.factor ** passed.astype(np.float64)


@dataclass(frozen=True)
class Points(Curve):
    """Values at some rounds, and straight lines between them; before the first and after the last the same as there."""

    rounds: tuple[int, ...] = setting(help="rising")
    values: tuple[float, ...] = setting(help="as many", ge=0)

    def __post_init__(self) -> None:
        if len(self.rounds) != len(self.values) or not self.rounds or list(self.rounds) != sorted({*self.rounds}):
            raise ValueError(f"one value for each of some rising rounds, not {len(self.values)} for {list(self.rounds)}")

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return np.interp(rounds, self.rounds, self.values)


@dataclass(frozen=True)
class Warmup(Curve):
    """Rises to the first value of another curve, of R rounds the k-th has k / (R + 1) of it; then that curve, from its beginning."""

    rounds: int = setting(help="length of the rise (R)", ge=1)
    then: Curve = setting(help="what follows")

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return self.then.at(np.maximum(rounds - self.rounds, 0)) * np.minimum((rounds + 1) / (self.rounds + 1), 1.0)


@dataclass(frozen=True)
class Periodic(Curve):
    """The first rounds of another curve again and again; with `cosine` these are warm restarts (Loshchilov and Hutter 2017)."""

    rounds: int = setting(help="length of a period", ge=1)
    each: Curve = setting(help="the curve of a period")
    factor: float = setting(1.0, "multiplied in after each period", gt=0)

    def at(self, rounds: NDArray[np.int64]) -> Floats:
        return self.each.at(rounds % self.rounds) * self.factor ** (rounds // self.rounds).astype(np.float64)
