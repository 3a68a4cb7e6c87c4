"""What time decided in a deployed run: who was there, what came back and when, and what the clock said.

A federation is a function of its scenario and of these decisions, so their record is both the server's journal, from which it goes on
after a crash, and what a replay follows. The file has a line a decision: a CRC-32 and JSON. A line cut short at the end was never acted
upon, because nothing leaves the server before `sync`.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from fedsim.base.errors import FedsimError
from fedsim.base.files import writing

RECORD = "decisions.log"  # in the run's folder


class End(NamedTuple):
    """A job's end at `time` (ticks): whole, or not at all. `down`, `work`, `up`: parts of its time. `batch`: of jobs that a worker computed
    together; their replies lie in the object of that name, this one's `size` bytes from `start` on. `waited`: the part of `down` in which
    what it hears was there, and its machine did other work."""

    time: int
    node: int
    job: int
    whole: bool
    down: int = 0
    work: int = 0
    up: int = 0
    batch: str = ""
    start: int = 0
    size: int = 0
    why: str = ""
    waited: int = 0

    def until(self, now: int) -> "End":
        """It ends no sooner: it came up for longer."""
        return self._replace(time=now, up=self.up + now - self.time) if self.time < now else self


class Answer(NamedTuple):
    """What a worker said of nodes [k] that it judged together: by kind three lists [k] (how many, losses, right)."""

    nodes: Sequence[int]
    sums: Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Decision:
    """Taken after `at` events of the run. `time`: what the clock was asked for and said (ticks); None where nobody asked. `asked`: at an
    evaluation, the kinds of sums that workers were asked for, and `answers` what they said."""

    at: int
    time: int | None = None
    joined: Sequence[int] = ()
    left: Sequence[int] = ()
    ends: Sequence[End] = field(default=())
    asked: Sequence[str] = ()
    answers: Sequence[Answer] = ()

    def line(self) -> bytes:
        """As it stands in the file."""
        text = json.dumps({name: value for name, value in asdict(self).items() if value not in (None, (), [])}).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)


def parse(line: bytes) -> Decision | None:
    """None for a line that is not whole."""
    check, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or check != b"%08x" % zlib.crc32(text):
        return None
    found = json.loads(text)
    several = {"ends": [End(*end) for end in found.get("ends", ())], "answers": [Answer(*one) for one in found.get("answers", ())]}
    return Decision(**found | several)


class Decisions:
    """The record, read from where one is and then written on; what is written is not kept in memory."""

    def __init__(self) -> None:
        self.known: list[Decision] = []
        self.out: IO[bytes] | None = None
        self.synced = True

    def open(self, file: Path, write: bool) -> None:
        """Reads what is there. With `write`, later ones are appended to it, and a last line that was cut short is taken away.

        Raises FedsimError where a line in the middle is damaged.
        """
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        found = [parse(line) for line in lines]
        whole = next((at for at, one in enumerate(found) if one is None), len(found))
        if any(one is not None for one in found[whole:]):
            raise FedsimError(f"{file}:{whole + 1}: damaged (its checksum is wrong)")
        self.known = [one for one in found if one is not None]
        if write:
            with writing(file):
                self.out = file.open("ab")
                self.out.truncate(sum(map(len, lines[:whole])))

    def add(self, decision: Decision) -> None:
        """Raises RunError where it can't be written."""
        if self.out is not None:
            with writing(Path(self.out.name)):
                self.out.write(decision.line())
            self.synced = False

    def sync(self) -> None:
        """All of them are on the disk when this returns. Raises RunError where they can't be."""
        if self.out is not None and not self.synced:
            with writing(Path(self.out.name)):
                self.out.flush()
                os.fsync(self.out.fileno())
            self.synced = True

    def close(self) -> None:
        """Ends writing."""
        if self.out is not None:
            self.sync()
            self.out.close()
            self.out = None
