"""A world over a population: its settings drawn and in ticks, and what they say about jobs."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.base.clock import LONGEST, Ints, counted, whole
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, uniform
from fedsim.settings.values import Floats, PerNode, Population
from fedsim.world.attackers import Attackers, Liars
from fedsim.world.availability import Scheduled
from fedsim.world.chain import bad
from fedsim.world.compute import Compute, GilbertElliottBursts
from fedsim.world.energy import Energy
from fedsim.world.hosts import Hosts
from fedsim.world.job_times import FileTimes
from fedsim.world.network import MOST_LOST, GilbertElliottLoss, Independent, Network, again
from fedsim.world.world import World

RATES = 1.0, 1e18  # bytes a second: what drawn rates are cut to
MOST_ENERGY = 10**17  # microjoules of a job: more jobs than are ever run fit int64 together


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
    """A world over a population. Nothing in it changes: what it says is a function of node, turn and time."""

    def __init__(self, world: World, people: Population, seed: int, per_second: int) -> None:
        self.people, self.per_second = people, per_second
        self.notes: dict[str, str] = {}  # what was cut, by setting
        self.key = fold(seed, "world")
        self._compute(world.compute)
        self._network(world.network)
        self.machine: Ints | None = None  # of each node, where some share one
        self.stack, self.merge = np.broadcast_to(np.int64(0), people.nodes), 0
        self.together: int | None = None
        self.availability = there = world.availability
        with _named("availability"):
            self.calendar = there.calendar(people, self.key, per_second) if isinstance(there, Scheduled) else None
        self.drops = isinstance(there, Scheduled) and there.leaving == "drop"
        faults = world.faults
        self.crash, self.lost = self._shares("faults.crash", faults.crash), self._shares("faults.lost", faults.lost)
        self.breaks = bool(self.crash.any() or self.lost.any())
        self.faultless = not (self.breaks or self.drops)
        self.everyone = np.ones(people.nodes, dtype=bool) if there.certain else None
        self.certain = self.faultless and there.certain
        if world.hosts is not None:
            self._hosts(world.hosts, world)
        self.energy = None if world.energy is None else self._watts(world.energy)
        self.liars = None if world.attackers is None else self._liars(world.attackers)
        self.world = world
        self.present(0)  # so that a setting that does not fit the population shows before the run

    def _compute(self, compute: Compute) -> None:
        self.job = self._ticks("compute.job", compute.job)
        self.step = self._ticks("compute.step", compute.step)
        self.sample = self._ticks("compute.sample", compute.sample)
        with _named("compute.trace"):
            self.trace = compute.trace.course(self.people.nodes, self.per_second) if isinstance(compute.trace, FileTimes) else None
        job, step, sample = (int(ticks.max()) for ticks in (self.job, self.step, self.sample))
        self.slowest = job + (int(self.trace.ticks.max()) if self.trace else 0), step, sample
        self.jitter, self.bursts = compute.jitter, None
        if isinstance(bursts := compute.bursts, GilbertElliottBursts):
            enter, leave = (self._shares(f"compute.bursts.{name}", getattr(bursts, name)) for name in ("enter", "leave"))
            self.bursts = enter, leave, self._floats("compute.bursts.slower", bursts.slower)

    def _network(self, network: Network) -> None:
        self.latency = self._ticks("network.latency", network.latency)
        self.server_up, self.server_down = (None if rate is None else float(rate) for rate in (network.server_up, network.server_down))
        self.up = self._rate("network.up", network.up, self.server_up)
        self.down = self._rate("network.down", network.down, self.server_down)
        self.loss, self.packet = network.loss, network.packet
        names = ("chance",) if isinstance(self.loss, Independent) else ("enter", "leave", "bad", "good")
        self.losses = [self._shares(f"network.loss.{name}", getattr(self.loss, name)) for name in names] if self.loss else []
        if any((chance > MOST_LOST).any() for chance in (self.losses if len(names) == 1 else self.losses[2:])):
            raise SettingError("world.network.loss", f"a node loses more than {MOST_LOST:.1%} of its packets")
        self.shared = bool(self.server_up or self.server_down)
        self.even = not (self.trace or self.jitter or self.bursts)
        self.steady = self.even and not (self.loss or self.shared)

    def _hosts(self, hosts: Hosts, world: World) -> None:
        """Raises SettingError where they make no sense, by themselves or with other settings."""
        for name, there in (("network.server_up", self.server_up), ("network.server_down", self.server_down), ("network.loss", self.loss)):
            if there:
                raise SettingError(f"world.{name}", "not together with `world.hosts`, whose links are the machines' alone")
        if self.drops or world.energy is not None:
            what, which = ("availability.leaving", "who leaves `drop`s") if self.drops else ("energy", "energy of a node is counted")
            raise SettingError(f"world.{what}", f"{which}: not together with `world.hosts`, where nodes work as one")
        with _named("hosts.nodes"):
            self.machine = hosts.of_nodes(self.people)
        self.stack = self._ticks("hosts.stack", hosts.stack)
        with _named("hosts.merge"):
            self.merge, self.together = counted(hosts.merge, self.per_second, LONGEST), hosts.together
        first = np.unique(self.machine, return_index=True)[1][self.machine]
        for name, value in (("hosts.stack", self.stack), *((f"network.{one}", getattr(self, one)) for one in ("up", "down", "latency"))):
            if value is not None and len(other := np.flatnonzero(value != value[first])):
                who = f"nodes {first[other[0]]} and {other[0]} are on machine {self.machine[other[0]]}"
                raise SettingError(f"world.{name}", f"{who}, and what a machine has is the same for all of its nodes")
        self.shared, self.steady = True, False

    def _liars(self, attackers: Attackers) -> Liars:
        key = fold(self.key, "attackers")
        with _named("attackers.nodes"):
            return Liars(attackers, attackers.nodes.mask(self.people, key), key)

    def _watts(self, energy: Energy) -> tuple[Floats, Floats, Floats]:
        """Receiving, working, sending: float64 [nodes] each."""
        down, work, up = (self._floats(f"energy.{name}", getattr(energy, name)) for name in ("receive", "compute", "send"))
        return down, work, up

    def _ticks(self, name: str, value: PerNode[Fraction]) -> Ints:
        with _named(name):
            ticks = value.ticks(self.people, fold(self.key, name), self.per_second)
        if count := int((ticks == LONGEST).sum()):
            self.notes[name] = f"the times of {count:,} nodes are cut to {self._span(LONGEST)}, the longest that the clock can count"
        return ticks

    def _floats(self, name: str, value: "PerNode[Fraction] | PerNode[float]") -> Floats:
        with _named(name):
            return value.floats(self.people, fold(self.key, name))

    def _shares(self, name: str, value: PerNode[float]) -> Floats:
        with _named(name):
            return value.shares(self.people, fold(self.key, name))

    def _span(self, ticks: int) -> str:
        return f"{ticks / self.per_second / 86_400:,.4g} days"

    def _rate(self, name: str, value: PerNode[Fraction] | None, server: float | None) -> Floats | None:
        """A node's own rate, no more than the server's whole; None without limit."""
        own = self._floats(name, value) if value else None
        if own is not None and value is not None and value.constant is None:
            if len(none := np.flatnonzero(~(own > 0))):
                raise SettingError(f"world.{name}", f"node {none[0]} gets {own[none[0]]:g} B/s; a rate is above 0")
            if count := int(((own < RATES[0]) | (own > RATES[1])).sum()):
                self.notes[name] = f"the rates of {count:,} nodes are cut to {RATES[0]:g} B/s to {RATES[1]:g} B/s"
                own = np.clip(own, *RATES)
        if server is None:
            return own
        return np.full(self.people.nodes, server) if own is None else np.minimum(own, server)

    def times(self, nodes: Ints, work: Ints, down: Ints, up: Ints) -> Times:
        """Of jobs of nodes [m]: ticks of work, bytes down and up; each alone on the server's link and on its machine."""
        work = work if self.machine is None else work + self.stack[nodes]
        return Times(self.travel(nodes, down, self.down), work, self.travel(nodes, up, self.up))

    def work(self, nodes: Ints, steps: Ints, samples: Ints, turn: Ints | None = None) -> Ints:
        """Ticks of local work of jobs [m]: of the nodes' `turn`-th [m], or without jitter and bursts, and with a trace's mean."""
        per_job = self.job[nodes]
        if self.trace:
            with _named("compute.trace"):
                per_job = per_job + self.trace.of_jobs(nodes, turn)
        job, step, sample = self.slowest
        if len(nodes) and job + step * int(steps.max()) + sample * int(samples.max()) > LONGEST:
            with _named("compute"):  # a little above in whole numbers may be a lot below
                exact = per_job + self.step[nodes] * steps.astype(np.float64) + self.sample[nodes] * samples.astype(np.float64)
                whole(exact.astype(np.float64), self.per_second)
        ticks: Ints = per_job + self.step[nodes] * steps + self.sample[nodes] * samples
        if turn is None or not (self.jitter or self.bursts):
            return ticks
        factor = np.ones(len(nodes))
        if self.jitter:
            factor *= self.jitter.factors(fold(self.key, "jitter", torch.from_numpy(nodes), torch.from_numpy(turn)))
        if self.bursts:
            enter, leave, slower = self.bursts
            factor *= np.where(bad(fold(self.key, "bursts"), nodes, turn, enter, leave), slower[nodes], 1.0)
        found = ticks * factor
        if (found > LONGEST).any():
            self.notes["compute"] = f"jobs that jitter or bursts make longer than {self._span(LONGEST)} are cut to it"
        return np.maximum(np.rint(np.minimum(found, LONGEST)).astype(np.int64), ticks > 0)  # work never becomes no work

    def exchange(self, nodes: Ints, out: Ints, into: Ints) -> Ints:
        """Ticks in which peers [m] send and hear so many bytes [m]: one latency, then the bytes out and the bytes in."""
        ticks = self.travel(nodes, out, self.up) + self.travel(nodes, into, self.down) - self.latency[nodes]
        return np.where(out + into > 0, ticks, 0)

    def travel(self, nodes: Ints, size: Ints, rate: Floats | None) -> Ints:
        """Ticks of `size` bytes [m] at the nodes' rates."""
        if rate is None:
            return self.latency[nodes]
        with _named("network"):
            return self.latency[nodes] + whole(size / rate[nodes] * self.per_second, self.per_second)

    def bytes(self, nodes: Ints, size: Ints, turn: Ints, way: str) -> Ints:
        """Bytes on the wire of a message of the nodes' `turn`-th jobs [m] of `size` bytes [m], packets sent again included."""
        if self.loss is None:
            return size
        if isinstance(self.loss, GilbertElliottLoss):
            enter, leave, lossy, good = self.losses
            chance = np.where(bad(fold(self.key, "link"), nodes, turn, enter, leave), lossy[nodes], good[nodes])
        else:
            chance = self.losses[0][nodes]
        packets = -(-size // self.packet)
        more = again(fold(self.key, "again", way, torch.from_numpy(nodes), torch.from_numpy(turn)), packets, chance)
        return size + np.rint(more * (size / np.maximum(packets, 1))).astype(np.int64)

    def of_edges(self, edges: int, seed: int) -> "Nature":
        """The same for so many edge servers, as nodes of whom they report to. Raises SettingError where the settings don't fit them."""
        there = self.world.edges
        if there is None:
            return Nature(World(), Population(edges), seed, self.per_second)
        try:
            return Nature(World(network=there.network, availability=there.availability), Population(edges), seed, self.per_second)
        except SettingError as error:
            raise SettingError(error.key.replace("world.", "world.edges."), f"of {edges} edges: {error.message}") from error

    @property
    def living(self) -> Ints | None:
        """Peers that are not lost for good, whose models count; None: all."""
        return None

    def present(self, version: int, now: int = 0) -> NDArray[np.bool_]:
        """bool [nodes]: who is there at a time while the server's model has this version. To be read only."""
        if self.everyone is not None:
            return self.everyone
        if self.calendar is not None:
            return self.calendar.present(now)
        with _named("availability.chance"):
            return self.availability.present(self.people, self.key, version)

    def leaves(self, nodes: Ints, at: Ints) -> Ints | None:
        """int64 [m]: when nodes, there at times [m], leave and drop their work; None in a world where nobody does."""
        return self.calendar.leaves(nodes, at) if self.calendar is not None and self.drops else None

    def fate(self, nodes: Ints, turn: Ints) -> Fate | None:
        """Of the `turn`-th jobs of nodes [m]; None in a world where nothing breaks."""
        if not self.breaks:
            return None
        draw = uniform(fold(self.key, "fate", torch.from_numpy(nodes), torch.from_numpy(turn)), 3).double().numpy()
        crash = draw[:, 0] < self.crash[nodes]
        return Fate(crash, draw[:, 1], ~crash & (draw[:, 2] < self.lost[nodes]))

    def joules(self, nodes: Ints, parts: Times) -> Ints | None:
        """int64 [m]: microjoules of so many ticks of receiving, work and sending; None where energy is not counted."""
        if self.energy is None:
            return None
        watts = sum((watt[nodes] * ticks for watt, ticks in zip(self.energy, parts, strict=True)), start=np.zeros(len(nodes)))
        energy = watts * (1e6 / self.per_second)
        if not (energy <= MOST_ENERGY).all():
            raise SettingError("world.energy", f"a job takes {energy.max() / 1e6:.3g} J; at most {MOST_ENERGY / 1e6:.3g} J can be counted")
        return np.rint(energy).astype(np.int64)


class _named:
    """Names the world's setting in a ValueError that comes out of the block."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError) and not isinstance(error, SettingError):
            raise SettingError(f"world.{self.name}", str(error)) from error
