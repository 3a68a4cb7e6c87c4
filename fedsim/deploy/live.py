"""The workers of a remote field: who works for a node, and what they are asked at evaluations."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from time import monotonic
from typing import TypeVar

import numpy as np
import torch

from fedsim.base.clock import FOREVER
from fedsim.base.errors import Finished
from fedsim.deploy.decisions import Answer, Decision, End
from fedsim.deploy.network import Network
from fedsim.deploy.orders import Orders
from fedsim.deploy.questions import FIRST, head_of, parts_of, understood
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.engines.local import Worker
from fedsim.federation.ledger import Ledger
from fedsim.metrics.told import Question
from fedsim.transport.messages_pb2 import Job, Reply
from fedsim.transport.nodes import Nodes
from fedsim.transport.wire import EVALUATE

T = TypeVar("T")


class Live(Recorded):
    """Evaluations whose answers are not in the record yet are asked of whoever is there; who is lost meanwhile has said nothing."""

    hub: Network | None
    orders: Orders

    def __init__(self, worker: Worker, nature: Reality, ledger: Ledger, peers: bool) -> None:
        super().__init__(worker, nature, ledger, peers)
        self.hub = None
        self.say: Callable[[str], None] = lambda text: None
        self.host: dict[int, bytes] = {}  # who works for a node
        self.landed = np.full(worker.task.nodes, -1, dtype=np.int64)  # each node's last job whose reply was taken
        self.patience: int | None = None  # ticks that a job may take
        self.asked: dict[int, tuple[bytes, int]] = {}  # questions without an answer: worker and node
        self.kinds, self.findings = list[str](), list[Answer]()

    @abstractmethod
    def _look(self, until: int, enough: Callable[[list[int], list[End]], bool]) -> tuple[list[int], list[int], list[End]]:
        """Who has come, who is gone and which jobs have ended, once that is enough or it is so late (ticks)."""

    @abstractmethod
    def _decide(self, decision: Decision) -> None:
        """It is in the record, and acted upon."""

    @abstractmethod
    def _settle_what_is_safe(self, wait: bool) -> None:
        """Workers hear what became of replies."""

    def farewell(self) -> None:
        """The run is over; without a server workers have something left to do."""

    @property
    def without(self) -> Collection[int]:
        """Nodes that can't come back."""
        return ()

    def _by_host(self, each: Iterable[tuple[int, T]]) -> dict[bytes, list[T]]:
        """What is of nodes that somebody hosts, by who does."""
        hosts: dict[bytes, list[T]] = {}
        for node, one in each:
            if node in self.host:
                hosts.setdefault(self.host[node], []).append(one)
        return hosts

    def _answers(self, question: Question) -> Sequence[Answer]:
        if self._next() is not None:
            return super()._answers(question)
        self.kinds, self.findings = [*question.kinds], []
        self._ask(question)
        late = None if self.patience is None else monotonic() + self.patience / self.nature.per_second
        try:
            found = self._look(FOREVER, lambda joined, ends: not self.asked or (late is not None and monotonic() > late))
        except Finished:  # the host's time is up
            found = [], [], []
        if left := {**self.asked}:
            self._unasked({worker for worker, _ in left.values()})
            self._over(left)
        self._decide(Decision(self.ledger.events, None, *found, asked=self.kinds, answers=self.findings))
        answered, there = sum(len(one.nodes) for one in self.findings), len(self.job)
        if answered < there:
            self.say(f"evaluation in round {question.round}: {answered} of {there} nodes have answered")
        return self.findings

    def _said(self, question: Question, answer: Answer) -> Answer:
        """As it was; what it takes to say it again is not here."""
        return answer

    def _ask(self, question: Question) -> None:
        assert self.hub is not None
        self._settle_what_is_safe(wait=True)
        self.decisions.sync()
        device = self.worker.device
        question = replace(question, shared=(question.shared[0].clone(), question.shared[1].clone()))
        everybody = torch.tensor(sorted(self.host), dtype=torch.int64, device=device)
        if not len(everybody):
            return
        parts = parts_of(question, everybody)
        place = {node: at for at, node in enumerate(everybody.tolist())}
        first = FIRST + self.at * len(self.job)
        for worker, mine in self._by_host((node, node) for node in place).items():
            jobs = [Job(id=first + node, node=node, round=question.round) for node in mine]
            self.asked |= {job.id: (worker, job.node) for job in jobs}
            kept = [job for job in self.landed[np.array(mine)].tolist() if job >= 0]
            at = torch.tensor([place[node] for node in mine], device=device)
            heard = {name: rows[at] if rows.stride(0) else rows[: len(mine)] for name, rows in parts.items()}
            self.hub.order(worker, self.orders.order(jobs, heard, EVALUATE, head_of(question, kept)))

    def _heard(self, worker: bytes, reply: Reply) -> None:
        """An answer has come."""
        assert self.hub is not None
        mine = {job: self.asked[job][1] for job in reply.jobs if job in self.asked and self.asked[job][0] == worker}
        self.hub.settle(worker, [*reply.jobs], [])
        if not mine:
            return
        answer = understood(reply, self.kinds, mine.values())
        if isinstance(answer, str):
            self.say(f"{Nodes.of(mine.values()).named}: {answer}")
        else:
            self.findings.append(answer)
        self._over(mine)

    def _unasked(self, workers: Iterable[bytes]) -> None:
        """Nobody waits for what these were asked."""
        for worker in workers:
            jobs = [job for job, (who, _) in self.asked.items() if who == worker]
            if jobs and self.hub is not None:
                self.hub.cancel(worker, jobs)
            self._over(jobs)

    def _over(self, jobs: Iterable[int]) -> None:
        for job in [*jobs]:
            self.asked.pop(job, None)
            self.orders.done([job])
