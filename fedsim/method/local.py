"""Local training as strategies see it: jobs as rows, steps as prefixes, batches as samples with weights."""

# m: jobs (one row each, sorted by falling number of steps), d: parameters, B: samples a batch

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import Finished
from fedsim.base.keys import fold
from fedsim.base.rows import BUFFERS, Step, column, norm, shrink, subtract
from fedsim.data.augment import augmented
from fedsim.data.shift import Gathered, shifted
from fedsim.gradients.plans import Plan
from fedsim.gradients.samples import Samples
from fedsim.method import batching
from fedsim.method.batching import Work, first_batch, places
from fedsim.method.train import Train
from fedsim.settings.values import Constant
from fedsim.task.loss import MASK
from fedsim.task.task import Task, decoded


@dataclass(frozen=True)
class Batch:
    """Samples for the rows still at work: inputs [m, B, ...], targets [m, B, ...], weight [m, B] (0 is padding).

    `buffers` [m, b] are the models' running statistics, which gradients renew, and `mask` bool [m, C] the nodes' classes, or None.
    """

    plan: Plan
    inputs: Tensor
    targets: Tensor
    weight: Tensor
    job: Tensor  # keys of the jobs
    number: int  # of the step
    buffers: Tensor | None = None
    mask: Tensor | None = None

    def _samples(self, keep: bool) -> Samples:
        extra = {"key": self.key} if self.plan.task.keyed else {}
        if self.buffers is not None:
            extra[BUFFERS] = self.buffers if keep else self.buffers.clone()
        extra |= {} if self.mask is None else {MASK: self.mask}
        return Samples(self.inputs, self.targets, self.weight, extra)

    @property
    def key(self) -> Tensor:
        """int64 [m]: a key for each row of this step."""
        return fold(self.job, "step", self.number)

    def gradient(self, x: Tensor, keep: bool = True) -> Tensor:
        """Gradient of the strategy's loss at x [m, d], a row a job; [m, d]. Without `keep` running statistics stay as they are.

        Asked twice, a model with dropout leaves out the same units.
        """
        return self.plan.gradient(x, self._samples(keep))

    def descend(self, x: Tensor, lr: Step, keep: Step = 1.0, at: Tensor | None = None) -> None:
        """x <- keep x x - lr x gradient, in place; lr and keep may be [m, 1]. Up to rounding as with `gradient`, without a copy of it.

        The gradient is that at `at` [m, d] if it is given, and then leaves running statistics as they are.
        """
        self.plan.descend(x, lr, self._samples(keep=at is None), keep, at)

    def loss(self, x: Tensor) -> Tensor:
        """The strategy's loss at x [m, d], forward only; [m]."""
        return self.plan.loss(x, self._samples(keep=True))

    def input_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[m, B]: loss of each sample at x [m, d], 0 for padding; [m, B, ...]: the gradient of its own loss with respect to the sample.

        Of the task's loss in evaluation mode: without dropout, BatchNorm by its running statistics, which stay as they are.
        """
        return self.plan.input_gradient(x, self._samples(keep=True))

    def with_(self, **changes: Tensor) -> "Batch":
        """The same batch with other inputs, targets or weights."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ascent:
    """Gradients at a point a little uphill, where a flat valley is still flat (SAM: Foret et al. 2021, arXiv 2010.01412).

    e = radius x g1 / |g1| (or radius x g1 where not `normalised`), g2 = gradient at y + e, and (1 - mix) x g1 + mix x g2 is used. The
    same samples and dropout in both; running statistics come from the first alone. radius 0 is the gradient itself.
    """

    radius: float
    normalised: bool = True
    mix: float = 1.0

    def gradient(self, batch: Batch, y: Tensor) -> Tensor:
        """[m, d] at y [m, d]."""
        first = batch.gradient(y)
        if not self:
            return first
        second = batch.gradient(self._uphill(y, first, torch.empty_like(first)), keep=False)
        return second if self.mix == 1 else torch.lerp(first, second, self.mix)

    def descend(self, batch: Batch, y: Tensor, lr: Step, keep: Step) -> None:
        """y <- keep x y - lr x that, in place."""
        first = batch.gradient(y)
        at = self._uphill(y, first, first if self.mix == 1 else torch.empty_like(first))
        if self.mix < 1:
            shrink(y, keep)
            subtract(y, lr * (1 - self.mix), first)
        batch.descend(y, lr * self.mix, keep if self.mix == 1 else 1.0, at)

    def __bool__(self) -> bool:
        """Is anything else than the gradient itself used?"""
        return self.radius > 0 and self.mix > 0

    def _uphill(self, y: Tensor, first: Tensor, out: Tensor) -> Tensor:
        if not self.normalised:
            return torch.add(y, first, alpha=self.radius, out=out)
        length = torch.linalg.vector_norm(first, dim=-1, keepdim=True)
        return torch.addcmul(y, first, self.radius / length.clamp(min=1e-12), out=out)


class Local:
    """What jobs may see of their nodes; row i belongs to job i. Rows are sorted by falling number of steps.

    `ends` is when the run's time is up, by the host's monotonic clock: a job may be long, and steps raise Finished then.
    """

    ends = inf

    def __init__(
        self,
        plan: Plan,
        task: Task,
        train: Train,
        nodes: Tensor,
        key: Tensor,
        rounds: np.ndarray[Any, Any],
        buffers: Tensor | None = None,
        shared: Tensor | None = None,
    ) -> None:
        """`shared` int64 [m] are keys of the jobs' rounds that all nodes and their hearer know: what is drawn by them need not travel."""
        self.plan, self.task, self.train, self.nodes, self.key, self.buffers = plan, task, train, nodes, key, buffers
        self.rounds, self.shared = rounds, torch.zeros_like(key) if shared is None else shared
        self.counts = task.counts[nodes]
        self.mask = task.labels(nodes) > 0 if plan.masks else None
        self.size = train.batch_size(task)
        self.steps, self.per_epoch = train.plan(self.counts, self.size)
        self._work = Work(*(values.cpu().numpy() for values in (key, self.counts, self.steps, self.per_epoch)))
        self._velocity: Tensor | None = None
        self.live = 0  # jobs at the step that `batches` is at
        lr = train.lr
        self.lr: Step = lr.value if isinstance(lr, Constant) else torch.from_numpy(lr.at(rounds)).to(task.init)[:, None]

    @property
    def length(self) -> Tensor:
        """[m, 1]: what all steps together weigh gradients with: steps x lr; momentum b: the last but j has (1 - b^(j+1)) / (1 - b) x lr."""
        steps, momentum = self.steps.to(self.task.init)[:, None], self.train.momentum
        return self.lr * (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)

    def batches(self, *rows: Tensor) -> Iterator[Any]:
        """For each step its batch and the given row tensors, cut to the jobs still at work: views, to be written in place."""
        steps, live = self.steps.tolist(), len(self.steps)
        most = steps[0] if steps else 0
        jobs, width = max(1, len(steps)), self.task.targets.shape[1:].numel()  # a table has room for some numbers, and for some shuffles
        window = max(1, min((1 << 21) // (jobs * self.size * width), batching.MOST_SHUFFLES // jobs - 2))
        for first in range(0, most, window):
            last = min(first + window, most)
            samples, weight = self._table(first, last)
            targets = self.task.targets.index_select(0, samples.flatten()).view(*samples.shape, *self.task.targets.shape[1:])
            at = 0
            for step in range(first, last):
                while steps[live - 1] <= step:
                    live -= 1
                part = slice(at, at + live)
                at, self.live = at + live, live
                if monotonic() > self.ends:
                    raise Finished
                yield (self._batch(samples[part], targets[part], weight[part], step), *(tensor[:live] for tensor in rows))

    def step(self, y: Tensor, gradient: Tensor, anchor: Tensor | None = None, pull: Step = 0.0) -> None:
        """One SGD step in place on y [k, d], the first k rows: clip, weight decay, pull to the anchor as in `descend`, momentum, lr."""
        train, live = self.train, len(y)
        if train.clip is not None:
            gradient = gradient * (train.clip / norm(gradient).clamp(min=1e-30)).clamp(max=1)
        if train.weight_decay:
            gradient = gradient + train.weight_decay * y
        if anchor is not None and (isinstance(pull, Tensor) or pull):
            gradient = gradient + column(pull, live) * (y - anchor[:live])
        if train.momentum:
            if self._velocity is None:
                self._velocity = torch.zeros_like(y)
            gradient = self._velocity[:live].mul_(train.momentum).add_(gradient)
        subtract(y, self.lr if isinstance(self.lr, float) else self.lr[:live], gradient)

    def descend(
        self,
        start: Tensor,
        anchor: Tensor | None = None,
        pull: Step = 0.0,
        scale: float | Tensor = 1.0,
        drift: Tensor | None = None,
        ascent: Ascent | None = None,
    ) -> Tensor:
        """All steps of local SGD from start [m, d]; [m, d]. Each goes along scale x gradient + drift, held to the anchor by `pull`.

        `pull` is a number, or one a job, [m] or [m, 1]; `scale` a number or [m, d]; `drift` [m, d] is the same in all steps; `ascent` says
        at which point gradients are taken. The sum is what is clipped, before weight decay and pull.
        """
        x, train = start.clone(), self.train
        self._velocity = None
        if train.clip is None and not train.momentum and isinstance(scale, float):
            self._slide(x, anchor, pull, scale, drift, ascent)
            return x
        for batch, y in self.batches(x):
            slope = ascent.gradient(batch, y) if ascent else batch.gradient(y)
            if not (isinstance(scale, float) and scale == 1):
                slope = (scale if isinstance(scale, float) else scale[: len(y)]) * slope
            self.step(y, slope if drift is None else slope + drift[: len(y)], anchor, pull)
        return x

    def _slide(self, x: Tensor, anchor: Tensor | None, pull: Step, scale: float, drift: Tensor | None, ascent: Ascent | None) -> None:
        """`descend` where each step is x <- keep x x - lr x scale x gradient + what is the same in all steps, in place."""
        pull = 0.0 if anchor is None else column(pull, len(x))
        lr, keep = self.lr * scale, 1 - self.lr * (self.train.weight_decay + pull)
        same, along = drift, -self.lr  # what each step adds: along x same
        if anchor is not None and (isinstance(pull, Tensor) or pull):
            row = anchor if anchor.stride(0) else anchor[:1]  # where all jobs have the same
            same, along = row * pull if drift is None else torch.sub(row * pull, drift), self.lr
        for batch, y in self.batches(x):
            rate, kept = (one if isinstance(one, float) else one[: len(y)] for one in (lr, keep))
            if ascent:
                ascent.descend(batch, y, rate, kept)
            else:
                batch.descend(y, rate, kept)
            if same is not None:
                y.add_(same[: len(y)], alpha=along) if isinstance(along, float) else y.addcmul_(same[: len(y)], along[: len(y)])

    def drawn(self, job: Tensor, key: Tensor) -> Batch:
        """A batch for each row [k]: of the node of job [k], drawn by its own key, int64 [k], without a sample twice."""
        train, rounds = replace(self.train, epochs=None, steps=1), self.rounds[job.cpu().numpy()]
        buffers = None if self.buffers is None else self.buffers[job]
        one = Local(self.plan, self.task, train, self.nodes[job], key, rounds, buffers)
        place, valid = first_batch(one._work, self.size, train.batch != "all")
        samples = self.task.sample(one.nodes[:, None], self._to(place))
        return one.given(samples, self._weights(valid))

    def given(self, samples: Tensor, weight: Tensor, step: int = 0) -> Batch:
        """The samples with these numbers, int64 [m, B], under these weights [m, B], as the batch of a step; nodes' shifts count."""
        targets = self.task.targets[samples]
        return self._batch(samples, targets, weight, step)

    def _batch(self, samples: Tensor, targets: Tensor, weight: Tensor, step: int) -> Batch:
        inputs, live = decoded(self.task.inputs.index_select(0, samples.flatten())), len(samples)
        inputs = inputs.view(*samples.shape, *inputs.shape[1:])
        if shifts := self.task.shifts + self.task.poison:
            rounds = torch.from_numpy(self.rounds[:live]).to(samples.device)
            new = shifted(shifts, Gathered(inputs, targets, samples, self.nodes[:live], rounds))
            inputs, targets = new.inputs, new.targets
        if self.task.augment:  # keyed by job, step and sample: a sample is seen anew in each epoch
            inputs = augmented(self.task.augment, inputs, fold(self.key[:live, None], "augment", step, samples))
        buffers, mask = (None if rows is None else rows[:live] for rows in (self.buffers, self.mask))
        return Batch(self.plan, inputs, targets, weight, self.key[:live], step, buffers, mask)

    def _table(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Sample numbers and weights of steps first to last, [jobs at work x steps, B], step by step; no row for a job that is done."""
        job, place, valid = places(self._work, self.size, first, last, self.train.batch != "all")
        nodes = self.nodes[self._to(job)][:, None]
        return self.task.sample(nodes, self._to(place)), self._weights(valid)

    def _weights(self, valid: np.ndarray[Any, Any]) -> Tensor:
        """Of the samples that count, equal ones of sum 1 a batch; bool [R, B]."""
        return self._to(valid / valid.sum(1, keepdims=True)).to(self.task.init.dtype)

    def _to(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.nodes.device)
