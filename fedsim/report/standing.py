"""A line that says how it stands: painted anew on a terminal, elsewhere printed now and then."""

from math import inf
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.text import Text

TOLD = 10.0  # seconds between printed lines


class Standing:
    """Use as a context."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet, self.console = quiet, console or Console(highlight=False, emoji=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal and not quiet else None
        self.line, self.at = "", -inf

    def __enter__(self) -> "Standing":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def show(self, line: str) -> None:
        """How it stands now; printed where it is another than it was."""
        if self.live:
            self.live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif line and line != self.line and monotonic() - self.at >= TOLD:
            self.say(line)
            self.line, self.at = line, monotonic()
