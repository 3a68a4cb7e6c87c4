"""Training's end of the mesh: letters to other workers go out through a pipe to the process that has the network, theirs come in."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from fedsim.base.errors import BrokenMessage
from fedsim.deploy.peers import letters

T = TypeVar("T")


class Post:
    """`host`: the worker of each node. Steps are the same ones at all workers, in the same order; a tag is a step, and for what only one
    worker hears, `STEP>NODE`. `gone`: nodes that are lost, and the last step in which they take part.

    No step's letters leave before those of the one before have arrived, so that of a node that is lost only one step's may be missing
    anywhere.
    """

    def __init__(self, pipe: Connection, folder: Path) -> None:
        self.pipe, self.folder = pipe, folder
        self.host: dict[int, int] = {}
        self.came: dict[tuple[str, int], bytes] = {}  # by tag and node, what was not heard yet
        self.last: dict[int, tuple[int, int, str, bytes]] = {}  # of each node the last step, its round, tag and message
        self.gone: dict[int, int] = {}
        self.number = count()
        self.away: Counter[int] = Counter()  # letters that have not arrived, by worker
        self.shut: set[int] = set()  # workers to which nobody listens any more
        self.verdict = -1, ""  # after the evaluation at that place: why it ends, "" where it goes on
        self.changed: Callable[[], None] = lambda: None  # called when nodes are gone

    def say(self, tag: str, round: int, said: Mapping[int, bytes], to: Mapping[int, Iterable[int]]) -> None:
        """Sends nodes' messages to workers, to each those of the nodes that it hears."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for worker, nodes in to.items():
            if worker not in self.shut:
                alike.setdefault(tuple(sorted(nodes)), []).append(worker)
        for some, workers in alike.items():
            file = self.folder / "outbox" / f"{tag}-{next(self.number)}"
            letters.write(file, {"tag": tag, "round": round}, {node: said[node] for node in some})
            self.away.update(workers)
            self.pipe.send(("letter", str(file), workers))

    def hear(self, tag: str, nodes: Iterable[int], read: Callable[[bytes], T]) -> dict[int, T]:
        """What `read` makes of the messages of those of the nodes that take part in this step; waits for them, and until all that was
        sent has arrived, too. A message that it can't read is as if it had not come, and its worker is told of."""
        step, wanted, found = step_of(tag), [*nodes], dict[int, T]()
        while True:
            for node in wanted:
                if (message := self.came.pop((tag, node), None)) is not None:
                    try:
                        found[node] = read(message)
                    except BrokenMessage as error:
                        self.last[node] = step - 1, self.last[node][1] - 1, tag, b""
                        self.pipe.send(("broken", self.host[node], str(error)))
            due = [node for node in wanted if self.member(node, step)]
            if all(node in found for node in due) and not self._busy:
                return {node: found[node] for node in due}
            self.read()

    def member(self, node: int, step: int) -> bool:
        """Does a node take part in a step?"""
        return self.gone.get(node, step) >= step

    @property
    def _busy(self) -> bool:
        return any(count for worker, count in self.away.items() if worker not in self.shut)

    def report(self, what: dict[str, Any]) -> None:
        """Tells the introducer."""
        self.pipe.send(("report", what))

    def read(self) -> None:
        """The next thing that the network has to say. Raises EOFError where it ended."""
        match self.pipe.recv():
            case ("peers", host):
                self.host = host
            case ("letter", name):
                self._letter(Path(name))
            case ("arrived", worker):
                self.away[worker] -= 1
            case ("verdict", place, why):
                self.verdict = place, why
            case ("suspect", number, nodes):
                self.shut |= {self.host[node] for node in nodes}
                self.report({"suspect": number, "last": {node: self.last[node][:2] if node in self.last else (-1, -1) for node in nodes}})
            case ("epoch", gone, forward):
                self.gone |= gone
                for node, workers in forward.items():
                    _, round, tag, message = self.last[node]
                    self.say(tag, round, {node: message}, {worker: [node] for worker in workers})
                self.changed()

    def _letter(self, file: Path) -> None:
        about = letters.head(file)
        tag, step = about["tag"], step_of(about["tag"])
        for node, message in letters.messages(file, about):
            self.came[tag, node] = message
            if step >= self.last.get(node, (-1,))[0]:
                self.last[node] = step, about["round"], tag, message
        file.unlink()


def step_of(tag: str) -> int:
    """The step of a tag."""
    return int(tag.partition(">")[0])
