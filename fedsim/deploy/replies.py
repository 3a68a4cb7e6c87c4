"""Replies that have come: their messages are checked, and lie in the run's folder until a checkpoint has what came of them."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fedsim.base.errors import BrokenMessage, FedsimError
from fedsim.base.files import writing
from fedsim.base.rows import Rows
from fedsim.base.visible import one_line
from fedsim.deploy.decisions import End
from fedsim.deploy.packing import Messages, Shapes
from fedsim.transport.messages_pb2 import Reply
from fedsim.transport.naming import file_name

LATE = 1e9  # seconds that nothing takes
LONGEST = 500  # signs of what a worker says that went wrong
Places = dict[int, tuple[int, int]]  # by job, where its message begins in the object, and how many bytes it has


class Replies:
    """One file a reply, named by its batch: the first of its jobs and the object's hash. `due`: shapes that messages may have."""

    def __init__(self, due: Callable[[], tuple[Shapes, ...]]) -> None:
        self.due, self.folder, self.shapes = due, Path(), tuple[Shapes, ...]()
        self.lasting = False  # are all of them kept, for a replay?
        self.old, self.young = list[Path](), list[Path]()  # that were read before the last checkpoint, and since
        self.disk, self.syncing = ThreadPoolExecutor(1), list[Future[None]]()  # nobody waits for the disk who need not

    @staticmethod
    def batch(reply: Reply) -> str:
        """What its file is called."""
        return f"{reply.jobs[0]}-{reply.object.hash.hex()}"

    def keep(self, reply: Reply, file: Path | None) -> tuple[Places, str]:
        """Where each job's message lies, and what is wrong with the reply; a good one is put by, and on its way to the disk, see `sync`.

        Raises RunError where it can't be.
        """
        try:
            head = json.loads(reply.head)
            if why := head.get("error"):
                return {}, one_line(str(why))[:LONGEST]
            if not all(0 <= seconds < LATE for seconds in (reply.down, reply.waited, reply.work)):
                return {}, "its reply took a time that is none"
            sizes = [int(size) for size in head["sizes"]]
            if file is None or len(sizes) != len(reply.jobs) or min(sizes) < 8:
                return {}, "its reply has no content"
            starts, messages = np.cumsum([0, *(-(-size // 8) * 8 for size in sizes)]).tolist(), Messages(file)
            self.shapes = self.shapes or self.due()
            if any(messages.shapes(start, size) not in self.shapes for start, size in zip(starts, sizes, strict=False)):
                return {}, "its reply is not of the shapes that this scenario has"
        except BrokenMessage as error:
            return {}, f"its reply is broken: {error}"
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
            return {}, "its reply is broken: its head makes no sense"
        place = self.folder / self.batch(reply)
        with writing(place):
            self.folder.mkdir(exist_ok=True)
            place.unlink(missing_ok=True)
            os.link(file, place)
        self.syncing.append(self.disk.submit(_sync, place))
        return dict(zip(reply.jobs, zip(starts, sizes, strict=False), strict=True)), ""

    def check(self, batch: str) -> None:
        """Raises FedsimError where a batch is not what came."""
        file = self.folder / batch
        if not file.is_file():
            raise FedsimError(f"{file}: missing; replies are kept where all of a run was served with `--keep-replies`")
        if file_name(file).hex() != batch.partition("-")[2]:
            raise FedsimError(f"{file}: damaged (its hash is wrong)")

    def read(self, ends: Sequence[End]) -> Rows:
        """The messages of jobs of one batch, as rows [m, ...]."""
        file = self.folder / ends[0].batch
        self.young.append(file)
        return Messages(file).rows([(end.start, end.size) for end in ends])

    @property
    def synced(self) -> bool:
        """Is all that was put by on the disk?"""
        return all(one.done() for one in self.syncing)

    def sync(self) -> None:
        """Waits until it is. Raises RunError where that can't be."""
        waiting, self.syncing = self.syncing, []
        for one in waiting:
            one.result()

    def saved(self, pending: Iterable[End]) -> None:
        """A checkpoint is on the disk: what was read before the last one is not needed again, but by those who have not landed."""
        waiting, done = {end.batch for end in pending}, self.old
        self.old, self.young = [*self.young, *(file for file in done if file.name in waiting)], []
        for file in done:
            if not (self.lasting or file.name in waiting):
                file.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    with writing(file), file.open("rb") as content:
        os.fsync(content.fileno())
