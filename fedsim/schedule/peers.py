"""Schedules without a server: rounds of all peers, and pairs without a barrier."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.schedule.base import Schedule, needs_time
from fedsim.schedule.verbs import Verbs
from fedsim.settings.part import setting
from fedsim.topology import Mixing, Ring, Topology
from fedsim.topology.mixing import gap_of

MOST, MOST_CHANGING = 1000, 250  # nodes whose graph's spectral gap is found out, once a run or at each evaluation
LAST = 16  # rounds over which that of a changing graph is taken: longer than the period of those that are exact after one


@dataclass(frozen=True)
class Peers(Schedule):
    """Each node is its own hearer and talks to those beside it in the topology."""

    abstract: ClassVar[bool] = True
    peers: ClassVar[bool] = True

    topology: Topology = setting(Ring(), "who hears whom")

    def check_peers(self, fed: Verbs) -> None:
        """There is such a graph of so many nodes, and one that the strategy needs."""
        try:
            self.topology.check(fed.nodes, fed.key("topology"))
            self.topology.suits(fed.nodes, fed.key("topology"), fed.strategy.stochastic, fed.strategy.symmetric)
            mixing = self.mixing(fed, 0)
        except ValueError as error:
            raise SettingError("schedule.topology", f"`{self.topology.name}`: {error}") from error
        if fed.strategy.stochastic == "rows" and not mixing.averages:
            what = "is directed, and nodes don't send to as many as they hear, so averaging would favour some"
            need = "use a strategy with push-sum (`sgp`), or an undirected graph"
            raise SettingError("schedule.topology", f"`{self.topology.name}` {what}; {need}")
        if fed.strategy.stochastic == "columns" and not mixing.keeps_sums:
            what = f"`{fed.strategy.name}` needs senders that split what they send (columns that sum to 1)"
            raise SettingError("schedule.topology", f"{what}; those of `{self.topology.name}` don't")

    def mixing(self, fed: Verbs, round: int) -> Mixing:
        """Of a round."""
        return self.topology.mixing(fed.nodes, round, fed.key("topology"))

    def graph(self, fed: Verbs) -> Mixing | None:
        return self.mixing(fed, 0)

    def gap(self, fed: Verbs) -> float | None:
        if fed.nodes > (MOST_CHANGING if self.topology.changes else MOST):
            return None
        if not self.topology.changes:
            return self.mixing(fed, 0).gap()
        steps = [self.mixing(fed, round) for round in range(max(0, fed.round - LAST), fed.round)]
        return gap_of(steps) if steps else None

    def finish(self, fed: Verbs) -> bool:
        if self.topology.at_end:
            last = self.topology.last(fed.nodes, fed.round, fed.key("topology"))
            if (living := fed.nature.living) is not None:
                last = last.among(living, fed.strategy.stochastic)
            fed.mix(last)
            if self.topology.renews:
                fed.renew(last)
        return self.topology.at_end


@dataclass(frozen=True)
class Gossip(Peers):
    """All peers work, take in their own update, and mix by the topology's matrix; a barrier closes each round."""

    source: ClassVar[str] = "Lian et al. 2017"
    rounds: ClassVar[bool] = True

    def all_work(self, nodes: int) -> bool:
        return True

    def exchanges(self, fed: Verbs) -> tuple[Ints, Ints]:
        mixing = self.mixing(fed, fed.version)
        return mixing.said, mixing.heard

    def run(self, fed: Verbs) -> None:
        while fed.running():
            fed.send(fed.idle())
            news = fed.receive()
            mixing = self.mixing(fed, fed.version).among(news.node, fed.strategy.stochastic)
            if fed.strategy.combine_first:
                fed.mix(mixing)
            fed.merge(news)
            if not fed.strategy.combine_first:
                fed.mix(mixing)


@dataclass(frozen=True)
class Pairwise(Peers):
    """Without a barrier: a peer that is done averages with one neighbour that is there, takes in its update and starts again (AD-PSGD)."""

    source: ClassVar[str] = "Lian et al. 2018"

    def check(self, fed: Verbs) -> None:
        needs_time(fed, self)

    def exchanges(self, fed: Verbs) -> tuple[Ints, Ints]:
        one = np.minimum(self.mixing(fed, fed.round).heard, 1)
        return one, one

    def merges_a_round(self, nodes: int) -> int:
        return nodes

    def run(self, fed: Verbs) -> None:
        half = Mixing(np.full((2, 2), 0.5))
        while fed.running():
            fed.send(fed.idle())
            news = fed.receive(1)
            if len(news.node):
                node = int(news.node[0])
                mixing = self.mixing(fed, fed.round)
                pair = np.array([node, mixing.partner(node, fed.key("pair", fed.version))])
                if pair[1] != node and fed.present()[pair[1]]:
                    fed.mix(half, pair)
            fed.merge(news, hearers=news.node)
