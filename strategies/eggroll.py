"""EGGROLL: Sarkar, Fellows, Duque et al. 2025, "Evolution Strategies at the Hyperscale", https://arxiv.org/abs/2511.16652."""

# m: machines, P: pairs a machine, Q: pairs merged, N = 2 Q: members merged, d: parameters

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import RunError, SettingError
from fedsim.keys import fold
from fedsim.local import Batch, Local
from fedsim.part import setting
from fedsim.population import Noise, Population
from fedsim.replicas import Replicated
from fedsim.rows import Layout, Rows
from fedsim.schedule import Rounds, Schedule
from fedsim.strategy import Inbox, State
from fedsim.task import Task
from fedsim.values import Constant, Count, Curve


@dataclass(frozen=True)
class Eggroll(Replicated):
    """Evolution strategies: pairs of members W + s sigma A B'/sqrt(r), s = 1 and -1, are judged forward only; their fitness travels.

    Fitness R is minus the loss of a minibatch that a machine's members share in a round; noise is rebuilt from round and pair. With
    D = sum over members of F s A B'/sqrt(r): textbook W += lr / (N sigma) D; code W += lr sigma / sqrt(N) D. A pair that does not
    arrive is left out, and N counts those that did.
    """

    name: ClassVar[str] = "eggroll"
    source: ClassVar[str] = "Sarkar et al. 2025"
    forward_only: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=lambda: Rounds(cohort=Count()))
    population: int = setting(256, "members of a machine and round, two a pair", ge=2)
    rank: int | Literal["full"] = setting(1, "of the noise of matrices (r); full: all numbers normal, the plain evolution strategy", ge=1)
    sigma: float = setting(0.05, "size of the noise", gt=0)
    step: Literal["textbook", "code"] = setting("textbook", "divided by N sigma, or times sigma / sqrt(N) as the released code has it")
    shaping: Literal["none", "zscore", "sign"] = setting(
        "none", "F: R itself; less its mean, by its deviation over all members; or 1, 0 or -1, a pair's comparison"
    )
    lr: Curve = setting(Constant(0.1), "step, by round if it changes")
    batch: int | Literal["all"] = setting(64, "samples that a machine's members are judged on", ge=1)

    def __post_init__(self) -> None:
        if self.population % 2:
            raise SettingError("strategy.population", f"{self.population} members make no pairs")
        self.trained(self.population, self.batch, self.lr)

    def start(self, x: Tensor, task: Task) -> State:
        if task.loss.penalty_of(task.layout.views(task.init)) is not None:
            raise SettingError("task.loss.penalty", "a member's parameters, which it is of, are never formed by `eggroll`")
        return super().start(x, task)

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
        if self.shaping == "zscore":
            return {"fitness": fitness}, memory
        better = fitness[..., 0] - fitness[..., 1]
        return {"better": better if self.shaping == "none" else better.sign()}, memory

    def judged(self, population: Population, x: Tensor, keys: Tensor, batch: Batch, row: int, task: Task) -> Tensor:
        """[P, 2]: losses of one machine's members."""
        inputs, targets, weight = batch.inputs[row], batch.targets[row], batch.weight[row]
        parts = torch.split(keys, population.noise.together)
        return torch.cat(
            [population.losses(x, part, self.sigma, inputs, lambda out: self.loss(task, out, targets, weight)) for part in parts]
        )

    def keys(self, shared: Tensor, nodes: Tensor) -> Tensor:
        """int64 [m, P]: of the pairs of machines."""
        pairs = self.population // 2
        return fold(shared[:, None], "pair", nodes[:, None] * pairs + torch.arange(pairs, device=nodes.device))

    def noise(self, layout: Layout) -> Noise:
        return Noise(layout, None if self.rank == "full" else self.rank)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        if self.shaping == "zscore":
            fitness = inbox["fitness"]
            better = (fitness[..., 0] - fitness[..., 1]) / (fitness.var(correction=0) + 1e-5).sqrt()
        else:
            better = inbox["better"]
        members, lr = 2 * better.numel(), float(self.lr.at(np.array([inbox.round]))[0])
        factor = lr / (members * self.sigma) if self.step == "textbook" else lr * self.sigma / members**0.5
        x, keys = state["model"], self.keys(inbox.shared, inbox.sender).flatten()
        return state | {"model": x + factor * self.noise(inbox.layout).sum(keys, better.flatten().to(x.dtype))}
