"""What rides along with a federation: extensions that every verb tells what happens, each in a file of its own."""

# m: messages of a merge, k: nodes of a dispatch

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.rows import Rows
from fedsim.method.inbox import Inbox, State
from fedsim.schedule.news import News
from fedsim.topology.mixing import Mixing


class Merged(NamedTuple):
    """A merge that took place, the one after `version` merges: its news (perhaps none), their parts [m, ...] as they came ({} without
    news), the state of after and the models [.., d] that it changed; the time in ticks, and the jobs still in flight."""

    version: int
    round: int
    now: int
    in_flight: int
    news: News
    parts: Rows
    state: State
    models: Tensor


class Companion:
    """By default nothing is done, and all that passes through stays as it is. `keeps` names what a checkpoint has of it.

    `federate` takes it aboard with `fed.ride`; those aboard are told in that order, and `fed.companion(Kind)` finds one.
    """

    keeps: ClassVar[tuple[str, ...]] = ()
    secret: bool = False  # nobody may see that nobody came: merges without news go through the strategy too

    def told(self, parts: Rows, nodes: Tensor, rows: int) -> Rows:
        """What nodes [k] hear: `parts` has so many rows, one for all of them or one each."""
        return parts

    def billed(self, nodes: Ints, version: int, size: Ints) -> Ints:
        """Bytes, int64 [k], of what nodes hear of this version; each is told once."""
        return size

    def begun(self, nodes: Ints) -> None:
        """These nodes, all different, begin a job."""

    def arrived(self, nodes: Tensor, parts: Callable[[], Rows]) -> None:
        """Whole replies of nodes [m] have come; `parts` gathers them."""

    def ended(self, jobs: int, arrived: int, round: int) -> None:
        """So many jobs have come to their end after `round` rounds, of which so many have arrived."""

    def seen(self, inbox: Inbox, news: News, version: int) -> Inbox:
        """What the strategy sees of messages."""
        return inbox

    def merged(self, merged: Merged) -> None:
        """Raises RunError where the run makes no sense any more."""

    def passed(self, mixing: Mixing, who: Ints, version: int) -> Mixing:
        """What comes through of messages between the hearers `who`."""
        return mixing

    def mixed(self, mixing: Mixing, at: Tensor) -> None:
        """The hearers `at` have combined their states so."""

    def renewed(self, models: Tensor, round: int, version: int) -> int:
        """Hearers take anew, from their own data, what belongs to their models [h, d]; bytes of what each sends of it."""
        return 0

    def flush(self) -> None:
        """Writes what is not yet written. Raises RunError where it can't be; it is kept then."""
