"""Who works when, and who hears whom: loops over the federation's verbs. A loop may be left at any `running()` and begun again."""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fedsim.admission import Admission
from fedsim.clock import EventQueue, Ints
from fedsim.errors import SettingError
from fedsim.part import Part, setting
from fedsim.sampling import Sampling, UniformSampling
from fedsim.topology import Mixing, Ring, Topology
from fedsim.values import Count, Floats, Time

if TYPE_CHECKING:
    from fedsim.federation import Federation


class Schedule(Part):
    """The order of work. `peers`: each node is its own hearer and no server exists."""

    slot: ClassVar[str] = "schedule"
    default: ClassVar[str] = "rounds"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.coding.rounds",)
    peers: ClassVar[bool] = False

    def run(self, fed: "Federation") -> None:
        """Works until the federation says stop; all it knows stands in the federation."""
        raise NotImplementedError

    def check(self, fed: "Federation") -> None:
        """Raises SettingError where the schedule does not fit the task or the world."""

    def check_peers(self, fed: "Federation") -> None:
        """Raises SettingError where there is no such graph of the nodes; asked before sizes and times are known."""

    def times(self) -> list[Fraction]:
        """Its exact times, for the length of a tick."""
        return []

    def exchanges(self, fed: "Federation") -> tuple[Ints, Ints]:
        """Models that each peer sends and hears around a job that begins now, int64 [nodes] each."""
        return np.zeros(fed.nodes, dtype=np.int64), np.zeros(fed.nodes, dtype=np.int64)

    def graph(self, fed: "Federation") -> Mixing | None:
        """Who hears whom in the first round; None with a server."""
        return None

    def finish(self, fed: "Federation") -> bool:
        """Does what is still due when the run has come to its end; whether there was anything."""
        return False

    def frequency(self, fed: "Federation") -> Floats:
        """How often each node takes part, times a merge, float64 [nodes]. Raises ValueError where that isn't known beforehand."""
        raise ValueError(f"the schedule `{self.name}` knows no frequencies of taking part")

    def samples(self) -> bool:
        """Does each message come with the probability that its sender was asked?"""
        return False

    def expected(self, fed: "Federation") -> float:
        """Messages a merge on average, if nothing breaks. Raises ValueError where that isn't known beforehand."""
        raise ValueError(f"the schedule `{self.name}` doesn't say how many messages a merge has")

    def coin(self, fed: "Federation") -> float | None:
        """Where a node's own coin alone decides whether it stands in a merge, the greatest chance of any; None elsewhere."""
        return None

    def repeats(self) -> int:
        """Most messages of one node in one merge."""
        return 1

    def concurrency_limit(self, nodes: int) -> int:
        """Most jobs in flight at once."""
        return nodes

    def most_messages(self, nodes: int) -> int:
        """Of the first merge, at most."""
        return nodes

    def staleness_limit(self) -> int | None:
        """Merges that an update can miss at most; None: no bound is promised."""
        return None

    def merges_a_round(self, nodes: int) -> int:
        """A round is one merge of the server, a mixing step of all peers, or n pairwise merges."""
        return 1


def _needs_time(fed: "Federation", schedule: Schedule) -> None:
    idle = np.flatnonzero(fed.durations() == 0)
    if len(idle):
        some = f"node {idle[0]}'s jobs take" if len(idle) < fed.nodes else "jobs take"
        raise SettingError("world", f"{some} no time, which `{schedule.name}` can't order; set `world.compute` or `world.network`")


def stand_alone(fed: "Federation") -> None:
    """Raises SettingError where strategy or world need a server, under a schedule of peers."""
    own = f"under `{fed.schedule.name}` each node is its own"
    if fed.strategy.one_hearer:
        raise SettingError("strategy", f"`{fed.strategy.name}` merges at a server; {own}; `dsgd` is for peers")
    if fed.nature.liars is not None and fed.nature.liars.attackers.forges:
        name = fed.nature.liars.attackers.name
        raise SettingError("world.attackers", f"`{name}` changes what a server hears; {own}; `label_flip` has a meaning there")
    if fed.strategy.privacy is not None:
        raise SettingError("privacy", f"noise is added at a server; {own}")
    if fed.nature.shared:
        raise SettingError(f"world.network.server_{'up' if fed.nature.server_up else 'down'}", f"no server: {own}")
    if fed.nature.loss is not None:
        raise SettingError("world.network.loss", f"loss is known between a server and its nodes only; {own}")
    fed.schedule.check_peers(fed)


@dataclass(frozen=True)
class Rounds(Schedule):
    """Synchronous rounds: a cohort works, its updates are merged together (McMahan et al. 2017)."""

    source: ClassVar[str] = "McMahan et al. 2017"

    cohort: Count = setting(Count(10), "nodes asked a round: a number, a share or `all`")
    sampling: Sampling = setting(UniformSampling(), "how they are drawn; the method knows the probabilities")
    wait_for: int | None = setting(None, "merge when so many of the round's cohort have arrived; by default all", ge=1)
    deadline: Time | None = setting(None, "merge at this time after the start of the round at the latest", gt=0)
    late: Literal["drop", "keep"] = setting("drop", "what comes too late is cancelled, or joins a later merge with its age")

    def check(self, fed: "Federation") -> None:
        if not self.sampling.sized and self.cohort.strict:
            raise SettingError("schedule.cohort", f"`{self.sampling.name}` sampling decides the size of a cohort itself")
        try:
            cohort = self.cohort.of(fed.nodes)
        except ValueError as error:
            raise SettingError("schedule.cohort", str(error)) from error
        if self.sampling.sized and self.wait_for and self.wait_for > cohort:
            raise SettingError("schedule.wait_for", f"{self.wait_for} of a cohort of {cohort}")

    def times(self) -> list[Fraction]:
        return [self.deadline] if self.deadline else []

    def samples(self) -> bool:
        return not (self.wait_for or self.deadline)

    def concurrency_limit(self, nodes: int) -> int:
        return self.cohort.of(nodes) if self.sampling.sized and self.late == "drop" else nodes

    def most_messages(self, nodes: int) -> int:
        return min(self.wait_for or nodes, self.cohort.of(nodes) if self.sampling.sized else nodes)

    def staleness_limit(self) -> int | None:
        return 0 if self.late == "drop" else None

    def frequency(self, fed: "Federation") -> Floats:
        if self.wait_for or self.deadline or not fed.nature.certain:
            raise ValueError("frequencies are unknown where clients can be late, away or lost")
        return self._chances(fed)

    def _chances(self, fed: "Federation") -> Floats:
        """With all free."""
        return self.sampling.chances(np.arange(fed.nodes), self.cohort.of(fed.nodes), fed.share, fed.nature.people, fed.key("cohort"))

    def expected(self, fed: "Federation") -> float:
        return min(float(self._chances(fed).sum()), self.wait_for or fed.nodes)

    def coin(self, fed: "Federation") -> float | None:
        return float(self._chances(fed).max()) if self.sampling.coins and self.samples() else None

    def run(self, fed: "Federation") -> None:
        keep = self.late == "keep"
        while fed.running():
            cohort, since = fed.sample(self.sampling, self.cohort), fed.sent if keep else 0
            fed.send(cohort.nodes, cohort.chance if self.samples() else None)
            until = fed.now + fed.ticks(self.deadline) if self.deadline else None
            # with all at work or away, the round ends with the first who comes
            wanted, since = (self.wait_for or len(cohort.nodes), since) if len(cohort.nodes) else (1, 0)
            fed.merge(fed.receive(wanted, until, since=since, ahead=keep))
            if not keep:
                fed.cancel()


@dataclass(frozen=True)
class Buffered(Schedule):
    """A merge whenever `size` updates are in; those who return start again at once (FedBuff), with size 1 asynchronous (FedAsync)."""

    source: ClassVar[str] = "Nguyen et al. 2022"

    size: int = setting(10, "updates a merge", ge=1)
    concurrency: Count = setting(Count(), "nodes at work at once: a number, a share or `all`")
    restart: Literal["arrival", "merge"] = setting(
        "arrival", "who returns makes room for the next at once, or at the next merge (FedFix's frame)"
    )
    max_staleness: int | None = setting(
        None,
        "merges that an update may miss (AReaL's eta): no more work begins than can be merged in time, and a merge waits for old work",
        ge=0,
    )

    def check(self, fed: "Federation") -> None:
        try:
            busy = self.concurrency.of(fed.nodes)
        except ValueError as error:
            raise SettingError("schedule.concurrency", str(error)) from error
        if self.restart == "merge" and self.size > busy:
            raise SettingError("schedule.size", f"{self.size} updates a merge, but only {busy} nodes at work")
        _needs_time(fed, self)

    def expected(self, fed: "Federation") -> float:
        return self.size

    def repeats(self) -> int:
        return self.size if self.restart == "arrival" else 1

    def admission(self) -> Admission | None:
        """The rule that bounds staleness, where it is bounded."""
        return None if self.max_staleness is None else Admission(self.size, self.max_staleness)

    def staleness_limit(self) -> int | None:
        return self.max_staleness

    def concurrency_limit(self, nodes: int) -> int:
        busy, admission = self.concurrency.of(nodes), self.admission()
        return min(busy, admission.room(0, 0)) if admission else busy

    def most_messages(self, nodes: int) -> int:
        return self.size

    def frequency(self, fed: "Federation") -> Floats:
        if (
            not (fed.nature.certain and fed.nature.steady)
            or self.concurrency_limit(fed.nodes) < fed.nodes
            or self.max_staleness is not None
        ):
            raise ValueError(
                "frequencies are known beforehand only where all nodes are always at work, at one speed, nothing breaks and none waits"
            )
        durations = fed.durations()
        if self.restart == "arrival" or self.size == 1:
            rate: Floats = self.size / durations
            return rate / float((1 / durations).sum())
        return merged_together(durations, self.size, merges=max(2000, 200 * fed.nodes // self.size))

    def run(self, fed: "Federation") -> None:
        busy, admission = self.concurrency.of(fed.nodes), self.admission()
        while fed.running():
            free = busy - fed.in_flight
            fed.send(fed.idle(min(free, fed.room(admission)) if admission else free))
            fed.merge(fed.receive(self.size, refill=self.restart == "arrival", admission=admission))


def merged_together(durations: Ints, size: int, merges: int) -> Floats:
    """Times a merge that each node takes part where the `size` earliest are merged and restarted together; durations [n] in ticks."""
    queue, count = EventQueue(), np.zeros(len(durations))
    queue.push(durations, np.arange(len(durations)), durations * 0)
    for _ in range(merges):
        first = queue.peek(size)
        queue.drop(size)
        count[first.node] += 1
        queue.push(first.time[-1] + durations[first.node], first.node, first.serial)
    return count / merges


@dataclass(frozen=True)
class Ticks(Schedule):
    """A merge at fixed intervals, of whatever has arrived; then those start again (FedFix)."""

    source: ClassVar[str] = "Fraboni et al. 2023"

    every: Time = setting(Fraction(1), "interval between merges", gt=0)

    def check(self, fed: "Federation") -> None:
        _needs_time(fed, self)

    def times(self) -> list[Fraction]:
        return [self.every]

    def frequency(self, fed: "Federation") -> Floats:
        if not (fed.nature.certain and fed.nature.steady):
            raise ValueError("frequencies are unknown where clients can be away or lost, or their times vary")
        return 1 / -(-fed.durations() // fed.ticks(self.every)).astype(np.float64)

    def expected(self, fed: "Federation") -> float:
        return float(self.frequency(fed).sum())

    def run(self, fed: "Federation") -> None:
        every = fed.ticks(self.every)
        while fed.running():
            fed.send(fed.idle())
            tick = (fed.now // every + 1) * every
            fed.merge(fed.receive(until=tick))


@dataclass(frozen=True)
class Gossip(Schedule):
    """All peers work, take in their own update, and mix by the topology's matrix; a barrier closes each round."""

    source: ClassVar[str] = "Lian et al. 2017"
    peers: ClassVar[bool] = True

    topology: Topology = setting(Ring(), "who hears whom")

    def check_peers(self, fed: "Federation") -> None:
        _fits(self.topology, fed)

    def mixing(self, fed: "Federation") -> Mixing:
        """Of this round."""
        return self.topology.mixing(fed.nodes, fed.version, fed.key("topology"))

    def graph(self, fed: "Federation") -> Mixing | None:
        return self.topology.mixing(fed.nodes, 0, fed.key("topology"))

    def exchanges(self, fed: "Federation") -> tuple[Ints, Ints]:
        mixing = self.mixing(fed)
        return mixing.said, mixing.heard

    def run(self, fed: "Federation") -> None:
        while fed.running():
            fed.send(fed.idle())
            news = fed.receive()
            mixing = self.mixing(fed).among(news.node, fed.strategy.stochastic)
            if fed.strategy.combine_first:
                fed.mix(mixing)
            fed.merge(news)
            if not fed.strategy.combine_first:
                fed.mix(mixing)

    def finish(self, fed: "Federation") -> bool:
        return _last(self.topology, fed)


def _fits(topology: Topology, fed: "Federation") -> None:
    """Raises SettingError where the topology has no graph of so many nodes, or not one that the strategy needs."""
    try:
        topology.check(fed.nodes, fed.key("topology"))
        mixing = topology.mixing(fed.nodes, 0, fed.key("topology"))
    except ValueError as error:
        raise SettingError("schedule.topology", f"`{topology.name}`: {error}") from error
    if fed.strategy.stochastic == "rows" and not mixing.averages:
        what = "is directed, and nodes don't send to as many as they hear, so averaging would favour some"
        raise SettingError("schedule.topology", f"`{topology.name}` {what}; use a strategy with push-sum (`sgp`), or an undirected graph")
    if fed.strategy.stochastic == "columns" and not mixing.keeps_sums:
        what = f"`{fed.strategy.name}` needs senders that split what they send (columns that sum to 1)"
        raise SettingError("schedule.topology", f"{what}; those of `{topology.name}` don't")


def _last(topology: Topology, fed: "Federation") -> bool:
    """The step that is due at the end, if one is."""
    if topology.at_end:
        fed.mix(topology.last(fed.nodes, fed.round, fed.key("topology")))
    return topology.at_end


@dataclass(frozen=True)
class Pairwise(Schedule):
    """Without a barrier: a peer that is done averages with one neighbour that is there, takes in its update and starts again (AD-PSGD)."""

    source: ClassVar[str] = "Lian et al. 2018"
    peers: ClassVar[bool] = True

    topology: Topology = setting(Ring(), "whose neighbours")

    def check_peers(self, fed: "Federation") -> None:
        _fits(self.topology, fed)

    def check(self, fed: "Federation") -> None:
        _needs_time(fed, self)

    def graph(self, fed: "Federation") -> Mixing | None:
        return self.topology.mixing(fed.nodes, 0, fed.key("topology"))

    def exchanges(self, fed: "Federation") -> tuple[Ints, Ints]:
        one = np.minimum(self.topology.mixing(fed.nodes, fed.round, fed.key("topology")).heard, 1)
        return one, one

    def merges_a_round(self, nodes: int) -> int:
        return nodes

    def run(self, fed: "Federation") -> None:
        half = Mixing(np.full((2, 2), 0.5))
        while fed.running():
            fed.send(fed.idle())
            news = fed.receive(1)
            if len(news.node):
                node = int(news.node[0])
                mixing = self.topology.mixing(fed.nodes, fed.round, fed.key("topology"))
                pair = np.array([node, mixing.partner(node, fed.key("pair", fed.version))])
                if pair[1] != node and fed.present()[pair[1]]:
                    fed.mix(half, pair)
            fed.merge(news, hearers=news.node)

    def finish(self, fed: "Federation") -> bool:
        return _last(self.topology, fed)
