"""One other worker as a mesh sees it, and whose mesh it is."""

from pathlib import Path
from typing import Protocol

from fedsim.deploy.peers.door import Neighbour
from fedsim.transport.messages_pb2 import Object, Reply
from fedsim.transport.outlet import Outlet


class Owner(Protocol):
    """Whose mesh it is."""

    def letter(self, file: Path) -> None: ...
    def arrived(self, place: int) -> None: ...
    def silent(self, worker: bytes) -> None: ...
    def relay(self, worker: bytes, number: int, sealed: Object) -> None: ...


class Line:
    """What one other worker is sent, by number, until it has arrived; and how."""

    def __init__(self, who: Neighbour) -> None:
        self.who = who
        self.waiting: dict[int, tuple[Object, Path]] = {}
        self.acks: dict[int, Reply] = {}  # of letters that came on a stream that we opened
        self.outlet: Outlet | None = None  # where we dial
        self.joined = False  # where we are dialled: it is there
        self.shut = False  # nobody listens to it any more
        self.since: float | None = None  # where we dial: when it was there last
        self.reached = False  # it was there once
        self.relayed = False  # letters go through the introducer
