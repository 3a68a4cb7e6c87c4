"""Replies that have come: their messages are checked, and lie in the run's folder until a checkpoint has what came of them."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from fedsim.base.errors import BrokenMessage
from fedsim.base.files import writing
from fedsim.base.rows import Rows
from fedsim.base.visible import one_line
from fedsim.deploy.decisions import End
from fedsim.deploy.packing import Messages, Shapes
from fedsim.transport.messages_pb2 import Reply

LONGEST = 500  # signs of what a worker says that went wrong
FOREVER = 1e9  # seconds that no job takes
Places = dict[int, tuple[int, int]]  # by job, where its message begins in the object, and how many bytes it has


class Replies:
    """One file a reply, named by its batch: the first of its jobs and the object's hash. `due`: shapes that messages may have."""

    def __init__(self, due: Callable[[], tuple[Shapes, ...]]) -> None:
        self.due, self.folder = due, Path()
        self.old, self.young = list[Path](), list[Path]()  # that were read before the last checkpoint, and since

    @staticmethod
    def batch(reply: Reply) -> str:
        """What its file is called."""
        return f"{reply.jobs[0]}-{reply.object.hash.hex()}"

    def keep(self, reply: Reply, file: Path | None) -> tuple[Places, str]:
        """Where each job's message lies, and what is wrong with the reply; a good one is put by. Raises RunError where it can't be."""
        try:
            head = json.loads(reply.head or b"{}")
            if why := head.get("error"):
                return {}, one_line(str(why))[:LONGEST]
            if not all(0 <= seconds < FOREVER for seconds in (reply.down, reply.work)):
                return {}, "its reply took a time that is none"
            sizes = [int(size) for size in head["sizes"]]
            if file is None or len(sizes) != len(reply.jobs) or min(sizes) < 8:
                return {}, "its reply has no content"
            starts, messages = np.cumsum([0, *(-(-size // 8) * 8 for size in sizes)]).tolist(), Messages(file)
            if any(messages.shapes(start, size) not in self.due() for start, size in zip(starts, sizes, strict=False)):
                return {}, "its reply is not of the shapes that this scenario has"
        except (BrokenMessage, AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            return {}, one_line(f"its reply is broken: {error}")[:LONGEST]
        place = self.folder / self.batch(reply)
        with writing(place):
            self.folder.mkdir(exist_ok=True)
            place.unlink(missing_ok=True)
            os.link(file, place)
        return dict(zip(reply.jobs, zip(starts, sizes, strict=False), strict=True)), ""

    def read(self, ends: Sequence[End]) -> Rows:
        """The messages of jobs of one batch, as rows [m, ...]; the file is on the disk when this returns."""
        file = self.folder / ends[0].batch
        self.young.append(file)
        with writing(file), file.open("rb") as content:
            os.fsync(content.fileno())
        return Messages(file).rows([(end.start, end.size) for end in ends])

    def saved(self, pending: Iterable[End]) -> None:
        """A checkpoint is on the disk: what was read before the last one is not needed again, but by those who have not landed."""
        waiting, done = {end.batch for end in pending}, self.old
        self.old, self.young = [*self.young, *(file for file in done if file.name in waiting)], []
        for file in done:
            if file.name not in waiting:
                file.unlink(missing_ok=True)
