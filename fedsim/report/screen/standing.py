"""What is painted anew on a terminal and printed elsewhere: the frame of all of it, and a line that says how something stands."""

from math import inf
from time import monotonic
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedsim.report.screen.cell import Cell

TOLD = 10.0  # seconds between printed lines


class Painted:
    """Use as a context. `live` is what paints; None where nothing does: without a terminal or notebook, or `quiet`."""

    def __init__(self, console: Console | None = None, quiet: bool = False, transient: bool = True) -> None:
        self.console, self.quiet = console or Console(highlight=False, emoji=False), quiet
        wanted = (self.console.is_terminal or self.console.is_jupyter) and not quiet
        self.live: Live | Cell | None = None
        if wanted:
            self.live = Cell() if self.console.is_jupyter else Live(console=self.console, auto_refresh=False, transient=transient)

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def paint(self, text: str) -> bool:
        """In the place of what was there; whether anything paints."""
        if self.live:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        return self.live is not None


class Standing(Painted):
    """A line that says how it stands: painted anew on a terminal, elsewhere printed now and then."""

    def __init__(self, quiet: bool = False, console: Console | None = None) -> None:
        super().__init__(console, quiet)
        self.line, self.at = "", -inf

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, soft_wrap=True, markup=False)

    def show(self, line: str) -> None:
        """How it stands now; printed where it is another than it was."""
        if not self.paint(line) and line and line != self.line and monotonic() - self.at >= TOLD:
            self.say(line)
            self.line, self.at = line, monotonic()
