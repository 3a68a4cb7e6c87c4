"""Replies that have arrived, as schedules hand them on."""

from typing import NamedTuple

import numpy as np

from fedsim.base.clock import Ints
from fedsim.settings.values import Floats


class News(NamedTuple):
    """Replies that arrived: sender, job, version of the model it began from, where its rows are, chance (nan: unknown)."""

    node: Ints
    job: Ints
    version: Ints
    slot: Ints
    chance: Floats

    def take(self, at: Ints) -> "News":
        """Those at these places."""
        return News(self.node[at], self.job[at], self.version[at], self.slot[at], self.chance[at])


def joined(first: News, second: News) -> News:
    """Both, in this order."""
    if not (len(first.node) and len(second.node)):
        return first if len(first.node) else second
    return News(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))


NO_NEWS = News(*(np.zeros(0, dtype=np.int64),) * 4, np.zeros(0))
