"""What a schedule may ask of a federation, and tell it to do. A federation that is simulated, deployed or replayed answers alike."""

from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.keys import Word
from fedsim.schedule.admission import Admission
from fedsim.schedule.news import News
from fedsim.schedule.sampling import Cohort, Sampling
from fedsim.settings.values import Count, Floats
from fedsim.topology.mixing import Keep, Mixing
from fedsim.world.nature import Nature


class Method(Protocol):
    """A strategy as schedules know it."""

    @property
    def name(self) -> str:
        """As a scenario spells it."""

    @property
    def stochastic(self) -> Keep:
        """Which sums of its mixing weights are 1."""

    @property
    def symmetric(self) -> bool:
        """Do its mixing weights have to be?"""

    @property
    def combine_first(self) -> bool:
        """Do peers mix before they take in their own update?"""


class Verbs(Protocol):
    """A federation. Times are ticks; nodes are their numbers, int64."""

    @property
    def nodes(self) -> int:
        """How many there are."""

    @property
    def now(self) -> int:
        """The clock."""

    @property
    def version(self) -> int:
        """Merges done."""

    @property
    def round(self) -> int:
        """Rounds done: merges of the server, mixing steps of all peers, or n pairwise merges."""

    @property
    def sent(self) -> int:
        """Jobs begun so far; the number of the next one."""

    @property
    def in_flight(self) -> int:
        """Jobs that have not come back."""

    @property
    def share(self) -> Floats:
        """Each node's share of all samples, float64 [nodes]."""

    @property
    def nature(self) -> Nature:
        """The world."""

    @property
    def strategy(self) -> Method:
        """The method."""

    @property
    def state(self) -> dict[str, Any]:
        """Of the hearers."""

    def running(self) -> bool:
        """Asked at the top of a schedule's loop, where nothing is half done. With all away, the clock moves on until somebody comes."""

    def ticks(self, seconds: Fraction) -> int:
        """A time in ticks."""

    def key(self, *words: Word) -> Tensor:
        """A key of this run."""

    def durations(self) -> Ints:
        """Ticks that a job of each node takes when nothing goes wrong, travel included; int64 [nodes]."""

    def room(self, admission: Admission) -> int:
        """How many jobs may begin now."""

    def idle(self, count: int | None = None) -> Ints:
        """Nodes that are there and have no job, rising; `count` of them by keyed lot where there are more, with no known probability."""

    def present(self) -> NDArray[np.bool_]:
        """bool [nodes]: who is there."""

    def sample(self, sampling: Sampling, count: Count) -> Cohort:
        """A cohort of those who are there and have no job, with known probabilities."""

    def send(self, nodes: Ints, chance: Floats | None = None, at: Ints | None = None) -> None:
        """Nodes without a job hear the current model and start work, now or `at` given times; `chance` is their probability."""

    def receive(
        self,
        count: int | None = None,
        until: int | None = None,
        *,
        since: int = 0,
        ahead: bool = True,
        refill: bool = False,
        admission: Admission | None = None,
    ) -> News:
        """The next `count` arrivals, or those up to a time, whichever is first; moves the clock there. Without both, all in flight.

        `since`: only jobs from this number on are counted and waited for; others that arrive meanwhile come along. `ahead`: later
        arrivals may be computed along, because they will be wanted too. `refill`: whoever returns makes room for an idle node (keyed
        lot, the returning one included) that starts at once; the last arrival's place is left to the caller. `admission` (with its
        `size` as `count`): bounds who starts, waits for the old, and leaves the youngest that are too many to the next time.
        """

    def merge(self, news: News, hearers: Ints | None = None) -> None:
        """The hearers (None: all) take in news, in the order of the senders; without news it only counts as a merge."""

    def mix(self, mixing: Mixing, hearers: Ints | None = None) -> None:
        """The hearers (None: all) combine their states; each message between two of them is sent."""

    def renew(self, mixing: Mixing) -> None:
        """Hearers take anew, from their own data, what rides along with their models; where that travels, it is sent and combined."""

    def cancel(self) -> None:
        """Forgets all work in flight: those nodes are idle again and remember nothing of it."""
