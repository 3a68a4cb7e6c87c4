"""Whole local steps as one recording on a GPU: batch, gradients, ascent, corrections and update on static rows, replayed step by step."""

# m: jobs, L: rows of a shape, T: steps of a table, d: parameters, B: samples a batch

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.base.devices import sent
from fedsim.base.rows import Rows
from fedsim.gradients.graphs import CudaGraphs
from fedsim.gradients.plan import Plan
from fedsim.method.batching import Work, padded
from fedsim.method.moments import MOMENTS
from fedsim.method.steps import Batch, Given, Move
from fedsim.method.train import Train
from fedsim.task.task import Task, decoded

TABLE = 64  # steps whose batches lie in one table
TOGETHER = (16, 4, 1)  # steps of one replay, as many as all rows have still to do
WRITTEN = ("x", *MOMENTS, "buffers")


class Jobs(Protocol):
    """What `fedsim.method.local.Local` has."""

    plan: Plan
    task: Task
    train: Train
    nodes: Tensor
    key: Tensor
    mask: Tensor | None
    buffers: Tensor | None
    work: Work
    size: int
    live: int
    plain: bool

    def windows(self, limit: int = ...) -> Iterator[tuple[int, int]]: ...
    def in_time(self) -> None: ...


def recorded_steps(local: Jobs) -> "RecordedSteps | None":
    """The recordings of these jobs' plan; None where steps are not recorded: other plans, jobs of another kind, samples that shift."""
    plan, task = local.plan, local.task
    if (
        not isinstance(plan, CudaGraphs)
        or not local.plain
        or task.shifts
        or task.poison
        or task.augment
        or len(local.work.steps) > plan.chunk
    ):
        return None
    if plan.steps is None:
        plan.steps = RecordedSteps(plan)
    found: RecordedSteps = plan.steps
    return found


class RecordedSteps:
    """Recordings of one device, each of a step of one kind for rows of one shape; they read and write the `rows` and tables here.

    Keys, rates by job and the number of the step are rows and tables too, so that none of them is part of a recording.
    """

    def __init__(self, plan: CudaGraphs) -> None:
        self.plan, self.task = plan, plan.task
        self.rows: Rows = {}  # [chunk, ...], or [1, ...] for what all jobs share
        self.replays: dict[Any, Callable[[], None]] = {}
        like = self.task.init
        self.at, self.number = (torch.zeros(1, dtype=torch.int64, device=like.device) for _ in range(2))  # in the table, and of the job
        self.samples = self.weight = like[:0]  # tables [T, chunk, B]

    def walk(self, local: Jobs, move: Move, x: Tensor, given: Given) -> None:
        """All steps of local's jobs, each of which moves the rows of x [m, d] that are still at work; and what else steps write."""
        extra = {"key": local.key, "mask": local.mask, "buffers": local.buffers}
        mine = {"x": x, **given, **{name: rows for name, rows in extra.items() if rows is not None}}
        kind = (move, local.size, *((name, self._put(name, rows)) for name, rows in mine.items()))
        steps, live = local.work.steps, len(x)
        for first, last in local.windows(TABLE):
            self._table(local, first, last)
            step = first
            while step < last:
                local.in_time()
                local.live = live
                rest = min(int(steps[live - 1]), last) - step
                many = next(count for count in TOGETHER if count <= rest)
                self._replay((*kind, many, next(shape for shape in self.plan.shapes if shape >= live)))
                step += many
                still = int(np.searchsorted(-steps, -step, side="left"))
                for name in WRITTEN if still < live else ():
                    if name in mine:  # what is done is taken out; its row goes along with the others
                        mine[name][still:live].copy_(self.rows[name][still:live])
                live = still

    def _put(self, name: str, rows: Tensor) -> bool:
        """Rows of jobs, or one for all, to their place here; whether it is the one."""
        one = len(rows) == 1 and name == "same"
        shape = (1 if one else self.plan.chunk, *rows.shape[1:])
        place = self.rows.get(name)
        if place is None or place.shape != shape or place.dtype != rows.dtype:
            self.replays.clear()  # they have the old place
            place = self.rows[name] = rows.new_zeros(shape)
        place[: len(rows)].copy_(rows)
        return one

    def _table(self, local: Jobs, first: int, last: int) -> None:
        """Batches of steps first to last; rows that are done, or nobody's, have weights of 0."""
        chunk, like = self.plan.chunk, self.task.init
        place, weight = padded(local.work, local.size, first, last, local.train.batch != "all", chunk)
        if self.samples.shape[1:] != place.shape[1:]:
            self.replays.clear()
            self.samples = torch.zeros(TABLE, chunk, local.size, dtype=torch.int64, device=like.device)
            self.weight = like.new_zeros(TABLE, chunk, local.size)
        nodes = torch.cat([local.nodes, local.nodes[:1].expand(chunk - len(local.nodes))])
        self.samples[: len(place)].copy_(self.task.sample(nodes[:, None], sent(place, like.device)))
        self.weight[: len(place)].copy_(sent(torch.from_numpy(weight).to(like.dtype), like.device))
        self.at.zero_()
        if self.task.keyed:
            self.number.fill_(first)

    def _replay(self, kind: tuple[Any, ...]) -> None:
        if kind not in self.replays:
            self.replays[kind] = self._recorded(*kind)
        self.replays[kind]()

    def _recorded(self, move: Move, size: int, *kind: Any) -> Callable[[], None]:
        *names, many, shape = kind
        rows = {name: self.rows[name] if one else self.rows[name][:shape] for name, one in names}
        x, key = rows.pop("x"), rows.pop("key")
        buffers, mask = rows.pop("buffers", None), rows.pop("mask", None)
        targets = self.task.targets

        def step() -> None:
            samples, weight = (table.index_select(0, self.at)[0, :shape] for table in (self.samples, self.weight))
            inputs = decoded(self.task.inputs.index_select(0, samples.flatten()))
            inputs = inputs.view(*samples.shape, *inputs.shape[1:])
            aims = targets.index_select(0, samples.flatten()).view(*samples.shape, *targets.shape[1:])
            move(Batch(self.plan.bare, inputs, aims, weight, key, self.number, buffers, mask), x, rows)
            self.at.add_(1)
            if self.task.keyed:  # nobody else asks
                self.number.add_(1)

        def work() -> None:
            for _ in range(many):
                step()

        written = [self.at, self.number, *(self.rows[name] for name in WRITTEN if name in self.rows)]
        before = [one.clone() for one in written]

        def restore() -> None:
            for one, was in zip(written, before, strict=True):
                one.copy_(was)

        return self.plan.recorder.record(work, step, restore)[0]
