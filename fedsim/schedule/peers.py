"""Schedules without a server: rounds of all peers, and pairs without a barrier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedsim.clock import Ints
from fedsim.errors import SettingError
from fedsim.part import setting
from fedsim.schedule.base import Schedule, needs_time
from fedsim.topology import Mixing, Ring, Topology

if TYPE_CHECKING:
    from fedsim.federation import Federation


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
        needs_time(fed, self)

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
