"""Local training as strategies see it: jobs as rows, steps as prefixes, batches as samples with weights."""

# m: jobs (one row each, sorted by falling number of steps), d: parameters, B: samples a batch

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.data.shift import Gathered, shifted
from fedsim.keys import fold, scramble
from fedsim.part import setting
from fedsim.rows import norm, subtract
from fedsim.task import Task, decoded
from fedsim.values import Constant, Curve

if TYPE_CHECKING:
    from fedsim.engines.plans import Plan


MOST_SHUFFLES = (1 << 19) - 1


@dataclass(frozen=True)
class Train:
    """How a node trains: plain SGD over its own samples, reshuffled each epoch."""

    epochs: float | None = setting(None, "passes over the node's samples, 1 if `steps` is not set either; 0.5 is half a pass", gt=0)
    steps: int | None = setting(None, "batches instead of epochs", ge=1)
    batch: int | Literal["all"] = setting(32, "samples a step", ge=1)
    lr: Curve = setting(Constant(0.05), "learning rate, by round if it changes")
    momentum: float = setting(0.0, "heavy-ball momentum, from zero in each job", ge=0, lt=1)
    weight_decay: float = setting(0.0, "times the model, added to the gradient", ge=0)
    clip: float | None = setting(None, "greatest length of a gradient", gt=0)

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("`epochs` and `steps` exclude each other")

    def batch_size(self, task: Task) -> int:
        """Samples a batch has room for, the same for all jobs of a run, so that results don't depend on how jobs are grouped."""
        most = int(task.counts.max())
        return most if self.batch == "all" else min(self.batch, most)

    def plan(self, counts: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Steps a job and steps an epoch, int64 as `counts` (samples a node); `size` samples a batch."""
        per_epoch = (counts + size - 1) // size
        if self.steps is not None:
            return torch.full_like(counts, self.steps), per_epoch
        steps = per_epoch.double() * (self.epochs or 1.0) - 1e-9  # 0.3 x 50 is 15
        return steps.ceil().long().clamp(min=1), per_epoch

    def samples(self, counts: Tensor, size: int) -> Tensor:
        """Samples that a job looks at, with repetition; int64 as `counts`."""
        steps, per_epoch = self.plan(counts, size)
        return steps // per_epoch * counts + torch.minimum(steps % per_epoch * size, counts)


@dataclass(frozen=True)
class Batch:
    """Samples for the rows still at work: inputs [m, B, ...], targets [m, B], weight [m, B] (0 is padding)."""

    plan: "Plan"
    inputs: Tensor
    targets: Tensor
    weight: Tensor
    job: Tensor  # keys of the jobs
    number: int  # of the step

    @property
    def key(self) -> Tensor:
        """int64 [m]: a key for each row of this step."""
        return fold(self.job, "step", self.number)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradient of the strategy's loss at x [m, d], a row a job; [m, d]."""
        return self.plan.gradient(x, self.inputs, self.targets, self.weight)

    def descend(self, x: Tensor, lr: float | Tensor) -> None:
        """x -= lr x gradient, in place; lr may be [m, 1]. The same bits as with `gradient`, without a copy of it."""
        self.plan.descend(x, lr, self.inputs, self.targets, self.weight)

    def loss(self, x: Tensor) -> Tensor:
        """The strategy's loss at x [m, d], forward only; [m]."""
        return self.plan.loss(x, self.inputs, self.targets, self.weight)

    def with_(self, **changes: Tensor) -> "Batch":
        """The same batch with other inputs, targets or weights."""
        return replace(self, **changes)  # type: ignore[arg-type]


class Local:
    """What jobs may see of their nodes; row i belongs to job i. Rows are sorted by falling number of steps."""

    def __init__(self, plan: "Plan", task: Task, train: Train, nodes: Tensor, key: Tensor, rounds: np.ndarray[Any, Any]) -> None:
        self.plan, self.task, self.train, self.nodes, self.key, self.rounds = plan, task, train, nodes, key, rounds
        self.counts = task.counts[nodes]
        self.size = train.batch_size(task)
        self.steps, self.per_epoch = train.plan(self.counts, self.size)
        self._velocity: Tensor | None = None
        self.lr: float | Tensor
        if isinstance(train.lr, Constant):
            self.lr = train.lr.value
        else:
            self.lr = torch.from_numpy(train.lr.at(rounds)).to(task.init)[:, None]

    def batches(self, *rows: Tensor) -> Iterator[Any]:
        """For each step its batch and the given row tensors, cut to the jobs still at work: views, to be written in place."""
        steps = self.steps.tolist()
        most, live = (steps[0] if steps else 0), len(steps)
        jobs = max(1, len(steps))  # a table has room for some numbers, and for some shuffles
        window = max(1, min((1 << 21) // (jobs * self.size), MOST_SHUFFLES // jobs - 2))
        for first in range(0, most, window):
            last = min(first + window, most)
            samples, weight = self._table(first, last)
            at = 0
            for step in range(first, last):
                while steps[live - 1] <= step:
                    live -= 1
                part = slice(at, at + live)
                at += live
                yield (self._batch(samples[part], weight[part], step), *(tensor[:live] for tensor in rows))

    def step(self, y: Tensor, gradient: Tensor, anchor: Tensor | None = None, pull: float = 0.0) -> None:
        """One SGD step in place on y [k, d], the first k rows: clip, weight decay, proximal pull to the anchor, momentum, lr."""
        train, live = self.train, len(y)
        if train.clip is not None:
            gradient = gradient * (train.clip / norm(gradient).clamp(min=1e-30)).clamp(max=1)
        if train.weight_decay:
            gradient = gradient + train.weight_decay * y
        if anchor is not None and pull:
            gradient = gradient + pull * (y - anchor[:live])
        if train.momentum:
            if self._velocity is None:
                self._velocity = torch.zeros_like(y)
            gradient = self._velocity[:live].mul_(train.momentum).add_(gradient)
        subtract(y, self.lr if isinstance(self.lr, float) else self.lr[:live], gradient)

    def descend(self, start: Tensor, anchor: Tensor | None = None, pull: float = 0.0) -> Tensor:
        """All steps of plain local training from start [m, d]; [m, d]."""
        x, train = start.clone(), self.train
        plain = train.clip is None and not (train.weight_decay or train.momentum or pull)
        for batch, y in self.batches(x):
            if plain:
                batch.descend(y, self.lr if isinstance(self.lr, float) else self.lr[: len(y)])
            else:
                self.step(y, batch.gradient(y), anchor, pull)
        return x

    def _batch(self, samples: Tensor, weight: Tensor, step: int) -> Batch:
        flat = samples.flatten()
        inputs, targets = decoded(self.task.inputs.index_select(0, flat)), self.task.targets.index_select(0, flat)
        inputs, targets = inputs.view(*samples.shape, *inputs.shape[1:]), targets.view(*samples.shape, *targets.shape[1:])
        if self.task.shifts:
            rounds = torch.from_numpy(self.rounds[: len(samples)]).to(samples.device)
            new = shifted(self.task.shifts, Gathered(inputs, targets, samples, self.nodes[: len(samples)], rounds))
            inputs, targets = new.inputs, new.targets
        return Batch(self.plan, inputs, targets, weight, self.key[: len(samples)], step)

    def _table(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Sample numbers and weights of steps first to last, [jobs at work x steps, B], step by step; no row for a job that is done."""
        device = self.nodes.device
        live = (self.steps[None] > torch.arange(first, last, device=device)[:, None]).sum(1)
        step = torch.arange(first, last, device=device).repeat_interleave(live)
        job = torch.arange(len(step), device=device) - (live.cumsum(0) - live).repeat_interleave(live)
        if self.train.batch == "all":
            order, offset, epoch = None, None, torch.zeros_like(step)
        else:
            order, offset, epoch = self._shuffle(first, last, step, job)
        place = (step % self.per_epoch[job] * self.size)[:, None] + torch.arange(self.size, device=device)
        count = self.counts[job][:, None]
        valid = place < count
        place = torch.minimum(place, count - 1)
        if order is not None and offset is not None:
            place = order[offset[job, epoch][:, None] + place]
        weight = valid.to(self.task.init.dtype) / valid.sum(1, keepdim=True)
        return self.task.samples[self.task.starts[self.nodes[job]][:, None] + place], weight

    def _shuffle(self, first: int, last: int, step: Tensor, job: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keyed orders of the jobs' samples in the epochs that steps first to last touch: a flat list, where each begins, steps' epochs."""
        device, jobs = self.nodes.device, len(self.nodes)
        begin = first // self.per_epoch
        epochs = torch.where(
            self.steps > first, (torch.minimum(self.steps, torch.tensor(last, device=device)) - 1) // self.per_epoch - begin + 1, 0
        )
        owner = torch.arange(jobs, device=device).repeat_interleave(epochs)
        nth = torch.arange(len(owner), device=device) - (epochs.cumsum(0) - epochs)[owner]
        length = self.counts[owner]
        ends = length.cumsum(0)
        group = torch.arange(len(owner), device=device).repeat_interleave(length)
        place = torch.arange(len(group), device=device) - (ends - length)[group]
        score = scramble(fold(self.key[owner], "order", begin[owner] + nth)[group] ^ place)
        assert len(owner) <= MOST_SHUFFLES, "more shuffles in one table than a sort key has room for"
        at = torch.sort((group << 44) + (score & ((1 << 44) - 1)), stable=True).indices
        offset = torch.zeros(jobs, int(epochs.max()), dtype=torch.int64, device=device)
        offset[owner, nth] = ends - length
        return place[at], offset, step // self.per_epoch[job] - begin[job]
