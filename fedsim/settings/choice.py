"""Choosing nodes: a setting that says which ones, in one word."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsim.settings.values import Population

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """Some of the nodes: `all`, `even`, `odd` or a group's name as `word`, or a range of ids, or a share of them by lot."""

    word: str = ""
    ids: range | None = None
    share: float | None = None

    def mask(self, people: Population, key: "Tensor") -> NDArray[np.bool_]:
        """bool [nodes]. Raises ValueError where there is no such group or node."""
        every = np.arange(people.nodes)
        if self.ids is not None:
            if self.ids[-1] >= people.nodes:
                raise ValueError(f"node {self.ids[-1]} of {people.nodes} (the first is 0)")
            return (every >= self.ids[0]) & (every <= self.ids[-1])
        if self.share is not None:
            from fedsim.base.keys import permutation

            return np.isin(every, permutation(key, people.nodes)[: max(1, round(self.share * people.nodes))].numpy())
        if self.word in ("all", "even", "odd"):
            return every % 2 == (self.word == "odd") if self.word != "all" else every >= 0
        if self.word not in people.groups:
            raise ValueError(f"no group `{self.word}` (there are: {', '.join(people.groups) or 'none: `groups` is not set'})")
        block = people.groups[self.word]
        return (every >= block.start) & (every < block.stop)


def places(lists: Sequence[Choice | tuple[Choice, ...]], people: Population, what: str) -> NDArray[np.int64]:
    """int64 [nodes]: which of the `lists` each node is in, each being that of a `what`. Raises ValueError where one is in none or in two,
    or a list has none."""
    from fedsim.base.keys import fold

    home, every, key = np.full(people.nodes, -1, dtype=np.int64), np.arange(people.nodes), fold(0, "hosts")
    for number, one in enumerate(lists):
        if one == ():
            raise ValueError(f"{what} {number} has no nodes (the first is 0)")
        for choice in one if isinstance(one, tuple) else (one,):
            if choice.share is not None:
                raise ValueError(f"{what} {number}: nodes are named, such as `0..9`, not drawn as a share")
            ids = choice.ids  # most are, and lists may be very many
            at = np.flatnonzero(choice.mask(people, key)) if ids is None or ids[-1] >= people.nodes else every[ids.start : ids.stop]
            if len(twice := at[home[at] >= 0]):
                where = f"on {what}s {home[twice[0]]} and {number}" if home[twice[0]] != number else f"twice on {what} {number}"
                raise ValueError(f"node {twice[0]} is {where} (the first is 0)")
            home[at] = number
    if len(missing := np.flatnonzero(home < 0)):
        raise ValueError(f"node {missing[0]} is on no {what}, and each of the {people.nodes} nodes has one")
    return home


EVERYONE = Choice("all")
