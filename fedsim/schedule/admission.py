"""Bounded staleness: work is admitted only where it can still be merged in time, and nothing that has come is thrown away."""

from dataclasses import dataclass

import numpy as np

from fedsim.base.clock import Ints


@dataclass(frozen=True)
class Admission:
    """AReaL's rule (2025, arXiv 2505.24298): with a jobs accepted (come back whole, merged or not) and r at work at version v, new ones
    are admitted up to (limit + 1 + v) size - (a + r). As v merges took size x v of the accepted, this is the room beside those that
    wait for their merge or are at work.

    The rule alone bounds the age where merges take jobs in the order of their start. Here they take who comes first; so a merge waits
    where those at work could not all be merged in time after it. They always can where it takes the oldest first: of the jobs begun up
    to version v + j - limit never more than (j + 1) size are left at version v, which admission begins and `complete` keeps.
    """

    size: int  # updates a merge
    limit: int  # merges that an update may miss

    def room(self, waiting: int, working: int) -> int:
        """Jobs that may begin now; `waiting` ones have come back and are not merged yet."""
        return (self.limit + 1) * self.size - (waiting + working)

    def complete(self, version: int, working: Ints) -> bool:
        """Can those at work (the versions they began from, int64 [r]) be left for later, when the merge after `version` takes place?

        At the latest, the i-th oldest of them is merged at version + 1 + i // size.
        """
        last = version + 1 + np.arange(len(working)) // self.size
        return bool((last - np.sort(working) <= self.limit).all())

    def oldest(self, versions: Ints) -> tuple[Ints, Ints]:
        """Of those that wait, in the order of their coming: the places of those that are merged, the oldest first, and of the others."""
        order = np.argsort(versions, kind="stable")
        return np.sort(order[: self.size]), np.sort(order[self.size :])
