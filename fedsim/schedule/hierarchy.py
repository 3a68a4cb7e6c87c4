"""Edge servers between the nodes and the server: who hears whom, and when who reports."""

# e: edges of a level

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import ClassVar, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import LAST, Ints
from fedsim.base.errors import Finished, SettingError
from fedsim.base.keys import bits_array
from fedsim.codecs import Codec, Identity
from fedsim.schedule.base import Schedule
from fedsim.schedule.placing import Contiguous, Placing
from fedsim.schedule.verbs import Verbs
from fedsim.settings.choice import Choice, places
from fedsim.settings.part import setting
from fedsim.settings.values import Count, Every, Population, Time
from fedsim.topology import Mixing, Topology


class Edged(Verbs, Protocol):
    """A federation with edge servers between."""

    home: Ints

    def up(self) -> NDArray[np.bool_]:
        """bool [e]: which edges of the first level are up now. With all down, the clock moves on until one comes."""

    def report(self, levels: int, turn: int) -> None:
        """The edges of so many levels, the first one first, tell who is above them what they have, and hear what comes of it; without a
        server the edges mix, for the `turn`-th time."""


@dataclass(frozen=True)
class Hierarchy(Schedule):
    """Edge servers merge their nodes' updates by samples; every so many rounds the server merges what came of it, by the method.

    A round is one of the edges, begun together: cohorts work from the models of their edges, which take in the mean update. What an edge
    reports is the sum of those since it last heard the server's model, and counts by the samples behind it. With a `topology` there is no
    server: the method merges at the edges, which mix.
    """

    source: ClassVar[str] = "Liu et al. 2020, Client-Edge-Cloud Hierarchical Federated Learning, arXiv 1905.06641 (HierFAVG)"
    aliases: ClassVar[tuple[str, ...]] = ("hierarchical",)
    rounds: ClassVar[bool] = True

    edges: int | tuple[int, ...] = setting(help="how many; `[100, 10]`: 100 that report to 10, which report to the server", ge=1)
    every: int | Every | tuple[int, ...] = setting(
        1, "rounds between reports (kappa_2); `[5, 2]`: of the first edges each 5, of those above at each second of these", ge=1
    )
    nodes: Placing | tuple[Choice | tuple[Choice, ...], ...] = setting(
        Contiguous(), "which are at which edge: `contiguous`, `random`, `groups`, from a file, or a list: `[0..24, 25..49]`"
    )
    cohort: Count = setting(Count(), "nodes asked a round at each edge: a number, a share or `all`; drawn alike")
    deadline: Time | None = setting(None, "who is not back at this time after the start of the round is cancelled", gt=0)
    topology: Topology | None = setting(None, "who hears whom among the edges, which have no server then")
    downlink: Codec = setting(Identity(), "codec of what edges hear from above; `crosslink` is that of what they report")

    def __post_init__(self) -> None:
        if isinstance(self.every, Every) and self.every.rounds is None:
            raise ValueError("`every` is counted in rounds here, such as `5 rounds`")
        if len(self.periods) != len(self.sizes):
            raise ValueError(f"`every` has {len(self.periods)} intervals for {len(self.sizes)} levels of edges")
        for below, above in zip(self.sizes, self.sizes[1:], strict=False):
            if above > below:
                raise ValueError(f"`edges`: {above} edges above {below}; each level has no more than the one below it")
        if self.topology is not None and len(self.sizes) > 1:
            raise ValueError(f"`topology` is one among all edges; with {len(self.sizes)} levels of them they have a server")

    @property
    def served(self) -> bool:
        return self.topology is None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Edges of each level, the first one first."""
        return (self.edges,) if isinstance(self.edges, int) else self.edges

    @property
    def periods(self) -> tuple[int, ...]:
        """Rounds between reports of the first level, and of each other one how many reports of the level below it."""
        if isinstance(self.every, Every):
            return (self.every.rounds or 1,)
        return (self.every,) if isinstance(self.every, int) else self.every

    def homes(self, people: Population, key: Tensor) -> Ints:
        """int64 [nodes]: the edge of each node. Raises SettingError where there is no such split."""
        if self.sizes[0] > people.nodes:
            raise SettingError("schedule.edges", f"{self.sizes[0]} edges for {people.nodes} nodes; each edge has at least one")
        try:
            home = self._placed(people, key)
        except ValueError as error:
            raise SettingError("schedule.nodes", str(error)) from error
        if len(none := np.flatnonzero(np.bincount(home, minlength=self.sizes[0]) == 0)):
            raise SettingError("schedule.nodes", f"edge {none[0]} has no nodes (the first is 0)")
        return home

    def _placed(self, people: Population, key: Tensor) -> Ints:
        if isinstance(self.nodes, Placing):
            return self.nodes.of(people, self.sizes[0], key)
        if len(self.nodes) != self.sizes[0]:
            raise ValueError(f"the nodes of {len(self.nodes)} edges; there are {self.sizes[0]}")
        return places(self.nodes, people, "edge")

    def parents(self, level: int) -> Ints:
        """int64 [e]: to whom of the next level each edge of this one reports: blocks, as equal as can be; of the last level the server."""
        above = self.sizes[level + 1] if level + 1 < len(self.sizes) else 1
        return np.arange(self.sizes[level]) * above // self.sizes[level]

    def graph(self, fed: Verbs) -> Mixing | None:
        return None if self.topology is None else self.topology.mixing(self.sizes[0], 0, fed.key("topology"))

    def due(self, round: int) -> int:
        """Levels that report after so many rounds."""
        lengths = [prod(self.periods[: level + 1]) for level in range(len(self.periods))]
        return sum(round % length == 0 for length in lengths)

    def check(self, fed: Verbs) -> None:
        for edge, nodes in enumerate(np.bincount(cast(Edged, fed).home).tolist()):
            try:
                self.cohort.of(nodes)
            except ValueError as error:
                raise SettingError("schedule.cohort", f"{error} at edge {edge}") from error
        if self.topology is not None:
            try:
                self.topology.check(self.sizes[0], fed.key("topology"))
            except ValueError as error:
                raise SettingError("schedule.topology", f"`{self.topology.name}`: {error}") from error

    def times(self) -> list[Fraction]:
        return [self.deadline] if self.deadline else []

    def most_messages(self, nodes: int) -> int:
        return nodes if self.topology is not None else self.sizes[-1]

    def all_work(self, nodes: int) -> bool:
        return self.cohort.share is None and self.cohort.number is None

    def staleness_limit(self) -> int | None:
        return 0

    def run(self, fed: Verbs) -> None:
        edged = cast(Edged, fed)
        most = np.array([self.cohort.of(nodes) for nodes in np.bincount(edged.home).tolist()])
        while fed.running():
            up, free = edged.up(), fed.idle()
            free = free if up.all() else free[up[edged.home[free]]]
            all_work = self.all_work(fed.nodes)
            cohort = free if all_work else of_each(free, edged.home[free], most, fed.key("cohort", fed.version))
            fed.send(cohort)
            until = fed.now + fed.ticks(self.deadline) if self.deadline else None
            fed.merge(fed.receive(max(1, len(cohort)), until, ahead=False))
            fed.cancel()
            if levels := self.due(fed.version):
                edged.report(levels, fed.version // self.periods[0])

    def finish(self, fed: Verbs) -> bool:
        """What edges have not reported when the run ends is due."""
        levels, edged = len(self.sizes), cast(Edged, fed)
        if self.topology is not None or self.due(fed.version) == levels:
            return False
        with suppress(Finished):
            edged.report(levels, fed.version)
        return True


def of_each(nodes: Ints, home: Ints, most: Ints, key: Tensor) -> Ints:
    """Of these nodes [m], which are at edges `home` [m], `most` [e] at each by keyed lot, or all where there are no more; rising.

    Those with the lowest keyed scores. Where few are wanted only scores so low that mostly enough have them are put in order.
    """
    if not len(nodes):
        return nodes
    score, there = bits_array(int(key), int(nodes[-1]) + 1)[nodes], np.bincount(home, minlength=len(most))
    wanted = np.minimum(most, there)
    share = (wanted + 6 * np.sqrt(wanted) + 10) / np.maximum(there, 1)
    low = score <= np.where(share < 0.9, -(2.0**63) + 2.0**64 * np.minimum(share, 0.9), LAST)[home]
    if (np.bincount(home[low], minlength=len(most)) >= wanted).all():
        nodes, home, score = nodes[low], home[low], score[low]
    order = np.lexsort((score, home))
    start = np.searchsorted(home[order], np.arange(len(most)))
    place = np.arange(len(nodes)) - start[home[order]]
    return np.sort(nodes[order[place < most[home[order]]]])
