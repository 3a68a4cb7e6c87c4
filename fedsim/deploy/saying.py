"""What a worker says: once what it found and what happened, and ever anew how it stands."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import inf
from time import monotonic
from typing import Any

from fedsim.base.text import count, counted, duration, three_digits
from fedsim.transport.messages_pb2 import Order, Reply
from fedsim.transport.nodes import Nodes
from fedsim.transport.outlet import Outlet
from fedsim.transport.wire import EVALUATE

QUIET, WINDOW = 10.0, 10.0  # seconds: between words about the same trouble, and what a rate is over


class Saying:
    """Of trouble it says the first word at once, and then one each `QUIET` seconds."""

    def __init__(self, say: Callable[[str], None], outlet: Callable[[], Outlet]) -> None:
        self._say, self._outlet = say, outlet
        self.nodes, self.joined, self.measured = Nodes(), "", False
        self.since: float | None = None  # when the connection broke
        self.last = -inf  # when a trouble was said
        self.round, self.done, self.work = 0, 0, 0.0
        self.todo: set[int] = set()
        self.ends: deque[tuple[float, int]] = deque()

    def found(self, name: str, nodes: Sequence[int], facts: dict[str, Any]) -> None:
        """What training found; said when the server agrees."""
        self.nodes = Nodes.of(nodes)
        run = f"{facts['name']} {facts['hash'][:6]}" if "hash" in facts else name
        words = [counted(sum(facts["counts"]), "sample")] if "counts" in facts else []
        words += [f"{facts['model']} {_millions(facts['parameters'])}"] if "parameters" in facts else []
        words += [" ".join(facts[part] for part in ("device", "hardware") if facts.get(part))] if "device" in facts else []
        self.joined = f"joined {run} as {self.nodes.named}" + (f": {', '.join(words)}" if words else "")

    def state(self, text: str) -> None:
        """How the connection stands."""
        connected, now = self._outlet().connected, monotonic()
        if connected and (self.joined or self.since is not None):
            self._say(self.joined or f"connected again after {duration(now - (self.since or now))}")
            self.joined, self.since, self.last = "", None, -inf
            return
        if not connected and self.since is None:
            self.since = now
        if now - self.last >= QUIET:
            self._say(text)
            self.last = now

    def ordered(self, order: Order) -> None:
        if order.kind == EVALUATE:
            return
        self.todo |= {job.id for job in order.jobs} - {*order.done}
        self.round = max([self.round, *(job.round for job in order.jobs)])

    def replied(self, reply: Reply) -> None:
        if self.todo.isdisjoint(reply.jobs):
            return
        self.settled(reply.jobs)
        self.done, self.work = self.done + len(reply.jobs), self.work + reply.work
        self.ends.append((monotonic(), len(reply.jobs)))

    def settled(self, jobs: Iterable[int]) -> None:
        self.todo -= {*jobs}

    def line(self) -> str:
        """`nodes 0..3  round 12  34 jobs done, 2 to do  3.10 a second  0.21 s a job`; "" before it has joined."""
        outlet, now = self._outlet(), monotonic()
        if not self.measured and outlet.connected and (clock := outlet.clock):
            self.measured = True
            trip, ahead = clock
            said = (
                "the clocks agree"
                if abs(ahead) <= trip
                else f"the server's clock is {duration(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}"
            )
            self._say(f"{said}; {duration(trip)} there and back")
        if not self.nodes or self.joined:
            return ""
        while self.ends and now - self.ends[0][0] > WINDOW:
            self.ends.popleft()
        words = [self.nodes.named, f"round {count(self.round)}", f"{counted(self.done, 'job')} done, {count(len(self.todo))} to do"]
        words += [f"{three_digits(sum(jobs for _, jobs in self.ends) / WINDOW)} a second"] if self.ends else []
        words += [f"{duration(self.work / self.done)} a job"] if self.done else []
        words += [] if outlet.connected else [f"no connection for {duration(round(now - self.since))}" if self.since else "no connection"]
        return "  ".join(words)


def _millions(parameters: int) -> str:
    """`0.46 M`, `7.8 k`"""
    return f"{three_digits(parameters / 1e6)} M" if parameters >= 1e5 else f"{three_digits(parameters / 1e3)} k"
