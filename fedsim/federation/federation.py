"""The federation ties task, strategy, schedule and world together: the hearers' state, and the verbs of a schedule."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import Finished, RunError, TooFew
from fedsim.base.keys import Word, fold, fold_array
from fedsim.base.memory import afford
from fedsim.base.rows import Rows, parted
from fedsim.engines.local import Worker
from fedsim.federation.clocked import Clocked
from fedsim.federation.field import Field, each_of
from fedsim.federation.ledger import Ledger
from fedsim.federation.link import Downlink, Link
from fedsim.method.companion import Companion, Merged
from fedsim.method.contract import sent_of
from fedsim.method.inbox import Inbox, State
from fedsim.schedule.news import News
from fedsim.schedule.sampling import Cohort, Free, Sampling
from fedsim.settings.values import Count, Floats
from fedsim.topology.mixing import Mixing
from fedsim.world.nature import Nature

Rider = TypeVar("Rider", bound=Companion)


class Federation(Clocked):
    """The only mutable object of a run; `keeps` names its state. Schedules see it as `Verbs`; `federate` makes one ready to run."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("now", "version", "waiting", "state", "flight", "down", "cross", "ledger", "worker", "companions"),
    )

    def __init__(self, worker: Worker, field: Field, nature: Nature, ledger: Ledger, seed: int) -> None:
        super().__init__(field, nature, ledger, fold(seed, "lot"))
        self.worker, self.seed = worker, seed
        self.task, self.strategy, self.schedule = worker.task, worker.strategy, worker.strategy.schedule
        self.nodes = self.task.nodes
        self.share = self.task.part.cpu().numpy()
        self.home = self._homes()  # who each node hears, and is heard by
        self.hearers = len(self.task.stacks) if self.schedule.served else int(self.home.max()) + 1
        self.down = Downlink(self.strategy.downlink, "downlink", seed, self.nodes)
        self.cross = Link(self.strategy.crosslink, "crosslink", seed, self.nodes)
        self.companions: Mapping[str, Companion] = {}
        self._frequency: Tensor | None = None
        self.state = self.fresh()

    def _homes(self) -> Ints:
        """int64 [nodes]."""
        return np.arange(self.nodes) if self.schedule.peers else self.task.home

    def fresh(self) -> State:
        """The state of hearers that have heard nothing."""
        copies = 3 * self.task.init.nbytes * self.hearers
        afford(copies, "task.partition.nodes", f"{self.hearers:,} models of {self.task.layout.size:,} parameters")
        return self.strategy.start(self.task.first(self.hearers), self.task)

    def ride(self, companion: Companion) -> None:
        """One more that is told of every verb, after those before it; one of a name, by which checkpoints know it."""
        assert type(companion).__name__ not in self.companions, f"a {type(companion).__name__} rides along already"
        self.companions = {**self.companions, type(companion).__name__: companion}

    def companion(self, kind: type[Rider]) -> Rider | None:
        """The one of this kind that rides along."""
        return next((one for one in self.companions.values() if isinstance(one, kind)), None)

    # What a schedule may ask

    @property
    def round(self) -> int:
        """Rounds done: merges of the server, mixing steps of all peers, or n pairwise merges."""
        return self.version // self.schedule.merges_a_round(self.nodes)

    def ticks(self, seconds: Fraction) -> int:
        """A time in ticks."""
        return round(seconds * self.nature.per_second)

    def key(self, *words: Word) -> Tensor:
        """A key of this run."""
        return fold(self.seed, *words)

    def idle(self, count: int | None = None) -> Ints:
        """Nodes that are there and have no job, rising; `count` of them by keyed lot where there are more, with no known probability."""
        free = self.free()
        return free.nodes if count is None else free.lot(count, self.lots, self.flight.serial)

    def free(self) -> Free:
        """Those who are there and have no job."""
        return Free(self.flight.job, self.in_flight, None if self.nature.everyone is not None else self.present())

    def sample(self, sampling: Sampling, count: Count) -> Cohort:
        """A cohort of those who are there and have no job, with known probabilities."""
        return sampling.draw(self.free(), count.of(self.nodes), self.share, self.nature.people, self.key("cohort"), self.version)

    def durations(self) -> Ints:
        """Ticks that a job of each node takes when nothing goes wrong, travel included; int64 [nodes]."""
        return self.flight.durations(self.down_bytes)

    @property
    def living(self) -> Ints | None:
        """Hearers whose models count; None: all."""
        return self.nature.living if self.schedule.peers else None

    # The verbs

    def send(self, nodes: Ints, chance: Floats | None = None, at: Ints | None = None) -> None:
        """Nodes without a job hear the current model and start work, now or `at` given times; `chance` is their probability."""
        if not len(nodes):
            return
        if at is None:
            self.now = self.flight.clock(self.now)
        heard, row = self._told(nodes)
        down, started = each_of(self.down_bytes, nodes), np.full(len(nodes), self.now) if at is None else at
        for one in self.companions.values():
            down = one.billed(nodes, self.version, down)
        self.flight.start(nodes, started, heard, row, down, self.version, self.round, chance if self.nature.faultless else None)
        for one in self.companions.values():
            one.begun(nodes)

    def merge(self, news: News, hearers: Ints | None = None) -> None:
        """The hearers (None: all) take in news, in the order of the senders; without news it only counts as a merge."""
        self.down.over()
        news = news.take(np.lexsort((news.job, news.node)))
        parts = self.flight.taken(news.slot) if len(news.node) else {}
        models = self._taken_in(news, parts, hearers)
        for one in self.companions.values():
            one.merged(Merged(self.version, self.round, self.now, self.in_flight, news, parts, self.state, models))
        self.flight.free(news.slot)
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
        for one in self.companions.values():
            mixing = one.passed(mixing, who, self.version)
        self._change(lambda state: self.strategy.mix(state, heard, mixing), hearers)
        self._mixed(mixing, who, sent)

    def _mixed(self, mixing: Mixing, who: Ints, sent: Ints) -> None:
        """Hearers have combined what they have, in so many bytes [k]."""
        for one in self.companions.values():
            one.mixed(mixing, self._ids(who))
        self.ledger.add("mix", len(who), time=self.now, node=who, version=self.version, bytes_up=sent)

    def renew(self, mixing: Mixing) -> None:
        """Hearers take anew, from their own data, what rides along with their models; where that travels, it is sent and combined."""
        if sent := sum(one.renewed(self.strategy.model(self.state), self.round, self.version) for one in self.companions.values()):
            self._mixed(mixing, np.arange(self.hearers), mixing.said * sent)

    def cancel(self) -> None:
        """Forgets all work in flight: those nodes are idle again and remember nothing of it."""
        if self.in_flight:
            for one in self.companions.values():
                one.ended(self.in_flight, 0, self.round)
            self.flight.cancel(self.now)

    def run(self) -> bool:
        """The schedule, until the watch says stop or its time is up; whether there was something to do at the very end."""
        with suppress(Finished):
            self.schedule.run(self)
        return self.schedule.finish(self)

    def flush(self) -> None:
        """Writes events and messages that are not yet written. Raises RunError where they can't be; they are kept then."""
        self.ledger.flush()
        for one in self.companions.values():
            one.flush()

    # Between verbs

    def _taken_in(self, news: News, parts: Rows, hearers: Ints | None) -> Tensor:
        """News with these parts change the hearers' (None: all) state; their models of after."""
        if len(news.node) or any(one.secret for one in self.companions.values()):
            self._merged(self.inbox(news, parts, hearers), hearers)
        else:
            self._change(self.strategy.merge_nothing, hearers)
        models = self.strategy.model(self.state)
        return models if hearers is None else models[self._ids(hearers)]

    def _merged(self, inbox: Inbox, hearers: Ints | None = None) -> None:
        """The strategy takes in messages. Raises RunError where they are too few for it."""
        try:
            self._change(lambda state: self.strategy.merge(state, inbox), hearers)
        except TooFew as error:
            raise RunError(f"round {self.round + 1}: {error}") from error

    def _told(self, nodes: Ints) -> tuple[Rows, Ints]:
        """What nodes hear, and which row of it each has."""
        own = self._ids(nodes)
        self.flight.effort = self.strategy.effort(self.state, self.task) or self.flight.effort
        parts, row = self._said(nodes)
        rows = int(row.max()) + 1
        for one in self.companions.values():
            parts = one.told(parts, own, rows)
        if told := self.strategy.instruct(self.state, own):
            each = {
                name: rows.expand(len(nodes), *rows.shape[1:]) if len(rows) == 1 else rows[self._ids(row)] for name, rows in parts.items()
            }
            parts, row = each | told, np.arange(len(nodes))
        return parts, row

    def _said(self, nodes: Ints) -> tuple[Rows, Ints]:
        """What the hearers of nodes say to all of theirs, and which row of it each node has."""
        if self.schedule.peers:  # a peer hears itself: no message
            self.flight.exchanges = self.schedule.exchanges(self)
            own = self._ids(nodes)
            return self.strategy.broadcast({name: rows[own] for name, rows in self.state.items()}), np.arange(len(nodes))
        return self.down.told(lambda: self.strategy.broadcast(self.state), nodes, self.version, self.home[nodes])

    def ended(self, jobs: int, news: News) -> None:
        """So many jobs have come to their end; the whole replies among them are news."""
        nodes, round = self._ids(news.node), self.round
        for one in self.companions.values():
            if len(news.node):
                one.arrived(nodes, lambda: self.flight.taken(news.slot))
            one.ended(jobs, len(news.node), round)

    def inbox(self, news: News, parts: Rows, hearers: Ints | None) -> Inbox:
        """News with these parts for the hearers (None: all) as a strategy sees them; without news, no rows of the usual shapes."""
        parts, sender = parted(parts or {name: rows[:0] for name, rows in self.flight.like.items()})[0], self._ids(news.node)
        home = self.home[news.node]
        assert hearers is None or (hearers == home).all(), "news go home"
        inbox = Inbox(
            parts=sent_of(parts),
            weight=self.task.share.index_select(0, sender),
            sender=sender,
            age=self._numbers(self.version - news.version),
            layout=self.task.layout,
            task=self.task,
            hearers=self.hearers if hearers is None else len(hearers),
            hearer=None if self.hearers == 1 else self._ids(home if hearers is None else np.arange(len(home))),
            chances=None if np.isnan(news.chance).any() else torch.from_numpy(news.chance).to(self.task.init.dtype),
            frequencies=self._frequencies,
            round=self.version,
            nodes=news.node,
            keys=lambda: self._ids(fold_array(self.seed, "shared", news.version)),
        )
        for one in self.companions.values():
            inbox = one.seen(inbox, news, self.version)
        return inbox

    def _frequencies(self) -> Tensor:
        if self._frequency is None:
            self._frequency = self._numbers(self.schedule.frequency(self))
        return self._frequency

    def _ids(self, nodes: Ints) -> Tensor:
        return sent(nodes, self.worker.device)

    def _numbers(self, values: Ints | Floats) -> Tensor:
        return sent(torch.from_numpy(values).to(self.task.init.dtype), self.worker.device)

    def _change(self, change: Callable[[Rows], Rows], hearers: Ints | None) -> None:
        """Hands the state, or the rows of some hearers, to `change` and keeps what comes back."""
        with torch.no_grad():
            if hearers is None:
                self.state = change(self.state)
                return
            at = self._ids(hearers)
            for name, rows in change({name: rows[at] for name, rows in self.state.items()}).items():
                self.state[name].index_copy_(0, at, rows)
