"""How long work and travel take, who is there, and what breaks: pure functions of key, node and turn."""

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.clock import Ints
from fedsim.errors import SettingError
from fedsim.keys import fold, uniform
from fedsim.part import Part, setting
from fedsim.values import Floats, PerNode, Population, Rate, Share, Time

NOTHING: PerNode[Fraction] = PerNode(Fraction(0))
NEVER: PerNode[float] = PerNode(0.0)


@dataclass(frozen=True)
class Compute(Part):
    """Seconds of work = job + step x steps + sample x samples."""

    slot: ClassVar[str] = "compute"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    job: PerNode[Time] = setting(NOTHING, "for each job", ge=0)
    step: PerNode[Time] = setting(NOTHING, "for each local step", ge=0)
    sample: PerNode[Time] = setting(NOTHING, "for each sample looked at", ge=0)


@dataclass(frozen=True)
class Network(Part):
    """Seconds of travel = latency + bytes / rate, each way."""

    slot: ClassVar[str] = "network"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    up: PerNode[Rate] | None = setting(None, "rate of sending; by default without limit", gt=0)
    down: PerNode[Rate] | None = setting(None, "rate of receiving; by default without limit", gt=0)
    latency: PerNode[Time] = setting(NOTHING, "one way, paid in each direction", ge=0)


class Availability(Part):
    """Who is there."""

    slot: ClassVar[str] = "availability"
    default: ClassVar[str] = "always"
    certain: ClassVar[bool] = False

    def present(self, people: Population, key: Tensor, version: int) -> NDArray[np.bool_]:
        """bool [nodes] while the server's model has this version; the key is the same for all versions."""
        raise NotImplementedError


@dataclass(frozen=True)
class Always(Availability):
    """Everybody, at any time."""

    certain: ClassVar[bool] = True

    def present(self, people: Population, key: Tensor, version: int) -> NDArray[np.bool_]:
        return np.ones(people.nodes, dtype=bool)


@dataclass(frozen=True)
class Bernoulli(Availability):
    """Each node by its own coin, tossed anew at each merge. No method knows the chance: `schedule.sampling` is for what it knows."""

    chance: PerNode[Share] = setting(help="probability of being there", ge=0, le=1)

    def present(self, people: Population, key: Tensor, version: int) -> NDArray[np.bool_]:
        chance = self.chance.floats(people, fold(key, "availability.chance"))
        draw: Floats = uniform(fold(key, "present", version, torch.arange(people.nodes)), 1)[:, 0].double().numpy()
        return draw < chance


@dataclass(frozen=True)
class Faults(Part):
    """Chances a job. A crash stops the work at a uniformly drawn point of it; a lost update costs its travel and never arrives."""

    slot: ClassVar[str] = "faults"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    crash: PerNode[Share] = setting(NEVER, "chance that the client crashes during the work", ge=0, le=1)
    lost: PerNode[Share] = setting(NEVER, "chance that the update gets lost on the way", ge=0, le=1)


@dataclass(frozen=True)
class World:
    """The world's four parts. By default nothing takes time, all are there, nothing breaks."""

    compute: Compute = setting(Compute(), "seconds of work")
    network: Network = setting(Network(), "seconds of travel")
    availability: Availability = setting(Always(), "who is there")
    faults: Faults = setting(Faults(), "what breaks")

    def denominators(self, people: Population) -> list[int]:
        """Of the exact times, for the length of a tick."""
        compute, network = self.compute, self.network
        return [time.denominator(people) for time in (compute.job, compute.step, compute.sample, network.latency)]


class Times(NamedTuple):
    """Parts of a job's time, int64 ticks [m]."""

    down: Ints
    work: Ints
    up: Ints


class Fate(NamedTuple):
    """What becomes of jobs: which crash and at which part of their work (float64 [m] in [0, 1)), and which updates get lost."""

    crash: NDArray[np.bool_]
    point: Floats
    lost: NDArray[np.bool_]


class Nature:
    """A world over a population, its settings drawn and in ticks."""

    keeps: ClassVar[tuple[str, ...]] = ()

    def __init__(self, world: World, people: Population, seed: int, per_second: int) -> None:
        self.people, self.per_second = people, per_second
        self.key = fold(seed, "world")
        compute, network, faults = world.compute, world.network, world.faults
        self.job = self._ticks("compute.job", compute.job)
        self.step = self._ticks("compute.step", compute.step)
        self.sample = self._ticks("compute.sample", compute.sample)
        self.latency = self._ticks("network.latency", network.latency)
        self.up = self._floats("network.up", network.up) if network.up else None
        self.down = self._floats("network.down", network.down) if network.down else None
        self.availability = world.availability
        self.crash, self.lost = self._floats("faults.crash", faults.crash), self._floats("faults.lost", faults.lost)
        self.faultless = not (self.crash.any() or self.lost.any())
        self.everyone = np.ones(people.nodes, dtype=bool) if world.availability.certain else None
        self.certain = self.faultless and world.availability.certain
        self.present(0)  # so that a setting that does not fit the population shows before the run

    def _ticks(self, name: str, value: PerNode[Fraction]) -> Ints:
        with _named(name):
            return value.ticks(self.people, fold(self.key, name), self.per_second)

    def _floats(self, name: str, value: "PerNode[Fraction] | PerNode[float]") -> Floats:
        with _named(name):
            return value.floats(self.people, fold(self.key, name))

    def times(self, nodes: Ints, steps: Ints, samples: Ints, down: Ints, up: Ints) -> Times:
        """Of jobs of nodes [m]: steps and samples of work, bytes down and up."""
        return Times(self._travel(nodes, down, self.down), self.work(nodes, steps, samples), self._travel(nodes, up, self.up))

    def work(self, nodes: Ints, steps: Ints, samples: Ints) -> Ints:
        """Ticks of local work of jobs [m]."""
        ticks: Ints = self.job[nodes] + self.step[nodes] * steps + self.sample[nodes] * samples
        return ticks

    def exchange(self, nodes: Ints, size: Ints) -> Ints:
        """Ticks in which peers [m] send and receive `size` bytes [m] each: one latency, then the bytes out and the bytes in."""
        out, into = self._travel(nodes, size, self.up), self._travel(nodes, size, self.down)
        return np.where(size > 0, out + into - self.latency[nodes], 0)

    def _travel(self, nodes: Ints, size: Ints, rate: Floats | None) -> Ints:
        seconds = 0 if rate is None else np.rint(size / rate[nodes] * self.per_second).astype(np.int64)
        return self.latency[nodes] + seconds

    def present(self, version: int) -> NDArray[np.bool_]:
        """bool [nodes]: who is there while the server's model has this version. To be read only."""
        if self.everyone is not None:
            return self.everyone
        with _named("availability.chance"):
            return self.availability.present(self.people, self.key, version)

    def fate(self, nodes: Ints, turn: Ints) -> Fate | None:
        """Of the `turn`-th jobs of nodes [m]; None in a world where nothing breaks."""
        if self.faultless:
            return None
        draw = uniform(fold(self.key, "fate", torch.from_numpy(nodes), torch.from_numpy(turn)), 3).double().numpy()
        crash = draw[:, 0] < self.crash[nodes]
        return Fate(crash, draw[:, 1], ~crash & (draw[:, 2] < self.lost[nodes]))


class _named:
    """Names the world's setting in a ValueError that comes out of the block."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, SettingError):
            raise SettingError(f"world.{self.name}", str(error)) from error
