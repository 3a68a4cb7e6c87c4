"""What a server says of its workers as they come and go."""

import json
import logging
from collections.abc import Callable
from time import localtime, monotonic, strftime
from typing import Any

from fedsim.base.text import counted, duration
from fedsim.base.visible import visible
from fedsim.transport.nodes import Nodes
from fedsim.transport.session import Away, Back, Joined, Left

QUIET = 10.0  # seconds in which of a worker whose connection comes and goes nothing more is said
MANY = 5  # lines of the log in so long


class Telling:
    """Call it with each event of the network; `silence`: seconds for which a worker may be away."""

    def __init__(self, silence: float, say: Callable[[str], None]) -> None:
        self.silence, self.say = silence, say
        self.away: dict[bytes, float] = {}  # since when, of those whose going was said
        self.names: dict[bytes, tuple[str, Nodes]] = {}

    def __call__(self, event: Any) -> None:
        match event:
            case Joined(worker, name, nodes, facts):
                self.names[worker], self.away = (name, Nodes.of(nodes)), {w: at for w, at in self.away.items() if w != worker}
                self.say(f"{name}: {Nodes.of(nodes).named} joined{_found(facts)}")
            case Left(worker, nodes, why):
                self.away.pop(worker, None)
                self.say(f"{self.named(worker)}: {Nodes.of(nodes).named} lost: {why} (since {moment()})")
            case Away(worker) if monotonic() - self.away.get(worker, -QUIET) >= QUIET:
                self.away[worker] = monotonic()
                mine = self.names[worker][1].named if worker in self.names else "its nodes"
                silence = duration(self.silence)
                self.say(f"{self.named(worker)}: its connection broke at {moment()}; {mine} may be away for {silence}")
            case Back(worker) if worker in self.away:
                self.say(f"{self.named(worker)}: back after {duration(monotonic() - self.away[worker])}")

    def named(self, worker: bytes) -> str:
        return self.names[worker][0] if worker in self.names else "a worker"


def moment(at: float | None = None) -> str:
    """`14:03:21`"""
    return strftime("%H:%M:%S", localtime(at))


def _found(facts: bytes) -> str:
    found = json.loads(facts or b"{}")
    if "counts" not in found:
        return ""
    device = " ".join(str(found[name]) for name in ("device", "hardware") if found.get(name))
    return f": {counted(sum(found['counts']), 'sample')}, {device}, plan {found.get('plan')}"


class Logged(logging.Handler):
    """What the network's log has, such as who was refused and why, as lines; of very many only some. Use as a context."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.say, self.begin, self.said, self.left_out = say, 0.0, 0, 0
        self.log = logging.getLogger("fedsim.transport")

    def __enter__(self) -> "Logged":
        self.log.addHandler(self)
        self.log.setLevel(logging.INFO)
        return self

    def __exit__(self, *_: object) -> None:
        self.log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        now = monotonic()
        if now - self.begin > QUIET:
            self.begin, self.said = now, 0
        self.said += 1
        if self.said > MANY:
            self.left_out += 1
            return
        more = f" ({counted(self.left_out, 'line')} like this left out)" if self.left_out else ""
        self.say(visible(record.getMessage()) + more)
        self.left_out = 0
