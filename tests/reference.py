"""A slow, obvious simulator: one client at a time, plain autograd, a list for a queue. The federation must agree with it."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.base.keys import below, bits, fold
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Schedule, Ticks, sampling
from fedsim.task.task import Task


@dataclass
class Flying:
    end: Fraction
    node: int
    serial: int
    version: int
    model: Tensor
    turn: int
    gone: bool = False


Times = list[tuple[Fraction, Fraction]]


@dataclass
class There:
    """Who is there: node n from a to b for each (a, b) of its stays, and again after each period. `drop`: who leaves drops its work."""

    stays: list[Times]
    period: Fraction
    drop: bool = False

    def is_there(self, node: int, time: Fraction) -> bool:
        return any(a <= time % self.period < b for a, b in self.stays[node])

    def changes(self, time: Fraction) -> list[Fraction]:
        """Times after this one at which somebody may come or leave, rising, over three periods."""
        edges = {edge for stays in self.stays for pair in stays for edge in pair}
        start = time // self.period * self.period
        return sorted(start + i * self.period + edge for i in range(3) for edge in edges if start + i * self.period + edge > time)

    def comes(self, time: Fraction) -> Fraction:
        """When somebody is there again."""
        return next(t for t in self.changes(time) if any(self.is_there(node, t) for node in range(len(self.stays))))

    def leaves(self, node: int, time: Fraction) -> Fraction | None:
        return next((t for t in self.changes(time) if not self.is_there(node, t)), None)


@dataclass
class Way:
    """A job on a shared link: bytes still to come down, then ticks of work (the time it ends, once begun), then bytes still to go up."""

    node: int
    down: Fraction
    work: Fraction
    up: Fraction
    works_until: Fraction | None = None


@dataclass
class SharedLink:
    """Exact transfers: the server's rates down and up are shared max-min fairly, with the clients' own rates as caps."""

    server: tuple[Fraction, Fraction]
    own: list[Fraction]
    now: Fraction = Fraction(0)
    ways: list[Way] = field(default_factory=list)

    def rates(self, users: list[Way], capacity: Fraction) -> dict[int, Fraction]:
        """Progressive filling: the one with the lowest cap gets it, or an equal share of what is left."""
        found: dict[int, Fraction] = {}
        for way in sorted(users, key=lambda one: self.own[one.node]):
            found[way.node] = min(self.own[way.node], (capacity - sum(found.values())) / (len(users) - len(found)))
        return found

    def step(self, until: Fraction | None = None) -> Way | None:
        """To the next thing that happens, or to a time before it; who is through."""
        coming, going = [w for w in self.ways if w.down], [w for w in self.ways if not w.down and w.works_until is None]
        down, up = self.rates(coming, self.server[0]), self.rates(going, self.server[1])
        times = [self.now + w.down / down[w.node] for w in coming] + [self.now + w.up / up[w.node] for w in going]
        times += [w.works_until for w in self.ways if w.works_until is not None]
        then = min([*times, *([] if until is None else [until])])
        for way in coming:
            way.down -= down[way.node] * (then - self.now)
            if not way.down:
                way.works_until = then + way.work
        for way in going:
            way.up -= up[way.node] * (then - self.now)
        for way in self.ways:
            if way.works_until is not None and way.works_until <= then:
                way.works_until = None
        self.now = then
        through = sorted((w for w in going if not w.up), key=lambda one: one.node)
        if through:
            self.ways.remove(through[0])
        return through[0] if through else None


@dataclass
class Simple:
    """State of the simulation; events are (seconds, kind, node, version, staleness).

    `factor(node, turn)` multiplies the seconds of work, to whole ticks; `there` says who is there; `link` and `bytes` a shared link.
    """

    task: Task
    seconds: list[Fraction]
    steps: int
    lr: float
    factor: Callable[[int, int], float] | None = None
    tick: Fraction = Fraction(1, 10**9)
    there: There | None = None
    link: SharedLink | None = None
    bytes: int = 0
    now: Fraction = Fraction(0)
    version: int = 0
    serial: int = 0

    def __post_init__(self) -> None:
        self.flying: list[Flying] = []
        self.waiting: list[Flying] = []  # come, and left to a later merge
        self.turns = [0] * self.task.nodes
        self.events: list[tuple[Any, ...]] = []

    def send(self, node: int, model: Tensor) -> None:
        self.turns[node] += 1
        work = self.seconds[node]
        if self.factor is not None:
            work = round(float(work / self.tick) * self.factor(node, self.turns[node])) * self.tick
        job = Flying(self.now + work, node, self.serial, self.version, model.clone(), self.turns[node])
        if self.there is not None and self.there.drop:
            leave = self.there.leaves(node, self.now)
            if leave is not None and leave < job.end:
                job.end, job.gone = leave, True
        if self.link is not None:
            self.link.ways.append(Way(node, Fraction(self.bytes), work, Fraction(self.bytes)))
        self.flying.append(job)
        self.serial += 1
        self.events.append((self.now, "dispatch", node, self.version, -1))

    def next_end(self) -> Fraction:
        """When the next job ends, if nobody starts before."""
        if self.link is None:
            return min(job.end for job in self.flying)
        trial = deepcopy(self.link)
        while trial.step() is None:
            pass
        return trial.now

    def arrive(self) -> list[Flying]:
        """The next job ends: it arrives, or it is gone."""
        if self.link is None:
            job = min(self.flying, key=lambda one: (one.end, one.node, one.serial))
        else:
            while (way := self.link.step()) is None:
                pass
            [job] = [one for one in self.flying if one.node == way.node]
            job.end = self.link.now
        self.flying.remove(job)
        self.now = job.end
        self.events.append((self.now, "drop" if job.gone else "arrival", job.node, job.version, -1))
        return [] if job.gone else [job]

    def wait(self, time: Fraction) -> None:
        self.now = time
        while self.link is not None and self.link.now < time:
            assert self.link.step(time) is None

    def update(self, job: Flying) -> Tensor:
        """Full-batch gradient steps of one client."""
        part = slice(int(self.task.starts[job.node]), int(self.task.starts[job.node + 1]))
        samples, x = self.task.samples[part], job.model.clone()
        for _ in range(self.steps):
            row = x.clone().requires_grad_()
            outputs = functional_call(self.task.model, self.task.layout.views(row), (self.task.inputs[samples],))
            self.task.loss(outputs, self.task.targets[samples]).mean().backward()
            assert row.grad is not None
            x = x - self.lr * row.grad
        return x - job.model

    def merged(self, jobs: list[Flying]) -> None:
        self.version += 1
        for job in sorted(jobs, key=lambda one: (one.node, one.serial)):
            self.events.append((self.now, "merge", job.node, self.version, self.version - 1 - job.version))
        if not jobs:
            self.events.append((self.now, "merge", -1, self.version, -1))

    def mean(self, jobs: list[Flying]) -> Tensor:
        share = self.task.counts.double()
        total = sum(float(share[job.node]) for job in jobs)
        return torch.stack([float(share[job.node]) / total * self.update(job) for job in jobs]).sum(0)

    def present(self, node: int) -> bool:
        return self.there is None or self.there.is_there(node, self.now)

    def idle(self) -> list[int]:
        busy = {job.node for job in self.flying}
        return [node for node in range(self.task.nodes) if node not in busy and self.present(node)]

    def few(self, count: int) -> bool:
        return self.there is None and self.task.nodes >= sampling.LARGE and sampling.SPARSE * count <= len(self.idle())

    def first(self, count: int, key: Tensor) -> list[int]:
        """The first idle nodes that come up among keyed numbers."""
        found, numbers = list[int](), 0
        while len(found) < count:
            numbers += 1
            node = int(below(key, numbers, self.task.nodes)[-1])
            if node in self.idle() and node not in found:
                found.append(node)
        return sorted(found)

    def lots(self, count: int, key: Tensor) -> list[int]:
        if self.few(count):
            return self.first(count, key)
        score = bits(key, self.task.nodes).tolist()
        return sorted(sorted(self.idle(), key=lambda node: score[node])[:count])

    def due(self, jobs: list[Flying], size: int, eta: int | None) -> bool:
        """Enough have come, and those at work could all be merged in time after this merge, were they merged in the order of their age."""
        later = [self.version + 1 + place // size for place in range(len(self.flying))]
        ages = [merge - version for merge, version in zip(later, sorted(job.version for job in self.flying), strict=True)]
        return len(jobs) >= size and (eta is None or max(ages, default=0) <= eta)

    def run(self, schedule: Schedule, merges: int, seed: int = 0) -> Tensor:
        """FedAvg (D-SGD for peers) under a schedule; the model [1, d], or the peers' [n, d]."""
        n = self.task.nodes
        x = self.task.init.clone()
        peers = [x.clone() for _ in range(n)]
        while self.version < merges:
            if self.there is not None and not self.flying and not any(map(self.present, range(n))):
                self.wait(self.there.comes(self.now))
            if isinstance(schedule, Rounds):
                first = self.serial if schedule.late == "keep" else 0
                cohort = self.lots(schedule.cohort.of(n), fold(seed, "cohort", self.version))
                for node in cohort:
                    self.send(node, x)
                wanted, first = (schedule.wait_for or len(cohort), first) if cohort else (1, 0)
                deadline = None if schedule.deadline is None else self.now + schedule.deadline
                jobs: list[Flying] = []
                while any(job.serial >= first for job in self.flying) and sum(job.serial >= first for job in jobs) < wanted:
                    if deadline is not None and self.next_end() > deadline:
                        break
                    jobs += self.arrive()
                if deadline is not None and sum(job.serial >= first for job in jobs) < wanted:
                    self.wait(deadline)
                x = x + self.mean(jobs) if jobs else x
                self.merged(jobs)
                if schedule.late == "drop":
                    for job in sorted(self.flying, key=lambda one: (one.end, one.node)):
                        self.events.append((self.now, "drop", job.node, job.version, -1))
                    self.flying.clear()
                    if self.link is not None:
                        self.link.ways.clear()
            elif isinstance(schedule, Buffered):
                busy, size, eta = schedule.concurrency.of(n), schedule.size, schedule.max_staleness
                admitted = n if eta is None else (eta + 1) * size - len(self.flying) - len(self.waiting)
                for node in self.lots(min(busy - len(self.flying), admitted), fold(seed, "lot", self.serial)):
                    self.send(node, x)
                jobs = list(self.waiting)
                while self.flying and not self.due(jobs, size, eta):
                    jobs += self.arrive()
                    full = eta is not None and len(self.flying) + len(jobs) >= (eta + 1) * size
                    if schedule.restart == "arrival" and not full and not self.due(jobs, size, eta) and (free := self.idle()):
                        key = fold(seed, "lot", self.serial)
                        self.send(self.first(1, key)[0] if self.few(1) else free[int(below(key, 1, len(free))[0])], x)
                if eta is not None:
                    jobs = sorted(jobs, key=lambda job: job.version)
                    jobs, self.waiting = jobs[:size], jobs[size:]
                x = x + self.mean(jobs) if jobs else x
                self.merged(jobs)
            elif isinstance(schedule, Ticks):
                for node in self.idle():
                    self.send(node, x)
                tick, jobs = (self.now // schedule.every + 1) * schedule.every, []
                while self.flying and self.next_end() <= tick:
                    jobs += self.arrive()
                self.wait(tick)
                x = x + self.mean(jobs) if jobs else x
                self.merged(jobs)
            elif isinstance(schedule, Gossip):
                for node in self.idle():
                    self.send(node, peers[node])
                jobs = sorted((job for _ in range(len(self.flying)) for job in self.arrive()), key=lambda job: job.node)
                adapted = torch.stack(peers)
                for job in jobs:
                    adapted[job.node] += self.update(job)
                self.merged(jobs)
                mixing = schedule.topology.mixing(n, self.version - 1, fold(seed, "topology"))
                weights, heard = torch.from_numpy(mixing.weights.toarray()).to(adapted), {job.node for job in jobs}
                for i in range(n):  # what an absent peer would have said, each says to itself
                    for j in range(n):
                        if i != j and not {i, j} <= heard:
                            weights[i, i], weights[i, j] = weights[i, i] + weights[i, j], 0
                peers = list(weights @ adapted)
            elif isinstance(schedule, Pairwise):
                for node in self.idle():
                    self.send(node, peers[node])
                jobs = []
                while self.flying and not jobs:
                    jobs = self.arrive()
                for job in jobs:
                    mixing = schedule.topology.mixing(n, 0, fold(seed, "topology"))
                    other = mixing.partner(job.node, fold(seed, "pair", self.version))
                    if self.present(other):
                        peers[job.node] = peers[other] = (peers[job.node] + peers[other]) / 2
                    peers[job.node] = peers[job.node] + self.update(job)
                self.merged(jobs)
        return torch.stack(peers) if schedule.peers else x[None]
