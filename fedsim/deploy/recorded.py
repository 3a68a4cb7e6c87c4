"""The recorded field: jobs come back as a record of a deployed run says, and are computed here."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.clock import Arrivals, Ints
from fedsim.base.errors import FedsimError
from fedsim.base.rows import Rows
from fedsim.deploy.decisions import Answer, Decision, Decisions, End
from fedsim.deploy.questions import judge, table
from fedsim.deploy.reality import Reality
from fedsim.engines.local import Worker
from fedsim.federation.field import Size, There
from fedsim.federation.ledger import Ledger
from fedsim.federation.work import Work
from fedsim.metrics.told import Question
from fedsim.schedule.news import News
from fedsim.settings.values import Floats


class Recorded(Work):
    """A decision belongs to the call that was answered by it, which is told by how many events the run had by then.

    `at`: decisions taken so far. `pending`: ends of jobs that are known and have not landed, in the order of (time, node).
    """

    keeps: ClassVar[tuple[str, ...]] = (*Work.keeps, "place", "ends", "there", "started")

    def __init__(self, worker: Worker, nature: Reality, ledger: Ledger, peers: bool) -> None:
        super().__init__(worker)
        self.nature, self.ledger, self.peers = nature, ledger, peers
        self.decisions, self.at = Decisions(), 0
        self.pending = list[End]()
        self.started = np.zeros(worker.task.nodes, dtype=np.int64)
        nature.presence.await_somebody = self.clock

    def remembered(self, nodes: Ints) -> Rows | None:
        """It lies with the workers."""
        return None

    @property
    def place(self) -> int:
        """`at`, as a checkpoint has it: all of them are on the disk."""
        self.decisions.sync()
        return self.at

    @place.setter
    def place(self, at: int) -> None:
        self.at = at

    @property
    def ends(self) -> list[list[int | bool | str]]:
        """`pending`, as a checkpoint has it."""
        return [list(end) for end in self.pending]

    @ends.setter
    def ends(self, ends: list[list[int | bool | str]]) -> None:
        self.pending = [End(*end) for end in ends]  # type: ignore[arg-type]

    @property
    def there(self) -> Ints:
        """Nodes that are there, as a checkpoint has it."""
        return np.flatnonzero(self.nature.presence.there)

    @there.setter
    def there(self, nodes: Ints) -> None:
        self.nature.presence.there[:] = False
        self.nature.presence.there[nodes] = True

    # Time

    def clock(self, now: int) -> int:
        """What time it is, `now` or later."""
        decision = self._next()
        if decision is None or decision.time is None or decision.at != self.ledger.events:
            raise self._misfit()
        self._take(decision)
        return decision.time

    def _misfit(self) -> FedsimError:
        return FedsimError(f"the record of decisions does not fit: after {self.ledger.events:,} events it says something else")

    def peek(self, count: int, until: int) -> Arrivals:
        """The next ends of jobs up to and including `until`, at most `count`."""
        while (decision := self._next()) and decision.time is None and not decision.asked and decision.at == self.ledger.events:
            self._take(decision)
        return self._window(count, until)

    def _next(self) -> Decision | None:
        return self.decisions.known[self.at] if self.at < len(self.decisions.known) else None

    def _take(self, decision: Decision) -> None:
        """It is acted upon from now on."""
        self.at += 1
        self.nature.presence.tell(decision.joined, decision.left)
        self.pending += decision.ends
        if (now := decision.time) is not None:  # what has come before and is not taken yet will be taken after it
            self.pending = [end.until(now) for end in self.pending]

    def _window(self, count: int, until: int) -> Arrivals:
        ends = self.pending[: min(count, bisect_right(self.pending, until, key=lambda end: end.time))]
        time, node, job = (np.array([end[at] for end in ends], dtype=np.int64) for at in range(3))
        return Arrivals(time, node, job)

    def durations(self, down: Size) -> Ints:
        """Nobody knows; that it takes time is known. One tick each."""
        return np.ones(len(self.job), dtype=np.int64)

    # Evaluations

    def judged(self, question: Question) -> dict[str, Tensor]:
        """What nodes say of themselves; before the first job somebody has to be there."""
        if self.serial == 0 and not self.nature.presence.there.any():
            self.nature.presence.await_somebody(0)
        answers = [self._said(question, answer) for answer in self._answers(question)]
        return table(question.kinds, answers, len(self.job), self.worker.device)

    def _answers(self, question: Question) -> Sequence[Answer]:
        decision = self._next()
        if decision is None:  # the run was broken off before it asked
            return [Answer([*range(len(self.job))], {})]
        if [*decision.asked] != [*question.kinds] or decision.at != self.ledger.events:
            raise self._misfit()
        self._take(decision)
        return decision.answers

    def _said(self, question: Question, answer: Answer) -> Answer:
        """The same nodes say it again."""
        found = judge(self, question, answer.nodes)
        return Answer(answer.nodes, {kind: rows.tolist() for kind, rows in found.items()})

    # Jobs

    def start(self, nodes: Ints, at: Ints, heard: Rows, row: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        """Nodes [k] without a job begin one at times [k], having heard row `row` [k] of what `heard` has, in `down` [k] bytes."""
        jobs, self.started[nodes] = self.begin(nodes, heard, row, version, round, chance), at
        columns = {"node": nodes, "job": jobs, "version": version, "bytes_down": down, "steps": self.steps[nodes]}
        self.ledger.add("dispatch", len(nodes), time=at, **columns)

    def since(self, number: int) -> int:
        """Jobs in flight from this number on."""
        return int((self.job >= number).sum())

    def land(self, batch: Arrivals, ahead: bool) -> News:
        """The next jobs come back: whole ones become news."""
        ends, self.pending = self.pending[: len(batch.time)], self.pending[len(batch.time) :]
        whole, lost = ([end for end in ends if end.whole == kind] for kind in (True, False))
        if lost:
            self._drop(np.array([end.node for end in lost]), np.array([end.time for end in lost]))
        self.bring(whole)
        nodes, time, down, work, up = (np.array([end[at] for end in whole], dtype=np.int64) for at in (1, 0, 4, 5, 6))
        size = self.upward(nodes)
        news = self.home(nodes)
        columns = {"node": nodes, "job": news.job, "version": news.version, "bytes_up": size, "down": down, "work": work, "up": up}
        self.ledger.add("arrival", len(nodes), time=time, **columns)
        return news

    def bring(self, ends: Sequence[End]) -> None:
        """Replies of jobs that have come back: computed with those with which they were computed then."""
        known = {end.job: end for end in (*ends, *self.pending) if end.whole}
        for batch in dict.fromkeys(end.batch for end in ends if self.reply[end.node] < 0):
            together = [end.node for end in known.values() if end.batch == batch and self.job[end.node] == end.job]
            self.compute(np.array(together))

    def refill(self, batch: Arrivals, need: int, there: There | None, key: Tensor, down: Size) -> tuple[Arrivals, Ints]:
        """The next arrivals, and who starts in the place of each but the one that makes `need` whole."""
        whole = np.cumsum([end.whole for end in self.pending[: len(batch.time)]])
        last = int(np.searchsorted(whole, need))
        batch = batch.take(slice(0, last + 1))
        nodes = self.starters(batch.take(slice(0, last)), there, key)
        cut = len(nodes) + 1 if len(nodes) < last else len(batch.time)
        return batch.take(slice(0, cut)), nodes[:cut]

    def cancel(self, now: int) -> None:
        """Forgets all jobs."""
        nodes = np.flatnonzero(self.job >= 0)
        self.pending = []
        self._drop(nodes, np.full(len(nodes), now))

    def _drop(self, nodes: Ints, time: Ints) -> None:
        columns = {"node": nodes, "job": self.job[nodes], "version": self.version[nodes]}
        self.ledger.add("drop", len(nodes), time=time, **columns)
        self.ledger.dropped += len(nodes)
        self.forget(nodes)
