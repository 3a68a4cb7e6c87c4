"""A worker's part of evaluations: its nodes' models on its nodes' test samples, and what it says of them."""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import torch

from fedsim.deploy.packing import numbers
from fedsim.deploy.questions import asked, judge, said
from fedsim.federation.work import Work
from fedsim.metrics.told import Question
from fedsim.transport.messages_pb2 import Order, Reply

TOGETHER = 1000  # nodes of an answer


class Open(NamedTuple):
    """A question about nodes, and the jobs that ask it, in the order of the nodes."""

    question: Question
    nodes: Sequence[int]
    jobs: Sequence[int]
    took: float
    came: float


class Answering:
    """Questions that are not answered yet; `keep` is told which jobs' memories hold."""

    def __init__(self, work: Work, keep: Callable[[Sequence[int]], None]) -> None:
        self.work, self.keep, self.open = work, keep, list[Open]()

    def take(self, order: Order, files: Mapping[bytes, Path]) -> None:
        """A question about nodes, but for those that are done with."""
        done, known = {*order.done}, {job for one in self.open for job in one.jobs}
        mine = sorted((job.node, job.id) for job in order.jobs if job.id not in done and job.id not in known)
        if not mine:
            return
        parts = {part.name: numbers(files[part.object.hash], part.dtype, part.shape) for part in order.parts}
        at = torch.zeros(self.work.worker.task.nodes, dtype=torch.int64)
        at[[job.node for job in order.jobs]] = torch.arange(len(order.jobs))
        question, kept = asked(order, parts, at, self.work.worker.device)
        self.keep(kept)
        for first in range(0, len(mine), TOGETHER):
            nodes, jobs = zip(*mine[first : first + TOGETHER], strict=True)
            self.open.append(Open(question, nodes, jobs, order.took, monotonic()))

    def cancel(self, jobs: Set[int]) -> None:
        """Nobody waits for these any more."""
        self.open = [one for one in self.open if jobs.isdisjoint(one.jobs)]

    def answer(self) -> Reply:
        """The next answer. Raises what a model's or strategy's code does, with `jobs` of whom."""
        one, began = self.open.pop(0), monotonic()
        try:
            found = judge(self.work, one.question, one.nodes)
        except Exception as error:
            error.jobs = one.jobs  # type: ignore[attr-defined]
            raise
        work, waited = monotonic() - began, began - one.came
        return Reply(jobs=one.jobs, head=said(one.nodes, found), down=one.took, work=work, waited=waited)
