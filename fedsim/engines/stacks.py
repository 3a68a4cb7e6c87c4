"""Workers for nodes with different models: one for each architecture, whose rows have one length and are trained together."""

# m: jobs, h: architectures

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedsim.base.devices import listed
from fedsim.base.errors import SettingError, placed
from fedsim.base.rows import Rows
from fedsim.engines.jobs import Jobs, Replies, part, put
from fedsim.engines.local import Engine, LocalEngine, Worker
from fedsim.method.strategy import Strategy
from fedsim.task.architectures import cut, filled
from fedsim.task.task import Task


def started(engine: Engine, task: Task, strategy: Strategy, seed: int) -> Worker:
    """Ready to compute, also where nodes have different models. Raises SettingError where the engine, or the machine, can't do it."""
    if not task.architectures:
        return engine.start(task, strategy, seed)
    if not isinstance(engine, LocalEngine):
        what = "computes nodes of one model, and groups have models of their own; `local` does"
        raise SettingError("engine.name", f"`{engine.name}` {what}")
    with placed("engine.device"):
        task = task.move(listed(engine.device)[0])
    return Stacks(task, [engine.start(one, strategy, seed) for one in task.stacks], seed)


class Stacks(Worker):
    """Computes jobs as a worker does. What it is given and gives back has rows of models as long as those of the largest.

    Its `task` is the whole one; what is said of it (plan, chunk) is what its first worker says.
    """

    def __init__(self, task: Task, each: list[Worker], seed: int) -> None:
        """`each`: a worker for each of the task's architectures, in their order."""
        first = each[0]
        plans = dict.fromkeys(f"{one.plan.name} ({one.about['plan_reason']})" for one in each)
        about: dict[str, Any] = first.about | {"plan_reason": f"{len(each)} architectures: {', '.join(plans)}", "processes": 1}
        super().__init__(task, first.strategy, first.plan, seed, about)
        self.each = each
        self.about["processes"] = first.about["processes"]
        self.device = first.device

    def compute(self, jobs: Jobs) -> Replies:
        kinds, whole = self.task.home[jobs.node], Replies({}, {}, {})
        for kind, one in enumerate(self.each):
            if len(at := np.flatnonzero(kinds == kind)):
                where = torch.from_numpy(at)
                found = self._by(one, part(jobs, where, len(at) == len(kinds)))
                if len(at) == len(kinds):
                    return found
                for rows, done in zip(whole, found, strict=True):
                    put(rows, done, where, len(kinds), self.memory)
        return whole

    @contextmanager
    def brief(self) -> Iterator[None]:
        with ExitStack() as all_of_them:
            for one in self.each:
                all_of_them.enter_context(one.brief())
            yield

    def close(self) -> None:
        for one in self.each:
            one.close()

    def _by(self, one: Worker, jobs: Jobs) -> Replies:
        """What the worker of an architecture makes of its jobs [m]."""
        width, size = self.task.width, one.task.layout.size

        def mine(rows: Rows) -> Rows:
            return cut(rows, width, size)

        one.privacy, one.carry, one.ends, before = self.privacy, self.carry, self.ends, one.steps_done
        link = None if jobs.link is None else mine(jobs.link)
        found = one.compute(replace(jobs, received=mine(jobs.received), memory=mine(jobs.memory), link=link))
        self.steps_done += one.steps_done - before
        return Replies(*(filled(rows, size, width) for rows in found))
