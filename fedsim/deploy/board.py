"""How a deployed run stands, for people: who works for it, what they carry, what they do. Written each second, told to who watches."""

import json
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from fedsim.base.errors import FedsimError
from fedsim.base.files import write_json
from fedsim.deploy.network import Network
from fedsim.run.folders import WORKERS, RunFolder
from fedsim.transport.nodes import Nodes, parse
from fedsim.transport.roll import Present

if TYPE_CHECKING:
    from fedsim.run.runner import Run

EVERY, WINDOW = 1.0, 10  # seconds between looks, and how many of them a rate is over
NOTHING = {"status": "waiting", "reason": "", "doing": "", "round": 0, "seconds": 0.0, "end": None, "accuracy": None, "loss": None}
NOTHING |= {"updates": 0, "bytes": 0}
SUMS = ("up", "down", "jobs")


class Board:
    """`state` is the last that was written; servers of the same run before this one are counted in. `told` says how far the run is, as
    NOTHING has it; `run` is built later, or never where the run is a Flower app's."""

    def __init__(self, name: str, label: str, nodes: int, hub: Network, folder: Path) -> None:
        self.name, self.label, self.nodes, self.hub, self.folder, self.began = name, label, nodes, hub, folder, time()
        self.run: Run | None = None
        self.told: Callable[[], dict[str, Any]] = lambda: _told_of(self.run) if self.run else NOTHING
        self.before: dict[str, dict[str, Any]] = {}  # by worker, what the last server knew
        self.looks: deque[tuple[float, dict[str, dict[str, Any]]]] = deque(maxlen=WINDOW + 1)
        self.state: dict[str, Any] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fedsim board", daemon=True)
        with suppress(FedsimError):  # it is lost, and that is all
            if old := RunFolder(folder).workers:
                self.before = {one["id"]: _gone(one, old["at"]) for one in old["workers"]}

    def start(self) -> None:
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Writes how it stood in the end."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
            self.look()

    def seen(self) -> bytes:
        """For who watches; any thread may ask."""
        return json.dumps(self.state).encode()

    def about(self) -> dict[str, Any]:
        """What run.json says of the workers."""
        names = ("id", "name", "nodes", "device", "hardware", "plan", "samples", "version", "torch", "up", "down", "jobs")
        workers = [{name: one[name] for name in names} for one in self._workers().values()]
        return {"deployed": {"workers": workers, **{f"carried_{way}": sum(one[way] for one in workers) for way in ("up", "down")}}}

    def away(self, before: bool, without: Iterable[int] = ()) -> list[dict[str, Any]]:
        """Workers without a connection that are not lost yet and whose nodes no other has, nor are `without`; with those that only a
        server `before` has seen."""
        roll = self.hub.roll
        done = Nodes.of([*without, *(node for one in roll if one.state in ("there", "preparing") for node in one.nodes)])
        seen = {_name(one) for one in roll}
        away = [one for name, one in self._workers().items() if one["state"] == "away" and (before or name in seen)]
        return [one for one in away if (parse(one["nodes"]) or Nodes()).without(done)]

    def look(self) -> None:
        """Looks, and writes it down where there is a run to write to."""
        workers, run, now = self._workers(), self.run, monotonic()
        self.looks.append((now, workers))
        then, old = self.looks[0]
        for name, one in workers.items():
            for what in SUMS:
                one[f"{what}_rate"] = (one[what] - old.get(name, {what: 0})[what]) / (now - then) if now > then else 0.0
        self.state = {
            "name": self.name,
            "label": self.label,
            "folder": self.folder.name,
            "at": time(),
            "began": self.began,
            "nodes": self.nodes,
            "full": self.hub.full,
            **self.told(),
            "workers": [*workers.values()],
        }
        if run and run.writer:
            with suppress(FedsimError):  # a full disk; the run says so itself
                write_json(self.folder / WORKERS, self.state)

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.look()

    def _workers(self) -> dict[str, dict[str, Any]]:
        """By worker."""
        now = dict[str, dict[str, Any]]()
        for present in self.hub.roll:
            one = _told(present)
            old = self.before.get(one["id"], dict.fromkeys(SUMS, 0))
            now[one["id"]] = one | {what: one[what] + old[what] for what in SUMS}
        return self.before | now


def _told_of(run: "Run") -> dict[str, Any]:
    """How far a run is."""
    last, info = run.records[-1] if run.records else {}, run.writer.info if run.writer else {}
    return {
        "status": info.get("status", "waiting"),
        "reason": run.reason,
        "doing": run.doing,
        "round": run.fed.round,
        "seconds": run.seconds,
        "end": None if run.stop.seconds is None else float(run.stop.seconds),
        "accuracy": last.get("test/accuracy"),
        "loss": last.get("test/loss"),
        "updates": run.fed.ledger.updates,
        "bytes": run.fed.ledger.bytes,
    }


def _name(one: Present) -> str:
    return sha256(one.worker).hexdigest()[:12]


def _told(one: Present) -> dict[str, Any]:
    """A worker's name is not told, for who has it can pass for the worker; a hash of it is."""
    facts = json.loads(one.facts) if one.facts else {}
    words = {name: str(facts.get(name, ""))[:80] for name in ("device", "hardware", "plan", "torch")}
    return {
        "id": _name(one),
        "name": one.name,
        "address": one.address,
        "nodes": str(Nodes.of(one.nodes)),
        "state": one.state,
        "since": one.since,
        "why": one.why,
        "version": one.version[:80],
        "samples": sum(facts.get("counts", ())),
        "round_trip": one.round_trip,
        "ahead": one.ahead,
        "up": one.carried.up,
        "down": one.carried.down,
        "jobs": one.carried.jobs,
        "out": one.out,
        "came": one.came,
        **words,
    }


def _gone(one: dict[str, Any], at: float) -> dict[str, Any]:
    """As the last server knew it, when this one has not heard of it."""
    if one["state"] == "lost":
        return one
    still = dict.fromkeys((f"{what}_rate" for what in SUMS), 0.0)
    return one | still | {"state": "away", "since": at, "out": 0, "came": 0, "why": "not seen since the server began again"}
