"""Who decides when a federation evaluates and when it stops."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fedsim.federation import Federation


class Finished(Exception):
    """The run's time is up, the clock's or the host's; raised out of a schedule's loop, and caught by `Federation.run`."""


class Watch(Protocol):
    """`due` (next evaluation) and `end` are ticks, or FOREVER."""

    due: int
    end: int

    def running(self, fed: "Federation") -> bool:
        """Asked between rounds; False ends the run."""

    def evaluate(self, fed: "Federation") -> None:
        """Called with the clock at `due`; sets the next `due`. Raises Finished where the host's time is up."""

    def overdue(self) -> bool:
        """Is the host's time up? Asked wherever a round may be long."""
