"""How far the reading of a large file or folder is: one line on a terminal, and in the end what it took."""

import sys
from contextlib import AbstractContextManager
from time import monotonic
from typing import Any

from fedsim.base.text import clock, duration, percent, size

PATIENCE = 0.5  # seconds without a word
REFRESH = 0.1  # seconds
TOLD = 2.0  # seconds that are worth a line that stays
WIPE = "\r\x1b[2K"
quiet = False  # of the whole process: `--quiet`


class Reading(AbstractContextManager["Reading"]):
    """Use as a context; call it with the share that is read and what is being done. Where standard error is no terminal it says nothing.

    `taken` is set to how many bytes the arrays in the end take, `what` to what they are.
    """

    def __init__(self, name: str) -> None:
        self.name, self.what, self.taken = name, "", 0
        self.live = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self.began, self.painted = monotonic(), False
        self.next = self.began + PATIENCE

    def __call__(self, share: float, doing: str = "reading") -> None:
        if not self.live or (now := monotonic()) < self.next:
            return
        self.next, self.painted = now + REFRESH, True
        self._write(f"{WIPE}{doing} {self.name}  {percent(min(1.0, share))}  {clock(now - self.began)}")

    def __exit__(self, kind: object, *_: Any) -> None:
        if self.painted:
            self._write(WIPE)
        took = monotonic() - self.began
        if self.live and kind is None and took > TOLD:
            what = f"{self.what} " if self.what else ""
            self._write(f"{self.name}: {what}read in {duration(round(took))}, {size(self.taken)} of memory\n")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
