"""A slow, obvious simulator: one client at a time, plain autograd, a list for a queue. The federation must agree with it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim import sampling
from fedsim.keys import below, bits, fold
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Schedule, Ticks
from fedsim.task import Task


@dataclass
class Flying:
    end: Fraction
    node: int
    serial: int
    version: int
    model: Tensor
    turn: int


@dataclass
class Simple:
    """State of the simulation; events are (seconds, kind, node, version, staleness)."""

    task: Task
    seconds: list[Fraction]
    steps: int
    lr: float
    now: Fraction = Fraction(0)
    version: int = 0
    serial: int = 0

    def __post_init__(self) -> None:
        self.flying: list[Flying] = []
        self.turns = [0] * self.task.nodes
        self.events: list[tuple[Any, ...]] = []

    def send(self, node: int, model: Tensor) -> None:
        self.turns[node] += 1
        self.flying.append(Flying(self.now + self.seconds[node], node, self.serial, self.version, model.clone(), self.turns[node]))
        self.serial += 1
        self.events.append((self.now, "dispatch", node, self.version, -1))

    def arrive(self) -> Flying:
        job = min(self.flying, key=lambda one: (one.end, one.node, one.serial))
        self.flying.remove(job)
        self.now = job.end
        self.events.append((self.now, "arrival", job.node, job.version, -1))
        return job

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

    def idle(self) -> list[int]:
        busy = {job.node for job in self.flying}
        return [node for node in range(self.task.nodes) if node not in busy]

    def few(self, count: int) -> bool:
        return self.task.nodes >= sampling.LARGE and sampling.SPARSE * count <= len(self.idle())

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

    def run(self, schedule: Schedule, merges: int, seed: int = 0) -> Tensor:
        """FedAvg (D-SGD for peers) under a schedule; the model [1, d], or the peers' [n, d]."""
        n = self.task.nodes
        x = self.task.init.clone()
        peers = [x.clone() for _ in range(n)]
        while self.version < merges:
            if isinstance(schedule, Rounds):
                first = self.serial
                for node in self.lots(schedule.cohort.of(n), fold(seed, "cohort", self.version)):
                    self.send(node, x)
                deadline = None if schedule.deadline is None else self.now + schedule.deadline
                jobs: list[Flying] = []
                while any(job.serial >= first for job in self.flying) and sum(job.serial >= first for job in jobs) < (
                    schedule.wait_for or n
                ):
                    if deadline is not None and min(job.end for job in self.flying) > deadline:
                        self.now = deadline
                        break
                    jobs.append(self.arrive())
                x = x + self.mean(jobs) if jobs else x
                self.merged(jobs)
                if schedule.late == "drop":
                    for job in sorted(self.flying, key=lambda one: (one.end, one.node)):
                        self.events.append((self.now, "drop", job.node, job.version, -1))
                    self.flying.clear()
            elif isinstance(schedule, Buffered):
                busy = schedule.concurrency.of(n)
                for node in self.lots(busy - len(self.flying), fold(seed, "lot", self.serial)):
                    self.send(node, x)
                jobs = []
                while len(jobs) < schedule.size:
                    jobs.append(self.arrive())
                    if schedule.restart == "arrival" and len(jobs) < schedule.size:
                        free, key = self.idle(), fold(seed, "lot", self.serial)
                        self.send(self.first(1, key)[0] if self.few(1) else free[int(below(key, 1, len(free))[0])], x)
                x = x + self.mean(jobs)
                self.merged(jobs)
            elif isinstance(schedule, Ticks):
                for node in self.idle():
                    self.send(node, x)
                tick, jobs = self.now + schedule.every, []
                while self.flying and min(job.end for job in self.flying) <= tick:
                    jobs.append(self.arrive())
                self.now = tick
                x = x + self.mean(jobs) if jobs else x
                self.merged(jobs)
            elif isinstance(schedule, Gossip):
                for node in range(n):
                    self.send(node, peers[node])
                jobs = sorted((self.arrive() for _ in range(n)), key=lambda job: job.node)
                adapted = torch.stack([peers[job.node] + self.update(job) for job in jobs])
                self.merged(jobs)
                peers = list(schedule.topology.matrix(n, self.version).to(adapted) @ adapted)
            elif isinstance(schedule, Pairwise):
                for node in self.idle():
                    self.send(node, peers[node])
                job = self.arrive()
                other = schedule.topology.partner(job.node, n, fold(seed, "pair", self.version))
                middle = (peers[job.node] + peers[other]) / 2
                peers[other] = middle
                peers[job.node] = middle + self.update(job)
                self.merged([job])
        return torch.stack(peers) if schedule.peers else x[None]
