"""Graphs that are other ones in each step, and sequences of graphs."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from fedsim.base.keys import coins, distinct, fold, fold_array, permutation
from fedsim.settings.part import setting
from fedsim.settings.values import Constant, Curve, Every
from fedsim.topology.base import Topology
from fedsim.topology.graphs import Complete, Ring, adjacency
from fedsim.topology.mixing import Mixing

AHEAD = 100_000  # rounds in which a weight that changes is looked at before a run


@dataclass(frozen=True)
class OnePeerExponential(Topology):
    """Each node hears one other a step, half and half: the one 1, 2, 4, ... places before it, in turn; after q steps all of 2^q agree."""

    source: ClassVar[str] = "Ying et al. 2021"
    changes: ClassVar[bool] = True

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        powers = (nodes - 1).bit_length()
        return _halves(np.arange(nodes), (np.arange(nodes) - (1 << step % powers if powers else 0)) % nodes, nodes)


@dataclass(frozen=True)
class Matchings(Topology):
    """Pairs by lot in each step, half and half; with an odd number one stays alone."""

    changes: ClassVar[bool] = True

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        order = permutation(fold(key, "pairs", step), nodes).numpy()
        left, right = order[: nodes // 2], order[nodes // 2 : nodes // 2 * 2]
        return _halves(np.concatenate([left, right]), np.concatenate([right, left]), nodes)


def _halves(hearer: Any, sender: Any, nodes: int) -> Any:
    """Each hearer takes half of one other."""
    from scipy.sparse import coo_array, eye_array

    heard = coo_array((np.full(len(hearer), 0.5), (hearer, sender)), shape=(nodes, nodes)).tocsr()
    return heard + eye_array(nodes) * (1 - heard.sum(1))


@dataclass(frozen=True)
class RandomPulls(Topology):
    """Each node pulls the models of some others by lot and averages them with its own, all alike; the mean is kept on average only.

    2.3 peers are two, and a third with a chance of 0.3; each node's lot is its own. `among`: from its neighbours in another topology.
    """

    source: ClassVar[str] = "Zhu et al. 2026"
    changes: ClassVar[bool] = True

    peers: Curve = setting(Constant(1.0), "others that a node pulls in a step, on average; by round if it changes")
    among: Topology | None = setting(None, "whose neighbours they are chosen from; by default all nodes")

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        wanted, every = min(float(self.peers.at(np.array([step]))[0]), nodes), np.arange(nodes)
        lots = fold_array(int(key), "pull", step, every)
        around = None if self.among is None else self.among.mixing(nodes, step, key)
        others = np.full(nodes, nodes - 1) if around is None else around.heard
        count = np.minimum(int(wanted) + coins(fold_array(lots, "more"), wanted % 1), others)
        hearers = [every[count == pulls] for pulls in np.unique(count)]
        places = [distinct(fold_array(lots[who], "who"), count[who[0]], others[who]) for who in hearers]
        hearer = np.concatenate([np.repeat(who, place.shape[1]) for who, place in zip(hearers, places, strict=True)])
        place = np.concatenate([place.ravel() for place in places])
        if around is None:
            return _means(hearer, place + (place >= hearer), nodes)
        first = np.cumsum(around.heard) - around.heard
        return _means(hearer, around.edges[1][first[hearer] + place], nodes)


def _means(hearer: Any, sender: Any, nodes: int) -> Any:
    """Each takes the mean of what it hears and its own; no message stands twice."""
    from scipy.sparse import coo_array

    hears, heard = (np.concatenate([ends, np.arange(nodes)]) for ends in (hearer, sender))
    return coo_array(((1 / np.bincount(hears))[hears], (hears, heard)), shape=(nodes, nodes))


@dataclass(frozen=True)
class Epidemic(Topology):
    """Each node sends its model to some others by lot; who hears several takes the mean of them and its own.

    With an oracle all hear equally many: then the mean of all models is kept.
    """

    source: ClassVar[str] = "De Vos et al. 2023"
    changes: ClassVar[bool] = True

    sends: int = setting(1, "others that each sends to (s)", ge=1)
    oracle: bool = setting(False, "lots are drawn so that all hear equally many (EL-Oracle), or each draws alone (EL-Local)")

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        every, sends = np.arange(nodes), min(self.sends, nodes - 1)
        if self.oracle:  # nodes in a circle by lot, and everybody to those at some distances by lot
            circle = permutation(fold(key, "circle", step), nodes).numpy()
            distances = 1 + permutation(fold(key, "distances", step), nodes - 1).numpy()[:sends] if nodes > 1 else every[:0]
            hearer = circle[(every[:, None] + distances) % nodes]
            sender = np.broadcast_to(circle[:, None], hearer.shape)
        else:
            lot = distinct(fold_array(int(key), "send", step, every), sends, np.full(nodes, nodes - 1))
            hearer, sender = lot + (lot >= every[:, None]), np.broadcast_to(every[:, None], lot.shape)
        return _means(hearer.ravel(), sender.ravel(), nodes)


@dataclass(frozen=True, kw_only=True)
class Sequence(Topology):
    """One topology after the other, switching at the given rounds."""

    changes: ClassVar[bool] = True

    parts: tuple[Topology, ...] = setting(help="topologies in their order")
    switch: tuple[Every, ...] = setting(help="rounds at which the next begins, rising: one less than `parts`")

    def __post_init__(self) -> None:
        rounds = [one.rounds for one in self.switch]
        if any(one is None for one in rounds):
            raise ValueError("`switch` is in rounds: `[240 rounds]`")
        if len(rounds) != len(self.parts) - 1 or rounds != sorted(set(rounds), key=lambda one: one or 0):
            raise ValueError(f"{len(self.parts)} `parts` switch at {len(self.parts) - 1} rising rounds, not {len(rounds)}")

    def at(self, step: int) -> Topology:
        """The topology of a step."""
        return self.parts[sum(step >= (one.rounds or 0) for one in self.switch)]

    def mixing(self, nodes: int, step: int, key: Tensor) -> Mixing:
        return self.at(step).mixing(nodes, step, key)

    def check(self, nodes: int, key: Tensor) -> None:
        for part in self.parts:
            part.check(nodes, key)


@dataclass(frozen=True, kw_only=True)
class Laplacian(Topology):
    """W_k = I - beta_k L of another topology's graph, L its Laplacian (degrees less adjacency): each takes beta_k of each neighbour in
    round k, and keeps the rest. With a beta that falls as c / k^t, t below that of the learning rate, peers still come together."""

    source: ClassVar[str] = "Swenson et al. 2022"

    inner: Topology = setting(Ring(), "whose graph; its own weights are not looked at")
    beta: Curve = setting(help="what a node takes of each neighbour, by round; at most 1 / the largest degree")

    @property
    def changes(self) -> bool:  # type: ignore[override]
        return not isinstance(self.beta, Constant)

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        from scipy.sparse import diags_array

        beta, graph = float(self.beta.at(np.array([step]))[0]), self.inner.mixing(nodes, 0, key)
        if beta * (most := graph.heard.max()) > 1:
            what = f"`beta` is {beta:g} in round {step + 1}, and a node with {most} neighbours"
            raise ValueError(f"{what} can take at most 1/{most} of each")
        hears = adjacency(np.stack(graph.edges[::-1], 1), nodes, directed=True)
        return beta * hears + diags_array(1 - beta * graph.heard)

    def check(self, nodes: int, key: Tensor) -> None:
        if self.inner.changes or self.inner.at_end:
            raise ValueError(f"`inner` is a graph that stays, not `{self.inner.name}`")
        self.inner.check(nodes, key)
        if not Mixing(abs(self.inner.mixing(nodes, 0, key).weights) > 0).symmetric:
            raise ValueError(f"`{self.inner.name}` is directed, and I - beta L is for graphs in which who hears is heard")
        self.mixing(nodes, int(self.beta.at(np.arange(AHEAD)).argmax()), key)


@dataclass(frozen=True)
class FinalMerge(Topology):
    """Another topology, and one merge of all when the run ends, whatever ended it; no momentum is stale then: jobs begin at rest."""

    source: ClassVar[str] = "Zhu et al. 2026"
    at_end: ClassVar[bool] = True

    inner: Topology = setting(Ring(), "until then; `none` for no communication at all")
    statistics: Literal["recomputed", "averaged"] = setting(
        "recomputed", "BatchNorm's running statistics of the merged model: anew, from up to 32 batches of each node's data, or averaged too"
    )

    @property
    def changes(self) -> bool:  # type: ignore[override]
        return self.inner.changes

    def mixing(self, nodes: int, step: int, key: Tensor) -> Mixing:
        return self.inner.mixing(nodes, step, key)

    @property
    def renews(self) -> bool:  # type: ignore[override]
        return self.statistics == "recomputed"

    def last(self, nodes: int, step: int, key: Tensor) -> Mixing:
        return Complete().mixing(nodes, 0, key)

    def check(self, nodes: int, key: Tensor) -> None:
        self.inner.check(nodes, key)


@dataclass(frozen=True)
class Alone(Topology):
    """Nobody hears anybody: local training."""

    name: ClassVar[str] = "none"

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        from scipy.sparse import eye_array

        return eye_array(nodes)
