"""DP-SGD at the nodes: batches by coins, gradients clipped sample by sample, noise on their mean, and each node's account.

Guarantee: for each node, (epsilon, delta)-differential privacy of all that it ever sends, whoever hears it, at the level of samples.
Neighbours are two federations of which one is the other with ONE sample of one node replaced by none: its gradients are zeros (zero-out,
which under Poisson sampling costs the same as adding or removing it). How many samples a node has, who is asked when and how long work
takes count as known; which samples stand in a batch nobody sees. All else that a node sends is made of its noisy gradients and of what it
heard, and so costs nothing more: momentum, control variates, sketches, codecs. A node's epsilon does not add up with that of others;
what stands at several places counts once for each. As with clients, nothing is hidden from who knows the scenario's seed.
"""

# m: jobs, n: nodes, B: most samples of a batch, d: parameters

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, fold_array, normal, scramble
from fedsim.base.rows import Step, norm, shrink, subtract
from fedsim.gradients.samples import Samples
from fedsim.method.batching import Work, places
from fedsim.method.local import Batch, Local
from fedsim.method.privacy import Account
from fedsim.method.strategy import Strategy
from fedsim.privacy.noisy import Noisy
from fedsim.privacy.spent import epsilon, noise_for
from fedsim.schedule.verbs import Verbs
from fedsim.settings.values import Floats
from fedsim.task.loss import MASK
from fedsim.task.task import Task

BITS = 53  # of a coin


def refused(what: str) -> SettingError:
    return SettingError("privacy.unit", f"`sample` hides samples behind gradients of their own, but the method {what}")


def check(privacy: Noisy, strategy: Strategy, task: Task) -> None:
    """Raises SettingError where a method or model learns from samples otherwise than by gradients of their own."""
    if strategy.forward_only:
        raise refused(f"(`{strategy.name}`) takes no gradients")
    if type(strategy).loss is not Strategy.loss:
        raise refused(f"(`{strategy.name}`) has a loss of whole batches")
    if task.buffers.size:
        raise SettingError("privacy.unit", "the model's running statistics (BatchNorm) are of samples, without noise; use another norm")
    if privacy.noise != 0 and privacy.delta * task.most >= 1:
        most = f"{task.most:,} samples of one node; below {1 / task.most:g} protects each of them"
        raise SettingError("privacy.delta", f"{privacy.delta:g} for {most}")


# Work


@dataclass(frozen=True, kw_only=True)
class PrivateBatch(Batch):
    """A batch of which only noisy gradients are seen: sum of clipped gradients, plus noise x clip x normal numbers, times `each`."""

    clip: float
    noise: float
    each: Tensor  # [m, 1]: weight of a sample, 1 / those expected
    allowed: int  # gradients a step
    slots: int | None = None  # samples of the row that has most, where the host knows it
    asked: Iterator[int] = field(default_factory=count)

    def gradient(self, x: Tensor, keep: bool = True) -> Tensor:
        number = next(self.asked)
        if number >= self.allowed:
            raise refused(f"asks for more gradients a step than it declares, {self.allowed}")
        total = torch.zeros_like(x, memory_format=torch.contiguous_format)
        slots = (self.weight > 0).any(0).nonzero()[:, 0].tolist() if self.slots is None else range(self.slots)
        together = max(1, self.plan.chunk // len(x))  # samples of each row, a row of the plan each
        for first in range(0, len(slots), together):
            for part in self._clipped(x, slots[first : first + together]):
                total += part
        if self.noise:
            drawn = normal(fold(self.key, "noise", number), x.shape[1]).to(x.dtype)
            total += self.noise * self.clip * self.each * drawn
        return total

    def _clipped(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        """[k, m, d]: the weighted gradients of the k samples of each row at these slots, none longer than `clip`; 0 for padding."""
        ones = [self._one(slot) for slot in slots]
        several = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*(one.flat() for one in ones), strict=True))
        inputs, targets, weight, *extra = several
        rows = x.repeat(len(slots), 1) if len(slots) > 1 else x
        slope = self.plan.gradient(rows, Samples(inputs, targets, weight, dict(zip(ones[0].extra, extra, strict=True))))
        weight = torch.cat([self.weight[:, slot, None] for slot in slots])
        factor = weight * (self.clip / norm(slope).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=1)
        return torch.where(weight > 0, factor * slope, 0).view(len(slots), *x.shape)

    def _one(self, slot: int) -> Samples:
        """A sample of each row, with weight 1 and dropout of its own."""
        at = slice(slot, slot + 1)
        extra = {"key": fold(self.key, "sample", slot)} if self.plan.task.keyed else {}
        extra |= {} if self.mask is None else {MASK: self.mask}
        return Samples(self.inputs[:, at], self.targets[:, at], torch.ones_like(self.weight[:, at]), extra)

    def descend(self, x: Tensor, lr: Step, keep: Step = 1.0, at: Tensor | None = None) -> None:
        slopes = self.gradient(x if at is None else at)
        shrink(x, keep)
        subtract(x, lr, slopes)

    def loss(self, x: Tensor) -> Tensor:
        raise refused("looks at their losses")

    def input_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise refused("looks at gradients with respect to their inputs")


class PrivateLocal(Local):
    """Jobs whose every step takes each sample of their node by its own coin, of chance batch / samples, at most 1 (Poisson sampling).

    Without noise there is no secret to keep, and batches are those of plain training.
    """

    plain = False

    def __init__(self, privacy: Noisy, gradients: int, *args: Any, **named: Any) -> None:
        """`gradients` a step."""
        super().__init__(*args, **named)
        self.privacy, self.gradients, self.begun = privacy, gradients, False
        self._slots = dict[int, int]()
        self.each = 1 / self.counts.clamp(max=self.size).to(self.task.init.dtype)[:, None]

    def batches(self, *rows: Tensor) -> Iterator[Any]:
        if self.begun:
            raise refused("goes through their batches more than once a job")
        self.begun = True
        yield from super().batches(*rows)

    def drawn(self, job: Tensor, key: Tensor) -> Batch:
        raise refused("draws batches of its own")

    def given(self, samples: Tensor, weight: Tensor, step: int = 0) -> Batch:
        raise refused("chooses them by itself")

    def _batch(self, samples: Tensor, targets: Tensor, weight: Tensor, step: int) -> Batch:
        plain, privacy = super()._batch(samples, targets, weight, step), self.privacy
        each = self.each[: len(samples)]
        slots = self._slots.get(step)
        return PrivateBatch(**vars(plain), clip=privacy.clip, noise=privacy.noise or 0.0, each=each, allowed=self.gradients, slots=slots)

    def _table(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        plain = self.privacy.noise == 0
        table = places(self.work, self.size, first, last, self.train.batch != "all") if plain else coins(self.work, self.size, first, last)
        begin = np.flatnonzero(table[0] == 0)  # each step's first row
        self._slots = dict(enumerate(np.maximum.reduceat(table[2].sum(1), begin).tolist(), first))
        if plain:
            return super()._table(first, last)
        job, place, valid = (self._to(array) for array in table)
        return job, self.task.sample(self.nodes[job][:, None], place), valid * self.each[job]


def coins(work: Work, size: int, first: int, last: int) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """As `batching.places`, with each sample in each step by its own coin: job [R]; places of those that fell, and which count [R, B]."""
    rows, slots, found, jobs = list[Ints](), list[Ints](), list[Ints](), list[Ints]()
    done = 0
    for step in range(first, last):
        live = int(np.searchsorted(-work.steps, -step, side="left"))
        counts = work.samples[:live]
        owner = np.repeat(np.arange(live), counts)
        place = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
        lots = scramble(np.repeat(fold_array(work.key[:live], "coin", step), counts) ^ place) & ((1 << BITS) - 1)
        fell = lots < np.minimum(1.0, size / counts)[owner] * 2.0**BITS
        owner, often = owner[fell], np.bincount(owner[fell], minlength=live)
        rows.append(owner + done)
        slots.append(np.arange(len(owner)) - (np.cumsum(often) - often)[owner])
        found.append(place[fell])
        jobs.append(np.arange(live))
        done += live
    row, slot = np.concatenate(rows), np.concatenate(slots)
    places = np.zeros((done, int(slot.max(initial=0)) + 1), dtype=np.int64)
    valid = np.zeros(places.shape, dtype=bool)
    places[row, slot], valid[row, slot] = np.concatenate(found), True
    return np.concatenate(jobs), places, valid


# Account


class Spending(Account):
    """How many jobs each node has begun, and what their steps have cost it; whatever becomes of a job, its messages may have been heard."""

    keeps: ClassVar[tuple[str, ...]] = ("times",)

    def __init__(self, privacy: Noisy, fed: Verbs, strategy: Strategy, task: Task, planned: int | None = None) -> None:
        """`planned` rounds, over which `privacy.epsilon` may be spent. Raises SettingError where that is set and has no meaning."""
        size, counts = strategy.train.batch_size(task), task.counts.cpu()
        self.delta, self.reserve, self.all_work = privacy.delta, strategy.schedule.repeats(), strategy.schedule.all_work(fed.nodes)
        self.steps: Ints = strategy.train.plan(counts, size)[0].numpy()
        self.chance: Floats = np.minimum(1.0, size / counts.numpy())
        self.together = math.sqrt(strategy.gradients)  # of a step, which are of one batch: so many Gaussians are one with less noise
        self.times = np.zeros(fed.nodes, dtype=np.int64)
        self.noise = self._planned(privacy, planned) if privacy.noise is None else privacy.noise
        self.privacy = replace(privacy, noise=self.noise, epsilon=None)

    def _planned(self, privacy: Noisy, planned: int | None) -> float:
        """The noise with which the node that spends most spends `privacy.epsilon`."""
        assert privacy.epsilon is not None
        if planned is None:
            raise SettingError("privacy.epsilon", "needs `stop.rounds`, from which the noise follows; or set `privacy.noise`")
        if not self.all_work:
            need = "under `rounds` with `cohort: all`, or `gossip`"
            raise SettingError("privacy.epsilon", f"how often a node works is known beforehand {need}; elsewhere set `privacy.noise`")
        steps, noise = planned * self.steps, 1.0
        while True:  # it rises each time, because another node spends more
            _, most, chance = costliest(noise, self.delta, steps, self.chance)
            try:
                noise = noise_for(privacy.epsilon, self.delta, most, chance)
            except ValueError as error:
                raise SettingError("privacy.epsilon", str(error)) from error
            if costliest(noise, self.delta, steps, self.chance)[0] <= privacy.epsilon:
                return noise * self.together

    def _cost(self, times: Ints) -> float:
        """Epsilon of the node that has spent most."""
        return costliest(self.noise / self.together, self.delta, times * self.steps, self.chance)[0]

    @property
    def epsilon(self) -> float:
        return self._cost(self.times)

    def used(self, budget: float) -> float:
        first = self._cost(np.full_like(self.times, self.reserve))
        if first > budget:
            raise SettingError("stop.epsilon", f"the first round could cost {first:.3g} already; more `privacy.noise` costs less")
        return 1.0 if self._cost(self.times + self.reserve) > budget else self._cost(self.times) / budget

    def begun(self, nodes: Ints) -> None:
        self.times[nodes] += 1


def costliest(noise: float, delta: float, steps: Ints, chance: Floats) -> tuple[float, int, float]:
    """The greatest epsilon of nodes that took so many steps [n], each with samples by such coins [n]; and steps and chance of that node.

    Epsilon rises with both, so of a group sorted by them the greatest of each bound it: groups are split until the worst is one node.
    """
    order = np.lexsort((-steps, -chance))
    s, c = steps[order], chance[order]
    front = s > np.concatenate([[-1], np.maximum.accumulate(s)[:-1]])  # nobody has both more steps and a greater chance
    s, c = s[front], c[front]
    groups = list[tuple[float, int, int]]()

    def add(low: int, high: int) -> None:
        heappush(groups, (-epsilon(noise, delta, int(s[high - 1]), float(c[low])), low, high))

    add(0, len(s))
    while (top := heappop(groups))[2] - top[1] > 1:
        middle = (top[1] + top[2]) // 2
        add(top[1], middle)
        add(middle, top[2])
    return -top[0], int(s[top[1]]), float(c[top[1]])
