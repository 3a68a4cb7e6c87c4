"""Choosing nodes: a setting that says which ones, in one word."""

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


EVERYONE = Choice("all")
