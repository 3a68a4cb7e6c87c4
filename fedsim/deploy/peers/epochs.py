"""Membership: which nodes take part until which step, decided so that both ends of every edge agree and nobody has passed it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SILENT = -1  # nothing was ever heard of it

Tell = Callable[[bytes, str, Mapping[str, Any]], int]  # a worker, something of a kind; the number by which it answers


class Last(NamedTuple):
    """The last step of which anybody has a node's message, and the round of its job that is in it."""

    step: int
    round: int


class Epochs:
    """Whoever is silent is out. First all others stop listening to it and say what they have heard of it last; that step is the last in
    which it takes part, for nobody can have passed the next one without it. Who lacks its message of then gets it from who has it.
    """

    def __init__(self, tell: Tell) -> None:
        self.tell = tell
        self.workers: dict[bytes, Sequence[int]] = {}  # that were introduced
        self.out: list[bytes] = []  # in the order in which they were lost
        self.gone: dict[int, Last] = {}  # nodes that were decided on
        self.asked: dict[int, bytes] = {}  # workers that have not answered yet
        self.heard: dict[bytes, dict[int, Last]] = {}
        self.suspects: dict[bytes, set[bytes]] = {}  # by whom

    @property
    def live(self) -> list[bytes]:
        return [worker for worker in self.workers if worker not in self.out]

    def suspect(self, worker: bytes, by: bytes) -> None:
        """A neighbour has heard nothing of a worker for the time of silence, or nothing that makes sense; one alone may be wrong."""
        self.suspects.setdefault(worker, set()).add(by)
        if len(self.suspects[worker] - {*self.out}) >= min(2, len(self.live) - 1):
            self.lost(worker)

    def lost(self, worker: bytes) -> None:
        """Nobody waits for it any more."""
        if worker not in self.workers or worker in self.out:
            return
        self.out.append(worker)
        nodes = [node for one in self.out for node in self.workers[one]]
        self.heard = {}
        self.asked = {self.tell(one, "suspect", {"nodes": nodes}): one for one in self.live}

    def answer(self, number: int, last: Mapping[str, Sequence[int]]) -> list[int]:
        """What a worker has heard last of the silent nodes; those on which that decides."""
        worker = self.asked.pop(number, None)
        if worker is None:
            return []
        self.heard[worker] = {int(node): Last(*one) for node, one in last.items()}
        return [] if self.asked else self._decide()

    def _decide(self) -> list[int]:
        new, lacks = list[int](), dict[bytes, dict[int, list[int]]]()
        for worker in self.workers:
            for node in self.workers[worker] if worker in self.out else ():
                found = {one: heard[node] for one, heard in self.heard.items()}
                best = max(found.values(), default=Last(SILENT, SILENT))
                if node not in self.gone:
                    self.gone[node] = best
                    new.append(node)
                holder = next((one for one, last in found.items() if last.step == self.gone[node].step), None)
                behind = [at for at, one in enumerate(self.workers) if one in found and found[one] < self.gone[node]]
                if holder is not None and behind:
                    lacks.setdefault(holder, {})[node] = behind
        gone = {node: last.step for node, last in self.gone.items()}
        for worker in self.live:
            self.tell(worker, "epoch", {"gone": gone, "forward": lacks.get(worker, {})})
        return new
