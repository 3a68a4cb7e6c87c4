"""What lies before a job: how long its parts take, when and how it comes back, and its bytes; known before anything is computed."""

# m: jobs

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.settings.values import Floats
from fedsim.world import Fate, Nature, Times

WELL, CRASHED, LOST, GONE = 0, 1, 2, 3


class Journey(NamedTuple):
    """What lies before jobs [m]: parts of their time, when they come back (ticks), how (WELL, CRASHED, LOST or GONE), bytes down and up.

    On a shared link, what each would be alone; `point` (nan: none) is where in the work it crashes, `leave` when its node leaves for it.
    """

    times: Times
    ends: Ints
    fate: NDArray[np.int8]
    down: Ints
    up: Ints
    point: Floats
    leave: Ints | None


def journey(nature: Nature, nodes: Ints, turn: Ints, started: Ints, times: Times, bytes: tuple[Ints, Ints], peers: bool) -> Journey:
    """Of jobs `turn` [m] of nodes [m], sent at `started`, whose parts take these times where nothing breaks; bytes down and up."""
    return fated(started, times, bytes, nature.fate(nodes, turn), nature.leaves(nodes, started), nature.shared, peers)


def fated(
    started: Ints, times: Times, bytes: tuple[Ints, Ints], fate: Fate | None, leave: Ints | None, shared: bool, peers: bool = False
) -> Journey:
    """The same of jobs [m] whose fate is known, and when their nodes leave and drop them; `shared`: on a link of the server's."""
    ends = started + times.down + times.work + times.up
    how, point = np.zeros(len(started), dtype=np.int8), np.full(len(started), np.nan)
    if fate is not None:
        stopped = started + times.down + (times.work * fate.point).astype(np.int64)
        ends, point = np.where(fate.crash, stopped, ends), np.where(fate.crash, fate.point, np.nan)
        lost = fate.lost & (not peers)  # what peers lose are the messages between them
        how = np.where(fate.crash, CRASHED, np.where(lost, LOST, WELL)).astype(np.int8)
    if leave is not None:
        how = np.where(leave < ends, GONE, how).astype(np.int8) if not shared else how
        ends = np.minimum(leave, ends)
    return Journey(times, ends, how, *bytes, point, leave)


class Labour:
    """Ticks of work of jobs; where those of a node are all alike, worked out once for all nodes."""

    def __init__(self, nature: Nature) -> None:
        self.nature = nature
        self.known: tuple[tuple[Ints, Ints], Ints] | None = None

    def plan(self, effort: tuple[Ints, Ints]) -> None:
        """Jobs take this effort from now on: steps and samples, int64 [nodes] each."""
        if self.nature.even:
            self.known = effort, self.nature.work(np.arange(len(effort[0])), *effort)

    def of(self, nodes: Ints, effort: tuple[Ints, Ints], turn: Ints | None) -> Ints:
        """int64 [m]: of the `turn`-th jobs of nodes [m], at this effort."""
        if self.known is not None and self.known[0] is effort:
            return self.known[1][nodes]
        return self.nature.work(nodes, effort[0][nodes], effort[1][nodes], turn)
