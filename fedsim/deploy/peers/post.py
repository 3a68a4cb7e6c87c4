"""Training's end of the mesh: letters to other workers go out through a pipe to the process that has the network, theirs come in."""

from collections.abc import Iterable, Mapping
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fedsim.deploy.peers import letters


class Post:
    """`host`: the worker of each node; `here`: this one. Steps are the same ones at all workers, in the same order."""

    def __init__(self, pipe: Connection, folder: Path) -> None:
        self.pipe, self.folder = pipe, folder
        self.host: dict[int, int] = {}
        self.came: dict[tuple[int, int], bytes] = {}  # by step and node, what was not heard yet
        self.number = count()

    def say(self, step: int, said: Mapping[int, bytes], to: Mapping[int, Iterable[int]]) -> None:
        """Sends nodes' messages of a step to workers, to each those of the nodes that it hears."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for worker, nodes in to.items():
            alike.setdefault(tuple(sorted(nodes)), []).append(worker)
        for some, workers in alike.items():
            file = self.folder / "outbox" / f"{step}-{next(self.number)}"
            letters.write(file, {"step": step}, {node: said[node] for node in some})
            self.pipe.send(("letter", str(file), workers))

    def hear(self, step: int, nodes: Iterable[int]) -> list[bytes]:
        """Their messages of a step, waited for."""
        wanted = [(step, node) for node in nodes]
        while not all(one in self.came for one in wanted):
            self.read()
        return [self.came.pop(one) for one in wanted]

    def report(self, what: dict[str, Any]) -> None:
        """Tells the introducer."""
        self.pipe.send(("report", what))

    def read(self) -> None:
        """The next thing that the network has to say. Raises EOFError where it ended."""
        match self.pipe.recv():
            case ("peers", host):
                self.host = host
            case ("letter", name):
                file = Path(name)
                about = letters.head(file)
                self.came |= {(about["step"], node): message for node, message in letters.messages(file, about)}
                file.unlink()
