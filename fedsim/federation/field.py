"""The seam between a federation and those who work for it: who computes jobs, and what says when they come back."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Arrivals, Ints
from fedsim.base.rows import Rows
from fedsim.metrics.told import Question
from fedsim.schedule.news import News
from fedsim.settings.values import Floats

Size = int | Ints  # bytes of a message: the same for all nodes, or [n] where their models differ
There = Callable[[int], NDArray[np.bool_]]  # who is there at a time, bool [nodes]


def each_of(size: Size, nodes: Ints) -> Ints:
    """Bytes of the messages of nodes [k], int64 [k]."""
    return np.full(len(nodes), size) if isinstance(size, int) else size[nodes]


def least_and_most(size: Size) -> tuple[int, int]:
    """Bytes of the smallest message and of the largest."""
    return int(np.min(size)), int(np.max(size))


class Field(Protocol):
    """Jobs, at most one a node. A simulated field (`Flight`) computes them late and together, and the world says when they come back.

    Arrays over nodes: `job` (its number, -1: none), `version` it began from, `steps` of its training, `effort` (steps and samples that
    its time follows), `exchanges` (models that a peer sends and hears around it). Bytes of a message: `up_bytes`, `first_bytes` (of
    nodes from which nothing has come), `peer_bytes` (between hearers). `like` is one reply, for its shapes. The federation sets
    `effort`, `exchanges` and bytes; it only reads the others. `keeps` names what a checkpoint has of a field.
    """

    keeps: ClassVar[tuple[str, ...]]
    serial: int  # jobs begun so far; the number of the next one
    count: int  # of them, those that have not come back
    job: Ints
    version: Ints
    steps: Ints
    effort: tuple[Ints, Ints]
    exchanges: tuple[Ints, Ints]
    up_bytes: Size
    first_bytes: Size
    peer_bytes: int
    like: Rows

    def clock(self, now: int) -> int:
        """What time it is, `now` or later; where time is the wall's, `now` is waited for."""

    def start(self, nodes: Ints, at: Ints, heard: Rows, row: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        """Nodes [k] without a job begin one at times [k], having heard row `row` [k] of what `heard` has, in `down` [k] bytes."""

    def since(self, number: int) -> int:
        """Jobs in flight from this number on."""

    def peek(self, count: int, until: int) -> Arrivals:
        """The next ends of jobs up to and including `until`, at most `count`."""

    def land(self, batch: Arrivals, ahead: bool) -> News:
        """The next jobs, as `peek` tells them, come back: whole ones become news. `ahead`: later ones may be computed along."""

    def refill(self, batch: Arrivals, need: int, there: There | None, key: Tensor, down: Size) -> tuple[Arrivals, Ints]:
        """The next arrivals before anybody who starts in their places, and who starts at each but the one that makes `need` whole.

        `there` says who is there at a time; None: everybody.
        """

    def successor(self, ended: Arrivals, there: There | None, key: Tensor) -> Ints:
        """Who starts in the place of one job that has ended; nobody where nobody can. The same lot as in `refill`."""

    def taken(self, slots: Ints) -> Rows:
        """The replies of news [m]: parts [m, ...], perhaps views."""

    def free(self, slots: Ints) -> None:
        """Replies of news that are not needed any more."""

    def cancel(self, now: int) -> None:
        """Forgets all jobs."""

    def durations(self, down: Size) -> Ints:
        """Ticks of each node's jobs when nothing goes wrong and nobody else is on the link; int64 [nodes]."""

    def probe(self, received: Rows, among: Ints | None = None) -> Rows:
        """What the reply to `received` (one row) of the smallest node (of these, if they are given) is like, computed and forgotten."""

    def remembered(self, nodes: Ints) -> Rows | None:
        """What nodes [k] remember, with their own running statistics; None where that lies elsewhere."""

    def judged(self, question: Question) -> dict[str, Tensor]:
        """By kind, float64 [3, n], what nodes say of models where what it takes lies with them: see `metrics.told`; 0 of those who do
        not answer."""

    def saved(self) -> None:
        """A checkpoint is on the disk."""

    def post(self, parts: Rows, count: int) -> Ints:
        """Replies that came another way than through a job; their slots."""
