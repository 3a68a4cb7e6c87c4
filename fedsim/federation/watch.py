"""Who decides when a federation evaluates and when it stops."""

from typing import Any

from fedsim.base.clock import FOREVER


class Watch:
    """`due` (next evaluation) and `end` are ticks, or FOREVER. By default nothing is evaluated and nothing ends."""

    due: int = FOREVER
    end: int = FOREVER

    def running(self, fed: Any) -> bool:
        """Asked between rounds, with the federation; False ends the run."""
        return True

    def evaluate(self, fed: Any) -> None:
        """Called with the clock at `due`; sets the next `due`. Raises Finished where the host's time is up."""

    def overdue(self) -> bool:
        """Is the host's time up? Asked wherever a round may be long."""
        return False
