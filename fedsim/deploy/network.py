"""What a server needs of a network: orders go out, and what happened comes in. fedsim's own is `transport.hub`."""

from collections.abc import Sequence
from typing import Protocol

from fedsim.transport.messages_pb2 import Order
from fedsim.transport.roll import Present
from fedsim.transport.session import Event


class Events(Protocol):
    """A queue of what happened: Joined, Left, Away, Back, Came."""

    def get(self, block: bool = True, timeout: float | None = None) -> Event:
        """The next one. Raises queue.Empty where none came in so many seconds."""

    def get_nowait(self) -> Event:
        """The next one. Raises queue.Empty where there is none."""


class Network(Protocol):
    """Workers by their names, and what they are told."""

    @property
    def events(self) -> Events:
        """What happened and was not taken yet."""

    @property
    def full(self) -> bool:
        """Whether replies wait at their workers because there is no room for them here."""

    @property
    def remembers(self) -> bool:
        """Whether workers live from job to job, and so know what they heard before."""

    @property
    def roll(self) -> list[Present]:
        """Who works here, and who is lost."""

    def start(self) -> list[str]:
        """The addresses it listens at. Raises FedsimError for one that can't be had."""

    def order(self, worker: bytes, order: Order) -> None:
        """Has a worker do jobs; the order's objects are in the store."""

    def settle(self, worker: bytes, kept: Sequence[int], gone: Sequence[int]) -> None:
        """Says what became of replies."""

    def cancel(self, worker: bytes, jobs: Sequence[int]) -> None:
        """Nobody waits for these jobs any more."""

    def stop(self, reason: str, drained: bool, grace: float = 5.0, failed: bool = False) -> None:
        """The run is over (`drained`; without a result where `failed`), or its server is."""
