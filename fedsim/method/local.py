"""Local training as strategies see it: jobs as rows, steps as prefixes, batches as samples with weights."""

# m: jobs (one row each, sorted by falling number of steps), d: parameters, B: samples a batch

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from math import inf
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import Finished, SettingError
from fedsim.base.keys import fold
from fedsim.base.rows import Rows, Step, column
from fedsim.data.augment import augmented
from fedsim.data.shift import Gathered, shifted
from fedsim.gradients.plan import Plan
from fedsim.method import batching
from fedsim.method.batching import Work, first_batch, places
from fedsim.method.optimizers import Sgd
from fedsim.method.recorded import recorded_steps
from fedsim.method.steps import Ascent as Ascent
from fedsim.method.steps import Batch as Batch
from fedsim.method.steps import Careful, Move, Slide
from fedsim.method.train import Train
from fedsim.task.task import Task, picked


class Local:
    """What jobs may see of their nodes; row i belongs to job i. Rows are sorted by falling number of steps.

    `ends` is when the run's time is up, by the host's monotonic clock: a job may be long, and steps raise Finished then.
    """

    ends = inf
    plain = True  # batches and gradients are those of the plan, nothing between

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
        host: tuple[Ints, Ints] | None = None,
    ) -> None:
        """`shared` int64 [m] are keys of the jobs' rounds that all nodes and their hearer know: what is drawn by them need not travel.

        `host` has nodes and keys [m] as arrays, where they are known: a GPU is not asked for them then.
        """
        self.plan, self.task, self.train, self.nodes, self.key, self.buffers = plan, task, train, nodes, key, buffers
        self.rounds, self.shared = rounds, torch.zeros_like(key) if shared is None else shared
        who, keys = host or (nodes.cpu().numpy(), key.cpu().numpy())
        self.size, counts = train.batch_size(task), task.sizes[who]
        steps, per_epoch = train.plan(torch.from_numpy(counts), self.size, who)
        self.work = Work(keys, counts, steps.numpy(), per_epoch.numpy())
        self.mask = task.labels(nodes, int(counts.sum())) > 0 if plan.masks else None
        self.moments: Rows = {}  # of the optimizer; where these are kept what the nodes remembered, and then what they will
        self._descents = 0
        self.live = 0  # jobs at the step that `batches` is at
        lr = train.rates(who, rounds)
        self.lr: Step = lr if isinstance(lr, float) else self._to(lr[:, None], task.init.dtype)

    @cached_property
    def counts(self) -> Tensor:
        """int64 [m]: samples of each job's node."""
        return self._to(self.work.samples)

    @cached_property
    def steps(self) -> Tensor:
        """int64 [m]: steps of each job, falling."""
        return self._to(self.work.steps)

    @cached_property
    def per_epoch(self) -> Tensor:
        """int64 [m]: steps an epoch."""
        return self._to(self.work.per_epoch)

    @property
    def length(self) -> Tensor:
        """[m, 1]: what all steps together weigh gradients with: steps x lr; momentum b: the last but j has (1 - b^(j+1)) / (1 - b) x lr.

        Raises SettingError under an optimizer that does not weigh them so.
        """
        sgd = isinstance(self.train.optimizer, Sgd)
        if not sgd or (self.train.keeps and self.train.momentum):
            key, what = ("state", self.train.state) if sgd else ("optimizer", self.train.optimizer.name)
            raise SettingError(f"train.{key}", f"`{what}`: the method reads gradients from how far a job moved, which sgd from rest allows")
        steps, momentum = self.steps.to(self.task.init)[:, None], self.train.momentum
        return self.lr * (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)

    def batches(self, *rows: Tensor) -> Iterator[Any]:
        """For each step its batch and the given row tensors, cut to the jobs still at work: views, to be written in place."""
        steps, live = self.work.steps.tolist(), len(self.work.steps)
        for first, last in self.windows():
            job, samples, weight = self._table(first, last)
            targets = self.task.targets.index_select(0, samples.flatten()).view(*samples.shape, *self.task.targets.shape[1:])
            targets = self._labels(job, samples, targets)
            at = 0
            for step in range(first, last):
                while steps[live - 1] <= step:
                    live -= 1
                part = slice(at, at + live)
                at, self.live = at + live, live
                self.in_time()
                yield (self._batch(samples[part], targets[part], weight[part], step), *(tensor[:live] for tensor in rows))

    def windows(self, limit: int = 1 << 21) -> Iterator[tuple[int, int]]:
        """First and last of the steps for which a table of batches is made at once: `limit` at most, and it has room for some numbers, and
        for some shuffles."""
        steps, jobs = int(self.work.steps.max(initial=0)), max(1, len(self.work.steps))
        width = self.task.targets.shape[1:].numel()
        window = max(1, min(limit, (1 << 21) // (jobs * self.size * width), batching.MOST_SHUFFLES // jobs - 2))
        for first in range(0, steps, window):
            yield first, min(first + window, steps)

    def in_time(self) -> None:
        """Raises Finished where the run's time is up."""
        if monotonic() > self.ends:
            raise Finished

    def step(self, y: Tensor, gradient: Tensor, anchor: Tensor | None = None, pull: Step = 0.0) -> None:
        """One step in place on y [k, d], the first k rows: clip, weight decay, pull to the anchor as in `descend`, then the optimizer's."""
        given = self._given(y, lr=self.lr, pull=column(pull, len(y)), anchor=anchor)
        Careful.of(self.train, self.task.layout, self.lr, pull).step(y, gradient, {name: rows[: len(y)] for name, rows in given.items()})

    def _given(self, x: Tensor, **values: Tensor | float | None) -> dict[str, Tensor]:
        """Those that are tensors, and the optimizer's moments, which begin at 0."""
        self.moments = self.moments or self.train.moments(x, self.task.layout)
        return {name: value for name, value in values.items() if isinstance(value, Tensor)} | self.moments

    def _begin(self) -> None:
        """Moments of a descent: from zero, or as the nodes remember them, who have those of one descent a job."""
        self._descents += 1
        if not self.train.keeps:
            self.moments = {}
        elif self._descents > 1:
            what = f"the method trains several models a job, and `{self.train.state}` has the moments of one; use `reset`"
            raise SettingError("train.state", what)

    def descend(
        self,
        start: Tensor,
        anchor: Tensor | None = None,
        pull: Step = 0.0,
        scale: float | Tensor = 1.0,
        drift: Tensor | None = None,
        ascent: Ascent | None = None,
        dual: Tensor | None = None,
    ) -> Tensor:
        """All steps of local training from start [m, d]; [m, d]. Each goes along scale x gradient + drift, held to the anchor by `pull`.

        `pull` is a number, or one a job, [m] or [m, 1]; `scale` a number or [m, d]; `drift` [m, d] is the same in all steps; `dual` [m, d]
        joins it, times `pull`; `ascent` says at which point gradients are taken. The sum is what is clipped, before weight decay and pull.
        """
        x, train = start.clone(), self.train
        self._begin()
        if train.clip is None and not train.momentum and isinstance(scale, float) and isinstance(train.optimizer, Sgd):
            self._walk(*self._slide(x, anchor, pull, scale, drift, ascent, dual))
        else:
            pull = column(pull, len(x))
            if dual is not None:
                drift = pull * dual if drift is None else drift + pull * dual
            given = self._given(x, scale=scale, lr=self.lr, pull=pull, anchor=anchor, drift=drift)
            self._walk(Careful.of(train, self.task.layout, self.lr, pull, scale, ascent), x, given)
        return x

    def _slide(
        self,
        x: Tensor,
        anchor: Tensor | None,
        pull: Step,
        scale: float,
        drift: Tensor | None,
        ascent: Ascent | None,
        dual: Tensor | None,
    ) -> tuple[Slide, Tensor, dict[str, Tensor]]:
        """`descend` where each step is x <- keep x x - lr x scale x gradient + what is the same in all steps."""
        pull = 0.0 if anchor is None else column(pull, len(x))
        lr, keep = self.lr * scale, 1 - self.lr * (self.train.weight_decay + pull)
        same, along = drift, -self.lr  # what each step adds: along x same
        if anchor is not None and (isinstance(pull, Tensor) or pull):
            row = anchor if anchor.stride(0) else anchor[:1]  # where all jobs have the same
            row = row if dual is None else row - dual
            same, along = (row, self.lr * pull) if drift is None else (torch.sub(row * pull, drift), self.lr)
        given = {name: one for name, one in {"lr": lr, "keep": keep, "along": along, "same": same}.items() if isinstance(one, Tensor)}
        rate, kept, way = (one if isinstance(one, float) else None for one in (lr, keep, along))
        return Slide(ascent, rate, kept, way), x, given

    def _walk(self, move: Move, x: Tensor, given: dict[str, Tensor]) -> None:
        """All steps, each of which moves the rows of x [m, d] that are still at work, in place."""
        if (recorded := recorded_steps(self)) is not None:
            recorded.walk(self, move, x, given)
            return
        for batch, y in self.batches(x):
            move(batch, y, {name: rows[: len(y)] for name, rows in given.items()})

    def drawn(self, job: Tensor, key: Tensor) -> Batch:
        """A batch for each row [k]: of the node of job [k], drawn by its own key, int64 [k], without a sample twice."""
        train, rounds = replace(self.train, epochs=None, steps=1), self.rounds[job.cpu().numpy()]
        buffers = None if self.buffers is None else self.buffers[job]
        one = Local(self.plan, self.task, train, self.nodes[job], key, rounds, buffers)
        place, valid = first_batch(one.work, self.size, train.batch != "all")
        samples = self.task.sample(one.nodes[:, None], self._to(place))
        return one.given(samples, self._weights(valid))

    def given(self, samples: Tensor, weight: Tensor, step: int = 0) -> Batch:
        """The samples with these numbers, int64 [m, B], under these weights [m, B], as the batch of a step; nodes' shifts count."""
        targets = self._labels(slice(0, len(samples)), samples, self.task.targets[samples])
        return self._batch(samples, targets, weight, step)

    def _labels(self, job: Tensor | slice, samples: Tensor, targets: Tensor) -> Tensor:
        """What these jobs' nodes call their samples, where no shift changes more than that; many steps at once."""
        if not self.task.relabels:
            return targets
        given = Gathered(samples, targets, samples, self.nodes[job], self._rounds[job])  # no shift looks at the first
        return shifted(self.task.shifts + self.task.poison, given).targets

    def _batch(self, samples: Tensor, targets: Tensor, weight: Tensor, step: int) -> Batch:
        inputs, live = picked(self.task.inputs, samples), len(samples)
        if (shifts := self.task.shifts + self.task.poison) and not self.task.relabels:
            new = shifted(shifts, Gathered(inputs, targets, samples, self.nodes[:live], self._rounds[:live]))
            inputs, targets = new.inputs, new.targets
        if self.task.augment:  # keyed by job, step and sample: a sample is seen anew in each epoch
            inputs = augmented(self.task.augment, inputs, fold(self.key[:live, None], "augment", step, samples))
        buffers, mask = (None if rows is None else rows[:live] for rows in (self.buffers, self.mask))
        return Batch(self.plan, inputs, targets, weight, self.key[:live], step, buffers, mask, samples)

    def _table(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Jobs, sample numbers and weights of steps first to last, step by step: [R] and [R, B], a row for each job at work."""
        job, place, valid = places(self.work, self.size, first, last, self.train.batch != "all")
        at = self._to(job)
        return at, self.task.sample(self.nodes[at][:, None], self._to(place)), self._weights(valid)

    def _weights(self, valid: np.ndarray[Any, Any]) -> Tensor:
        """Of the samples that count, equal ones of sum 1 a batch; bool [R, B]."""
        return self._to(valid / valid.sum(1, keepdims=True), self.task.init.dtype)

    @cached_property
    def _rounds(self) -> Tensor:
        return self._to(self.rounds)

    def _to(self, array: np.ndarray[Any, Any], dtype: torch.dtype | None = None) -> Tensor:
        """On the device, converted (if at all) by the host."""
        return sent(torch.from_numpy(array).to(dtype), self.nodes.device)
