"""The world of a deployed run: nothing is drawn, people come and go as they do."""

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.base.clock import Ints
from fedsim.settings.values import Population
from fedsim.world import World
from fedsim.world.calendar import Calendar, Mask
from fedsim.world.nature import Nature


class Presence(Calendar):
    """Who is there, as far as the federation has been told; `await_somebody` waits until there is anybody, and says when that is."""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes)
        self.await_somebody: Callable[[int], int] = lambda now: now

    def tell(self, joined: Sequence[int], left: Sequence[int]) -> None:
        """These have come, and these are gone."""
        self.there[[*left]] = False
        self.there[[*joined]] = True

    def present(self, now: int) -> Mask:
        return self.there.copy()

    def comes(self, now: int) -> int:
        return self.await_somebody(now)

    def leaves(self, nodes: Ints, at: Ints) -> Ints:
        raise NotImplementedError("nobody says beforehand when a node leaves")


class Reality(Nature):
    """Of the world that a scenario describes only the attackers are left; machines, links and faults are the real ones."""

    def __init__(self, world: World, people: Population, seed: int, per_second: int) -> None:
        super().__init__(World(attackers=world.attackers), people, seed, per_second)
        self.presence = Presence(people.nodes)
        self.calendar, self.everyone, self.steady = self.presence, None, False  # `certain`: as planned, with all there

    @property
    def living(self) -> Ints | None:
        there = self.presence.there
        return None if there.all() or not there.any() else np.flatnonzero(there)
