"""How much a scenario may hold: far more than anybody writes, and little enough that reading it ends at once.

A scenario may be somebody else's, and its file anything: it is a regular file of at most LARGEST bytes, with at most MOST values when its
aliases are written out, at most DEEPEST levels of them, and extends at most FILES others.
"""

import os
import stat
from pathlib import Path

LARGEST = 2**20
MOST = 50_000
DEEPEST = 50
FILES = 100
RUNS = 10_000  # of a sweep
PROBLEMS = 200  # that are looked for


def text_of(file: Path) -> str:
    """The file's text. Raises OSError or ValueError, both with a reason that can be shown, where it is no text of that size."""
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:  # nobody need write to a pipe for that
        kind = os.fstat(stream.fileno()).st_mode
        if not stat.S_ISREG(kind):
            raise ValueError("it is no regular file")
        raw = stream.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise ValueError("it has over 1 MiB; a scenario is a text for people")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
