"""The part of a federation that lives by the clock: it waits for arrivals, and evaluates on the way."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import FOREVER, Arrivals, Ints
from fedsim.base.errors import Finished, RunError
from fedsim.federation.field import Field, Size, There
from fedsim.federation.ledger import Ledger
from fedsim.federation.watch import Watch
from fedsim.schedule.admission import Admission
from fedsim.schedule.news import NO_NEWS, News, joined
from fedsim.settings.values import Floats
from fedsim.world.nature import Nature


class Clocked(ABC):
    """The clock, who is there, and what has arrived and is not merged yet (`waiting`)."""

    def __init__(self, field: Field, nature: Nature, ledger: Ledger, lots: Tensor) -> None:
        """`lots`: key of who starts in the place of who returns."""
        self.flight, self.nature, self.ledger, self.lots = field, nature, ledger, lots
        self.watch: Watch = Watch()
        self.now = self.version = 0
        self.waiting = NO_NEWS
        self.down_bytes: Size = 0  # of what a node hears to work

    @property
    @abstractmethod
    def round(self) -> int:
        """Rounds done."""

    @abstractmethod
    def send(self, nodes: Ints, chance: Floats | None = None, at: Ints | None = None) -> None:
        """Nodes without a job start work, now or at given times."""

    @abstractmethod
    def ended(self, jobs: int, news: News) -> None:
        """So many jobs have come to their end; the whole replies among them are news."""

    @property
    def in_flight(self) -> int:
        """Jobs that have not come back."""
        return self.flight.count

    @property
    def sent(self) -> int:
        """Jobs begun so far; the number of the next one."""
        return self.flight.serial

    def present(self) -> NDArray[np.bool_]:
        """bool [nodes]: who is there."""
        return self.nature.present(self.version, self.now)

    def running(self) -> bool:
        """Asked at the top of a schedule's loop, where nothing is half done. With all away, the clock moves on until somebody comes."""
        if not self.watch.running(self):
            return False
        while not self.in_flight and not self._overdue() and (calendar := self.nature.calendar) is not None and not self.present().any():
            if (time := calendar.comes(self.now)) >= FOREVER and self.watch.end >= FOREVER:
                raise RunError(f"round {self.round + 1}: nobody is there any more, and nobody comes again; see `world.availability`")
            self.wait(time)
        return True

    def room(self, admission: Admission) -> int:
        """How many jobs may begin now."""
        return admission.room(len(self.waiting.node), self.in_flight)

    def receive(
        self,
        count: int | None = None,
        until: int | None = None,
        *,
        since: int = 0,
        ahead: bool = True,
        refill: bool = False,
        admission: Admission | None = None,
    ) -> News:
        """As in `Verbs`."""
        limit, shared = self.watch.end if until is None else min(until, self.watch.end), self.nature.shared
        while not self._overdue() and (need := self._wanted(count, since, admission)) > 0:
            # on a shared link, who starts in a place changes what comes next
            batch = self.flight.peek(1 if refill and (shared or admission) else need, min(limit, self.watch.due))
            if len(batch.time):
                self._land(batch, count if refill and not admission else None, ahead)
                if refill and admission:
                    self._replace(batch, admission)
            elif self.watch.due < limit:
                self._evaluate()
            else:
                break
        if until is not None and (count is None or self._have(since) < count):
            self.wait(until)
        elif until is None and need > 0:
            self.wait(self.watch.end + 1)
        news, self.waiting = self.waiting, NO_NEWS
        if admission:
            merged, left = admission.oldest(news.version)
            news, self.waiting = news.take(merged), news.take(left)
        return news

    def _wanted(self, count: int | None, since: int, admission: Admission | None) -> int:
        """How many of the jobs from number `since` on are still to be waited for."""
        left = self.flight.since(since) if since else self.in_flight
        if count is None or not left:
            return left
        if admission and self._have(since) >= count:
            return 0 if self._complete(admission) else 1
        return min(count - self._have(since), left)

    def _complete(self, admission: Admission) -> bool:
        """Have enough come back, and all who are too old to be left at work?"""
        return len(self.waiting.node) >= admission.size and admission.complete(self.version, self.flight.version[self.flight.job >= 0])

    def _have(self, since: int) -> int:
        return int((self.waiting.job >= since).sum()) if since else len(self.waiting.job)

    def wait(self, until: int) -> None:
        """Moves the clock, evaluating on the way. Raises Finished where the run's time ends before."""
        goal = min(until, self.watch.end)
        while self.watch.due < goal:
            self._evaluate()
        if goal > self.now:
            self.now = max(goal, self.flight.clock(goal) if goal < FOREVER else goal)
        if until > self.watch.end:
            if self.watch.end == FOREVER:
                days = self.now / self.nature.per_second / 86_400
                raise RunError(f"round {self.round + 1}: the clock ran out after {days:.0f} days; `stop.seconds` makes its ticks longer")
            raise Finished

    def _land(self, batch: Arrivals, refill: int | None, ahead: bool) -> None:
        """Arrivals become news; up to `refill` news, others start in their places, and only arrivals before the first of those land."""
        since, nodes = self.ledger.used, batch.node[:0]
        if refill:
            batch, nodes = self.flight.refill(batch, refill - len(self.waiting.node), self._there, self.lots, self.down_bytes)
        news = self.flight.land(batch, ahead)
        self.ended(len(batch.time), news)
        self.now = int(batch.time[-1])
        self.waiting = joined(self.waiting, news)
        if len(nodes):
            self.send(nodes, at=batch.time[: len(nodes)])
        self.ledger.in_time(since)

    def _replace(self, ended: Arrivals, admission: Admission) -> None:
        """Another starts in the place of one job that has just ended, if it may, and if the merge is not due."""
        if self.room(admission) > 0 and not self._complete(admission):
            self.send(self.flight.successor(ended, self._there, self.lots))

    @property
    def _there(self) -> There | None:
        """Who is there at a time; None: everybody, always."""
        return None if self.nature.everyone is not None else lambda time: self.nature.present(self.version, time)

    def _overdue(self) -> bool:
        """Raises Finished where the host's time is up."""
        if self.watch.overdue():
            raise Finished
        return False

    def _evaluate(self) -> None:
        self.now = max(self.now, self.watch.due)
        self.watch.evaluate(self)
