"""The federation ties task, strategy, schedule and world together: the clock, the hearers' state, and the verbs of a schedule."""

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.admission import Admission
from fedsim.buffers import Buffers
from fedsim.clock import FOREVER, Arrivals, Ints
from fedsim.codecs import row_bytes
from fedsim.engines.local import Worker
from fedsim.errors import RunError, SettingError, TooFew
from fedsim.flight import NO_NEWS, Flight, News, joined
from fedsim.health import Health
from fedsim.keys import Word, fold, uniform
from fedsim.ledger import Ledger
from fedsim.link import Link
from fedsim.memory import afford
from fedsim.messages import MessageLog
from fedsim.probe import probe
from fedsim.release import Account
from fedsim.replicas import Replicas, Replicated, Stream
from fedsim.rows import BUFFERS, Rows, parted
from fedsim.sampling import Cohort, Free, Sampling
from fedsim.schedule import stand_alone
from fedsim.strategy import Inbox, State
from fedsim.topology import Mixing
from fedsim.values import Count, Floats
from fedsim.watch import Finished, Watch
from fedsim.world import Nature


class Federation:
    """The only mutable object of a run; `keeps` names its state. Schedules see only its public methods."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("now", "version", "waiting", "snapshot", "state", "flight", "down", "cross", "health", "buffers", "ledger", "worker", "release"),
        *("replicas", "stream"),
    )

    def __init__(self, worker: Worker, nature: Nature, ledger: Ledger, watch: Watch, seed: int, planned: int | None = None) -> None:
        """`planned`: the rounds after which the run is to end, if that is known."""
        self.worker, self.nature, self.ledger, self.watch, self.seed = worker, nature, ledger, watch, seed
        self.task, self.strategy, self.schedule = worker.task, worker.strategy, worker.strategy.schedule
        self.nodes, peers = self.task.nodes, self.schedule.peers
        self.share = (self.task.counts.double() / self.task.counts.sum()).cpu().numpy()
        self.home = np.arange(self.nodes) if peers else np.zeros(self.nodes, dtype=np.int64)
        self.hearers, self.now, self.version = self.nodes if peers else 1, 0, 0
        self.lots = self.key("lot")
        self.flight = Flight(worker, nature, ledger, peers)
        self.down = Link(self.strategy.downlink, "downlink", seed, self.nodes)
        self.cross = Link(self.strategy.crosslink, "crosslink", seed, self.nodes)
        self.waiting, self.health, self.buffers = NO_NEWS, Health(), Buffers(self.task, self.hearers, peers)
        self.snapshot: tuple[int, Rows] = (-1, {})  # a version, and what was heard of it: one copy for all who hear it
        self.down_bytes = self.state_bytes = 0  # of what a node hears to work, and of the whole state
        self._frequency: Tensor | None = None
        self.release: Account | None = None
        if peers:
            stand_alone(self)
            self.flight.exchanges = self.schedule.exchanges(self)
        if not (self.task.loss.differentiable or self.strategy.forward_only):
            raise SettingError("task.loss", f"`{self.task.loss.name}` has no gradient, and `{self.strategy.name}` descends along it")
        if not self.strategy.forward_only and any(not getattr(layer, "differentiable", True) for layer in self.task.model.modules()):
            what = f"has layers of whole numbers, without a gradient, and `{self.strategy.name}` descends along it"
            raise SettingError("task.model", what)
        if self.strategy.privacy is not None:
            self.strategy.privacy.check(self.strategy, self.task)
        self.stream: Stream | None = None
        self.replicas: Replicas | None = None
        if isinstance(self.strategy, Replicated):
            self.strategy.fits()
            self.replicas = Replicas(self.nodes, self.strategy.catch_up == "replay", MessageLog(self.strategy.uplink))
        probe(self, planned)
        self.state = self.fresh()

    # What a schedule may ask

    @property
    def round(self) -> int:
        """Rounds done: merges of the server, mixing steps of all peers, or n pairwise merges."""
        return self.version // self.schedule.merges_a_round(self.nodes)

    @property
    def in_flight(self) -> int:
        """Jobs that have not come back."""
        return self.flight.count

    @property
    def sent(self) -> int:
        """Jobs begun so far; the number of the next one."""
        return self.flight.serial

    def running(self) -> bool:
        """Asked at the top of a schedule's loop, where nothing is half done. With all away, the clock moves on until somebody comes."""
        if not self.watch.running(self):
            return False
        while not self.in_flight and not self._overdue() and (calendar := self.nature.calendar) is not None and not self.present().any():
            if (time := calendar.comes(self.now)) >= FOREVER and self.watch.end >= FOREVER:
                raise RunError(f"round {self.round + 1}: nobody is there any more, and nobody comes again; see `world.availability`")
            self.wait(time)
        return True

    def ticks(self, seconds: Fraction) -> int:
        """A time in ticks."""
        return round(seconds * self.nature.per_second)

    def key(self, *words: Word) -> Tensor:
        """A key of this run."""
        return fold(self.seed, *words)

    def room(self, admission: Admission) -> int:
        """How many jobs may begin now."""
        return admission.room(len(self.waiting.node), self.in_flight)

    def idle(self, count: int | None = None) -> Ints:
        """Nodes that are there and have no job, rising; `count` of them by keyed lot where there are more, with no known probability."""
        free = self.free()
        return free.nodes if count is None else free.lot(count, self.lots, self.flight.serial)

    def free(self) -> Free:
        """Those who are there and have no job."""
        return Free(self.flight.job, self.in_flight, None if self.nature.everyone is not None else self.present())

    def present(self) -> NDArray[np.bool_]:
        """bool [nodes]: who is there."""
        return self.nature.present(self.version, self.now)

    def sample(self, sampling: Sampling, count: Count) -> Cohort:
        """A cohort of those who are there and have no job, with known probabilities."""
        return sampling.draw(self.free(), count.of(self.nodes), self.share, self.nature.people, self.key("cohort"), self.version)

    def durations(self) -> Ints:
        """Ticks that a job of each node takes when nothing breaks, slows down or gets lost, travel included; int64 [nodes]."""
        return self.flight.durations(self.down_bytes)

    # The verbs

    def send(self, nodes: Ints, chance: Floats | None = None, at: Ints | None = None) -> None:
        """Nodes without a job hear the current model and start work, now or `at` given times; `chance` is their probability."""
        if len(nodes):
            heard, down = self._deliver(nodes)
            started = np.full(len(nodes), self.now) if at is None else at
            self.flight.start(nodes, started, heard, down, self.version, self.round, chance if self.nature.faultless else None)
            if self.release is not None:
                self.release.begin(nodes)

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
        """The next `count` arrivals, or those up to a time, whichever is first; moves the clock there. Without both, all in flight.

        `since`: only jobs from this number on are counted and waited for; others that arrive meanwhile come along. `ahead`: later
        arrivals may be computed along, because they will be wanted too. `refill`: whoever returns makes room for an idle node (keyed
        lot, the returning one included) that starts at once; the last arrival's place is left to the caller. `admission` (with its
        `size` as `count`): bounds who starts, waits for the old, and leaves the youngest that are too many to the next time.
        """
        limit, shared = self.watch.end if until is None else min(until, self.watch.end), self.nature.shared
        while (
            not self._overdue() and (need := self._wanted(count, since, admission)) > 0
        ):  # on a shared link, who starts in a place changes what comes next
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
        if since and self.nature.shared:
            left = int((self.flight.job >= since).sum())
        else:
            left = self.flight.queue.since(since) if since else self.in_flight
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
        self.now = max(self.now, goal)
        if until > self.watch.end:
            if self.watch.end == FOREVER:
                days = self.now / self.nature.per_second / 86_400
                raise RunError(f"round {self.round + 1}: the clock ran out after {days:.0f} days; `stop.seconds` makes its ticks longer")
            raise Finished

    def merge(self, news: News, hearers: Ints | None = None) -> None:
        """The hearers (None: all) take in news, in the order of the senders; without news it only counts as a merge."""
        if len(news.node):
            news = news.take(np.lexsort((news.job, news.node)))
            inbox = self.inbox(news, hearers)
            try:
                self._change(lambda state: self.strategy.merge(state, self.seen(inbox)), hearers)
            except TooFew as error:
                raise RunError(f"round {self.round + 1}: {error}") from error
            if self.buffers.any:
                self.buffers.merged(inbox.weight, self.flight.replies.take(news.slot))
            model = self.strategy.model(self.state)
            self.health.heard(inbox, model if hearers is None else model[self._ids(hearers)], self.round + 1)
        else:
            self._change(self._merge_nothing, hearers)
            self.health.nothing(self.now, self.in_flight, self.round + 1)
        if self.replicas:
            parts = self.flight.replies.take(news.slot) if len(news.node) else {}
            self.replicas.take(self.version, news.node, news.job, parts, self.state)
        self.flight.replies.release(news.slot)
        if self.release is not None:
            self.release.spend(news.node)
        ages = self.version - news.version
        self.version += 1
        self.ledger.merged(ages, int(self.flight.steps[news.node].sum()))
        columns = {"node": news.node, "job": news.job, "staleness": ages} if len(news.node) else {}
        self.ledger.add("merge", max(1, len(news.node)), time=self.now, version=self.version, **columns)

    def mix(self, mixing: Mixing, hearers: Ints | None = None) -> None:
        """The hearers (None: all) combine their states; each message between two of them is sent."""
        who = np.arange(self.hearers) if hearers is None else hearers
        at = self._ids(who)
        heard = {name: self.state[name] if hearers is None else self.state[name][at] for name in self.strategy.mixed}
        heard = self.cross.carry(heard, who, self.version)
        sent = mixing.said * self.flight.peer_bytes
        mixing = self._passing(mixing, who)
        self._change(lambda state: self.strategy.mix(state, heard, mixing), hearers)
        self.buffers.mixed(mixing, at)
        self.ledger.add("mix", len(who), time=self.now, node=who, version=self.version, bytes_up=sent)

    def renew_statistics(self, mixing: Mixing) -> None:
        """Peers take running statistics of their models anew, from their own data; where these travel, they are sent and combined."""
        if not self.buffers.any:
            return
        size = self.strategy.train.batch_size(self.task)
        self.buffers.renew(self.strategy.model(self.state), size, self.round, self.key("statistics", self.version))
        if self.buffers.sent:
            who = np.arange(self.hearers)
            self.buffers.mixed(mixing, self._ids(who))
            sent = mixing.said * row_bytes({BUFFERS: self.buffers.rows})
            self.ledger.add("mix", len(who), time=self.now, node=who, version=self.version, bytes_up=sent)

    def cancel(self) -> None:
        """Forgets all work in flight: those nodes are idle again and remember nothing of it."""
        if self.in_flight:
            self.health.ended(self.in_flight, 0, self.round + 1)
            self.flight.cancel(self.now)

    def run(self) -> bool:
        """The schedule, until the watch says stop or its time is up; whether there was something to do at the very end."""
        with suppress(Finished):
            self.schedule.run(self)
        return self.schedule.finish(self)

    def flush(self) -> None:
        """Writes events and messages that are not yet written. Raises RunError where they can't be; they are kept then."""
        self.ledger.flush()
        if self.replicas:
            self.replicas.log.flush()

    # Start

    def fresh(self) -> State:
        """The state of hearers that have heard nothing."""
        copies = 3 * self.task.init.nbytes * self.hearers
        afford(copies, "task.partition.nodes", f"{self.hearers:,} models of {self.task.layout.size:,} parameters")
        return self.strategy.start(self.task.init.expand(self.hearers, -1).clone(), self.task)

    # Sending and receiving
    def _ids(self, nodes: Ints) -> Tensor:
        return torch.from_numpy(nodes).to(self.worker.device)

    def _deliver(self, nodes: Ints) -> tuple[Ints, Ints]:
        """Posts what nodes hear; their slots, and the bytes of each."""
        if self.schedule.peers:  # a peer hears itself: no message
            self.flight.exchanges = self.schedule.exchanges(self)
            own = self._ids(nodes)
            parts, at = self.strategy.broadcast({name: rows[own] for name, rows in self.state.items()}), np.arange(len(nodes))
        else:
            if self.snapshot[0] != self.version:
                self.snapshot = self.version, {name: rows.clone() for name, rows in self.strategy.broadcast(self.state).items()}
            if self.stream:
                parts, at = self.snapshot[1], nodes * 0
            else:
                parts, at = self.down.broadcast(self.snapshot[1], nodes, self.version)
        self.flight.effort = self.strategy.effort(self.state, self.task) or self.flight.effort
        if self.buffers.sent:
            parts = parts | self.buffers.told(self._ids(nodes), int(at.max()) + 1)
        told = self.strategy.instruct(self.state, self._ids(nodes))
        if told:
            parts = {name: rows[self._ids(at)] for name, rows in parts.items()} | told
            at = np.arange(len(nodes))
        down = np.full(len(nodes), self.down_bytes)
        if self.replicas:
            down = self.replicas.hear(nodes, self.version, self.flight.up_bytes, self.state_bytes)
        if self.stream:
            down = self.stream.hear(nodes, self.version)
        return self.flight.mail.post(parts, len(nodes), at), down

    def _land(self, batch: Arrivals, refill: int | None, ahead: bool) -> None:
        """Arrivals become news; up to `refill` news, others start in their places, and only arrivals before the first of those land."""
        since, nodes = self.ledger.used, batch.node[:0]
        if refill:
            there = None if self.nature.everyone is not None else lambda time: self.nature.present(self.version, time)
            batch, nodes = self.flight.refill(batch, refill - len(self.waiting.node), there, self.lots, self.down_bytes)
        news = self.flight.land(batch, ahead)
        if self.buffers.any and len(news.node):
            self.buffers.arrived(self._ids(news.node), self.flight.replies.take(news.slot))
        self.now = int(batch.time[-1])
        self.health.ended(len(batch.time), len(news.node), self.round + 1)
        self.waiting = joined(self.waiting, news)
        if len(nodes):
            self.send(nodes, at=batch.time[: len(nodes)])
        self.ledger.in_time(since)

    def _replace(self, ended: Arrivals, admission: Admission) -> None:
        """Another starts in the place of one job that has just ended, if it may, and if the merge is not due."""
        if self.room(admission) > 0 and not self._complete(admission):
            there = None if self.nature.everyone is not None else lambda time: self.nature.present(self.version, time)
            self.send(self.flight.successor(ended, there, self.lots))

    def _overdue(self) -> bool:
        """Raises Finished where the host's time is up."""
        if self.watch.overdue():
            raise Finished
        return False

    def _evaluate(self) -> None:
        self.now = self.watch.due
        self.watch.evaluate(self)

    # Merging

    def seen(self, inbox: Inbox) -> Inbox:
        """What of the messages the strategy sees."""
        return inbox if self.release is None else self.release.of(inbox, self.version)

    def _merge_nothing(self, state: Rows) -> Rows:
        """Where coins are secret, so is that nobody came."""
        if self.release is None or self.release.coin is None:
            return self.strategy.merge_nothing(state)
        return self.strategy.merge(state, self.seen(self.inbox(NO_NEWS, None)))

    def inbox(self, news: News, hearers: Ints | None) -> Inbox:
        """News for the hearers (None: all) as a strategy reads them; without news, no rows of the usual shapes."""
        rows = self.flight.replies.take(news.slot) if len(news.node) else {name: rows[:0] for name, rows in self.flight.like.items()}
        parts, sender = parted(rows)[0], self._ids(news.node)
        if self.nature.liars is not None and len(news.node):
            parts = self.nature.liars.heard(parts, news.node, news.job)
        home = self.home[news.node]
        assert hearers is None or (hearers == home).all(), "news go home"
        local = None if self.hearers == 1 else self._ids(home if hearers is None else np.arange(len(home)))
        return Inbox(
            parts=parts,
            weight=self.task.share[sender],
            sender=sender,
            age=torch.from_numpy(self.version - news.version).to(self.task.init),
            layout=self.task.layout,
            hearers=self.hearers if hearers is None else len(hearers),
            hearer=local,
            chances=None if np.isnan(news.chance).any() else torch.from_numpy(news.chance).to(self.task.init),
            frequencies=self._frequencies,
            round=self.version,
            shared=self.key("shared", self._ids(news.version)),
        )

    def _passing(self, mixing: Mixing, who: Ints) -> Mixing:
        """Without messages that get lost on their way (`faults.lost` of the sender); where weights are symmetric, both ways."""
        if not (lost := self.nature.lost).any():
            return mixing
        hearer, sender = (who[ends] for ends in mixing.edges)
        lots = uniform(self.key("lost", self.version, torch.from_numpy(sender), torch.from_numpy(hearer)), 1)[:, 0].double().numpy()
        gone = lots < lost[sender]
        return mixing.without(mixing.either_way(gone) if mixing.symmetric else gone, self.strategy.stochastic)

    def _frequencies(self) -> Tensor:
        if self._frequency is None:
            self._frequency = torch.from_numpy(self.schedule.frequency(self)).to(self.task.init)
        return self._frequency

    def _change(self, change: Callable[[Rows], Rows], hearers: Ints | None) -> None:
        """Hands the state, or the rows of some hearers, to `change` and keeps what comes back."""
        with torch.no_grad():
            if hearers is None:
                self.state = change(self.state)
                return
            at = self._ids(hearers)
            for name, rows in change({name: rows[at] for name, rows in self.state.items()}).items():
                self.state[name].index_copy_(0, at, rows)
