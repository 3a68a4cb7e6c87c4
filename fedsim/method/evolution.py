"""Evolution strategies of replicas: pairs of perturbed members are judged forward only, and what is said of them travels."""

# m: machines, P: pairs a machine

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.base.errors import RunError, SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Layout, Rows
from fedsim.method.inbox import State
from fedsim.method.local import Batch, Local
from fedsim.method.population import Noise, Population
from fedsim.method.replicated import Replicated
from fedsim.schedule import Rounds, Schedule
from fedsim.settings.part import setting
from fedsim.settings.values import Count
from fedsim.task.task import Task


@dataclass(frozen=True)
class Evolution(Replicated):
    """Members W + s sigma P, s = 1 and -1; noise P is a function of round and pair, and a machine's members share a round's minibatch."""

    abstract: ClassVar[bool] = True
    forward_only: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=lambda: Rounds(cohort=Count()))
    population: int = setting(256, "members of a machine and round, two a pair", ge=2)
    batch: int | Literal["all"] = setting(64, "samples that a machine's members are judged on", ge=1)

    def __post_init__(self) -> None:
        if self.population % 2:
            raise SettingError("strategy.population", f"{self.population} members make no pairs")

    def start(self, x: Tensor, task: Task) -> State:
        if task.loss.penalty_of(task.layout.views(task.init)) is not None:
            raise SettingError("task.loss.penalty", f"a member's parameters, which it is of, are never formed by `{self.name}`")
        return super().start(x, task)

    def noise(self, layout: Layout) -> Noise:
        """P of this method."""
        raise NotImplementedError

    @property
    def size(self) -> float:
        """Of the noise (sigma)."""
        raise NotImplementedError

    def said(self, fitness: Tensor) -> Rows:
        """What travels of fitness [m, P, 2], minus the losses of the members + and -."""
        raise NotImplementedError

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        x, keys = received["model"], self.keys(local.shared, local.nodes)
        rows = torch.arange(len(x), device=x.device)
        batch = local.drawn(rows, fold(local.shared, "batch", local.nodes))
        population = Population(local.task.model, self.noise(local.task.layout))
        fitness = torch.stack([-self.judged(population, x[row], keys[row], batch, row, local.task) for row in rows.tolist()])
        if not bool((finite := fitness.isfinite().all(-1).all(-1)).all()):
            row = int(finite.long().argmin())
            raise RunError(
                f"round {int(local.rounds[row]) + 1}: machine {int(local.nodes[row])} has a member whose loss is no finite number"
            )
        return self.said(fitness), memory

    def judged(self, population: Population, x: Tensor, keys: Tensor, batch: Batch, row: int, task: Task) -> Tensor:
        """[P, 2]: losses of one machine's members."""
        inputs, targets, weight = batch.inputs[row], batch.targets[row], batch.weight[row]
        parts = torch.split(keys, population.noise.together)
        return torch.cat(
            [population.losses(x, part, self.size, inputs, lambda out: self.loss(task, out, targets, weight)) for part in parts]
        )

    def keys(self, shared: Tensor, nodes: Tensor) -> Tensor:
        """int64 [m, P]: of the pairs of machines."""
        pairs = self.population // 2
        return fold(shared[:, None], "pair", nodes[:, None] * pairs + torch.arange(pairs, device=nodes.device))
