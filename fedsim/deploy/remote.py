"""The remote field: workers compute jobs, and the wall's clock says when they come back."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any

import numpy as np

from fedsim.base.clock import FOREVER, Arrivals
from fedsim.base.rows import BUFFERS
from fedsim.base.store import Blocks
from fedsim.deploy.arriving import taken_in
from fedsim.deploy.decisions import RECORD, Decision, End
from fedsim.deploy.dispatching import Dispatching
from fedsim.deploy.network import Network
from fedsim.deploy.orders import Orders
from fedsim.deploy.packing import LACKS, Shapes, due
from fedsim.deploy.questions import FIRST
from fedsim.deploy.reality import Reality
from fedsim.deploy.replies import Replies
from fedsim.engines.local import Worker
from fedsim.federation.ledger import Ledger
from fedsim.schedule.news import News
from fedsim.transport.messages_pb2 import Reply
from fedsim.transport.nodes import Nodes
from fedsim.transport.session import Came, Joined, Left

TOGETHER = 1 << 26  # bytes of replies that are put side by side in memory; more lie in a file without a name
NAP = 0.2  # seconds between looks at what else is due while nothing comes


class Remote(Dispatching):
    """Recorded decisions are followed while there are any, and then made: each is in the record before anything leaves the server.

    Replies lie in `replies/` of the run's folder until a checkpoint has what came of them, or for good (`come.lasting`).
    """

    def __init__(self, worker: Worker, nature: Reality, ledger: Ledger, peers: bool) -> None:
        super().__init__(worker, nature, ledger, peers)
        nature.presence.await_somebody = self.somebody
        self.replies = Blocks(TOGETHER)
        self.idle: Callable[[], None] = lambda: None  # called while nothing comes
        self.connect: Callable[[], object] = lambda: None  # called where the record ends: from then on verdicts are right
        self.told_of: Callable[[Any], None] = lambda event: None  # called with each event
        self.kept_jobs: set[int] = set()  # whose replies were taken
        self.told = 0  # the latest time that was given out
        self.began: float | None = None  # by the host's clock, where this run's is 0
        self.missing: dict[int, float] = {}  # nodes that were there before the server died, and until when they may come back
        self.silence, self.quorum = 60.0, 1
        self.come, self.unsettled = Replies(self._due), list[End]()
        self.over: set[int] = set()  # jobs in flight whose end is known

    # Going live

    def go_live(self, hub: Network, orders: Orders, silence: float, quorum: int, patience: int | None) -> None:
        """From now on, where the record ends, workers are asked. `silence` is in seconds; the first work waits for `quorum` nodes;
        a job may take `patience` ticks (None: as long as it takes).
        """
        self.hub, self.orders, self.silence, self.quorum, self.patience = hub, orders, silence, quorum, patience

    def _next(self) -> Decision | None:
        if self.decisions.out is None and self.ledger.folder is not None:
            self.decisions.open(self.ledger.folder.parent / RECORD, write=True)
            self.come.folder = self.ledger.folder.parent / "replies"
        return super()._next()

    def verdict(self, job: int) -> str:
        """What became of a job, for a worker that asks: `kept`, `gone`, or `open`: still waited for."""
        return "kept" if job in self.kept_jobs else "open" if job in self.asked or (self.job == job).any() else "gone"

    def _wall(self) -> int:
        """Ticks since the run began; while the server was dead, no time has passed."""
        if self.began is None:
            self.connect()
            last = [end.time for one in self.decisions.known[-1:] for end in one.ends] + [one.time or 0 for one in self.decisions.known]
            self.told = max([self.told, *last])
            self.began = monotonic() - self.told / self.nature.per_second
            self.missing = dict.fromkeys(self.there.tolist(), monotonic() + self.silence)
            self.over = {end.job for end in self.pending}
        self.told = max(self.told, int((monotonic() - self.began) * self.nature.per_second))
        return self.told

    # Time

    def clock(self, now: int) -> int:
        if self._next() is not None:
            return super().clock(now)
        found = self._look(now, lambda joined, ends: False)
        self._decide(Decision(self.ledger.events, self._wall(), *found))
        return self.told

    def somebody(self, now: int) -> int:
        """When somebody is there; waits for it."""
        if self._next() is not None:
            return super().clock(now)
        quorum = self.quorum if self.serial == 0 else 1
        found = self._look(FOREVER, lambda joined, ends: len(joined) >= quorum)
        self._decide(Decision(self.ledger.events, self._wall(), *found))
        return self.told

    def peek(self, count: int, until: int) -> Arrivals:
        window = super().peek(count, until)
        if len(window.time) or self._next() is not None:
            return window
        joined, left, ends = self._look(until, lambda joined, ends: bool(ends))
        if joined or left or ends:
            self._decide(Decision(self.ledger.events, None, joined, left, ends))
        return self._window(count, until)

    def _decide(self, decision: Decision) -> None:
        self.decisions.add(decision)
        self._take(decision)

    def _look(self, until: int, enough: Callable[[list[int], list[End]], bool]) -> tuple[list[int], list[int], list[End]]:
        """Who has come, who is gone and which jobs have ended, once that is enough or it is so late (ticks)."""
        assert self.hub is not None, "a remote field that nobody serves"
        joined, left, ends = list[int](), list[int](), list[End]()
        while True:
            late = self._wall() >= until
            self._drain(joined, left, ends)
            if late or enough(joined, ends):
                return joined, left, ends
            self._settle_what_is_safe(wait=False)
            nap = NAP if until >= FOREVER else min(NAP, max(0.0, (until - self._wall()) / self.nature.per_second))
            try:
                self._happened(self.hub.events.get(timeout=nap), joined, left, ends)
            except Empty:
                self.idle()

    def _drain(self, joined: list[int], left: list[int], ends: list[End]) -> None:
        assert self.hub is not None
        while True:
            try:
                event = self.hub.events.get_nowait()
            except Empty:
                break
            self._happened(event, joined, left, ends)
        late = [node for node, until in self.missing.items() if monotonic() > until]
        for node in late:
            del self.missing[node]
        if late:
            self.say(f"{Nodes.of(late).named} lost: not seen since the server began again")
            self._gone(late, "its worker did not come back", left, ends)
        if self.patience is not None:
            slow = np.flatnonzero((self.job >= 0) & (self._wall() - self.started > self.patience))
            ends += self._without_reply(slow.tolist(), "it took longer than `deploy.job`")

    def _happened(self, event: Any, joined: list[int], left: list[int], ends: list[End]) -> None:
        self.told_of(event)
        match event:
            case Joined(worker, _, nodes, _):
                for node in nodes:
                    self.host[node] = worker
                    self.missing.pop(node, None)
                new = [node for node in nodes if not self.nature.presence.there[node] and node not in joined]
                joined += new
                left[:] = [node for node in left if node not in nodes]
                jobs = [(node, int(self.job[node])) for node in nodes if self.job[node] >= 0]
                again = [node for node, job in jobs if job not in self.over and job not in self.orders.held]
                self.decoded.difference_update(self.job[again].tolist())
                self._order(np.array(again, dtype=np.int64))
            case Left(worker, nodes, why):
                self._unasked([worker])
                mine = [node for node in nodes if self.host.get(node) == worker]
                joined[:] = [node for node in joined if node not in mine]
                self._gone(mine, why, left, ends)
            case Came(worker, reply, _) if min(reply.jobs, default=0) >= FIRST:
                self._heard(worker, reply)
            case Came(worker, reply, file):
                ends += self._came(worker, reply, file)

    def _gone(self, nodes: Iterable[int], why: str, left: list[int], ends: list[End]) -> None:
        """Nodes are lost, and with them the jobs that have not come back."""
        for node in nodes:
            self.host.pop(node, None)
            left.append(node)
            ends += self._without_reply([node], why)

    def _without_reply(self, nodes: Iterable[int], why: str) -> list[End]:
        """Ends of these nodes' jobs, if they have any that are still waited for."""
        jobs = {node: job for node in nodes if (job := int(self.job[node])) >= 0 and job not in self.over}
        return self._ended([End(self._wall(), node, job, False, why=why) for node, job in jobs.items()])

    def _ended(self, ends: list[End]) -> list[End]:
        """These are known from now on, and nobody needs to hear anything for their jobs any more."""
        jobs = [end.job for end in ends]
        self.over.update(jobs)
        self.decoded.difference_update(jobs)
        self.orders.done(jobs)
        return ends

    def _came(self, worker: bytes, reply: Reply, file: Path | None) -> list[End]:
        """Ends of jobs whose reply has come; who is not waited for any more is told so."""
        assert self.hub is not None
        named = np.flatnonzero(np.isin(self.job, np.array(reply.jobs, dtype=np.int64))).tolist()
        nodes = {int(self.job[node]): node for node in named if self.host.get(node) == worker}
        waited = [job for job in reply.jobs if job in nodes and job not in self.over]
        if other := [job for job in reply.jobs if job not in nodes and job not in self.over]:
            kept = [job for job in other if job in self.kept_jobs]
            self.hub.settle(worker, kept, [job for job in other if job not in kept])
        if not waited:
            return []
        if reply.head == LACKS and self.decoded.isdisjoint(waited):
            self._say_again(worker, {job: nodes[job] for job in waited})
            return []
        places, why = self.come.keep(reply, file)
        batch = self.come.batch(reply)
        found, now = [], self._wall()
        for job in waited:
            node, (start, size) = nodes[job], places.get(job, (0, 0))
            spent = (0.0,) * 3 if why else (reply.down + reply.waited, reply.work, reply.waited)  # it waits for its machine's other work
            down, work, idle = (int(seconds * self.nature.per_second) for seconds in spent)
            up = max(0, now - int(self.started[node]) - down - work)
            found.append(End(now, node, job, not why, down, work, up, batch, start, size, why, idle))
        if why:
            self.say(f"{Nodes.of(nodes[job] for job in waited).named}: {why}")
        return self._ended(found)

    # Jobs

    def _lasting(self) -> None:
        self._settle_what_is_safe(wait=True)
        self.come.sync()
        self.decisions.sync()

    def _due(self) -> tuple[Shapes, Shapes]:
        task = self.worker.task
        return due(self.worker.strategy.uplink, self.like, {BUFFERS: task.first_buffers.expand(1, -1)} if task.sends_buffers else {})

    def land(self, batch: Arrivals, ahead: bool) -> News:
        ends = self.pending[: len(batch.time)]
        news = super().land(batch, ahead)
        self.kept_jobs.update(news.job.tolist())
        self.landed[news.node] = news.job
        self.over.difference_update(end.job for end in ends)
        self.unsettled += ends
        self._settle_what_is_safe(wait=False)
        return news

    def _settle_what_is_safe(self, wait: bool) -> None:
        """Tells workers of replies that have landed, once these and the decision are on the disk."""
        if self.unsettled and (wait or self.come.synced):
            self.come.sync()
            self.decisions.sync()
            ends, self.unsettled = self.unsettled, []
            self._settle(ends)

    def _settle(self, ends: Sequence[End]) -> None:
        """Tells workers that replies are kept, or not wanted."""
        for worker, mine in self._by_host((end.node, end) for end in ends).items():
            if self.hub is not None:
                self.hub.settle(worker, *([end.job for end in mine if end.whole == whole] for whole in (True, False)))

    def bring(self, ends: Sequence[End]) -> None:
        taken_in(self, self.come, ends)

    def cancel(self, now: int) -> None:
        ends, nodes = [*self.pending], np.flatnonzero(self.job >= 0)
        hosts = self._by_host(zip(nodes.tolist(), self.job[nodes].tolist(), strict=True))
        super().cancel(now)
        self.over.clear()
        self.orders.done(job for jobs in hosts.values() for job in jobs)
        for worker, jobs in hosts.items():
            if self.hub is not None:
                self.hub.cancel(worker, jobs)
        self._settle([end._replace(whole=False) for end in ends])

    def saved(self) -> None:
        self._settle_what_is_safe(wait=True)
        self.come.saved(self.pending)
