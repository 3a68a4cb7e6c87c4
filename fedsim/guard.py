"""Guarding a run: checkpoints when they are due, and stopping by hand where nothing is half done."""

import signal
from time import monotonic
from typing import TYPE_CHECKING, Any

from fedsim import checkpoint
from fedsim.clock import FOREVER
from fedsim.errors import RunError
from fedsim.runfolder import code_hash

if TYPE_CHECKING:
    from fedsim.runner import Run
    from fedsim.scenario.settings import Checkpoint

HELD = 1 << 28  # bytes of a state of which a copy is held
PATIENCE = 10  # seconds from the first Ctrl-C until a run is interrupted wherever it is


class Guard:
    """Asked at the top of a schedule's loop. `asked`: somebody wants the run to stop there."""

    def __init__(self, settings: "Checkpoint") -> None:
        self.settings, self.asked, self.stopped = settings, False, False
        self.saved, self.turn = monotonic(), 0
        self.top, self.pace = 0, 0.0  # when the last round began, and ticks that a round takes
        self.held: tuple[dict[str, Any], checkpoint.State] | None = None

    def __call__(self, run: "Run") -> None:
        """Writes a checkpoint where one is due. Raises KeyboardInterrupt, after a checkpoint, where the run is to stop."""
        every = self.settings.every
        if every and run.writer and (self.asked or self._due(run)):
            self._save(run)
        self._hold(run)
        if self.asked:
            signal.alarm(0)
            self.stopped = True
            raise KeyboardInterrupt

    def keep(self, run: "Run") -> None:
        """The last checkpoint, from which a longer run goes on: of the top of a round at which a stop is reached."""
        if self.settings.every and run.writer:
            self._save(run)

    def keep_held(self, run: "Run") -> None:
        """The same where time was up within a round: of the top of that round, or of one shortly before."""
        if self.held and run.writer:
            self._write(run, *self.held)

    def _hold(self, run: "Run") -> None:
        """A copy of the state where time may be up within the coming round: a round is hardly twice as long as the last ones."""
        fed = run.fed
        if run.end >= FOREVER or not (self.settings.every and run.writer):
            return
        self.pace, self.top = max(fed.now - self.top, 0.9 * self.pace), fed.now
        if run.end - fed.now <= 2 * self.pace:
            fed.flush()
            state = checkpoint.collect(run)
            if sum(one.nbytes for one in state.arrays) <= HELD:
                self.held = self._about(run), checkpoint.copied(state)

    def start(self, run: "Run") -> None:
        """Intervals count from here."""
        every = self.settings.every
        self.saved, self.turn = monotonic(), run.fed.round // every.rounds if every and every.rounds else 0

    def _due(self, run: "Run") -> bool:
        every = self.settings.every
        assert every
        if every.rounds:
            return run.fed.round // every.rounds > self.turn
        return monotonic() - self.saved >= (every.seconds or 0)

    def _save(self, run: "Run") -> None:
        """A run whose checkpoint can't be written goes on; the ones before it stay."""
        run.fed.flush()
        self._write(run, self._about(run), checkpoint.collect(run))
        self.held = None
        self.start(run)

    def _write(self, run: "Run", about: dict[str, Any], state: checkpoint.State) -> None:
        assert run.writer
        began, place = monotonic(), f"checkpoint after round {about['round']}"
        try:
            checkpoint.add(run.writer.folder, about["version"], about, state, self.settings.keep)
            run.log(f"{place}, written in {monotonic() - began:.2f} s")
        except (RunError, OSError) as error:
            run.log(f"no {place}: {error}")

    def _about(self, run: "Run") -> dict[str, Any]:
        """What must be known before a state is put back."""
        assert run.writer
        facts = {"round": run.fed.round, "version": run.fed.version, "wall_seconds": monotonic() - run.began}
        log = [run.fed.replicas.log.length, run.fed.replicas.log.sum] if run.fed.replicas else []
        return facts | {"records": len(run.records), "segments": [*run.fed.ledger.sums], "log": log, "run": identity(run.writer.info)}


def facts_of(run: "Run") -> dict[str, Any]:
    """What run.json says of a run from its start."""
    fed, loaded = run.fed, run.loaded
    head = {"name": run.scenario.name, "label": loaded.label, "variant": loaded.variant, "seed": loaded.seed}
    head |= {"changed": dict(loaded.changed), "hash": loaded.hash, "code": code_hash(loaded.own), "target": run.evaluation.target}
    groups = {name: [ids.start, ids.stop] for name, ids in fed.task.groups.items()}
    task = {
        "nodes": fed.nodes,
        "peers": fed.schedule.peers,
        "parameters": fed.task.layout.size,
        "data": fed.task.hash(),
        "groups": groups,
        "tick": fed.nature.per_second,
    }
    head |= {"evaluated": [run.rounds, run.interval], "noise": fed.release.noise if fed.release else None}
    head |= {"attackers": liars.about} if (liars := fed.nature.liars) else {}
    limits = {"concurrency": fed.schedule.concurrency_limit(fed.nodes), "max_staleness": fed.schedule.staleness_limit()}
    return head | fed.worker.about | task | limits


def log_facts(run: "Run") -> dict[str, Any]:
    """Whose log of messages a log is."""
    facts = facts_of(run)
    return {word: facts[name] for word, name in (("scenario", "hash"), ("seed", "seed"), ("data", "data"), ("parameters", "parameters"))}


SAME = ("version", "hash", "seed", "data", "parameters", "tick", "code", "device", "plan", "threads", "chunk", "precision", "noise")
PACKAGES = ("torch", "numpy")


def identity(info: dict[str, Any]) -> dict[str, Any]:
    """Of a run.json: all that the bits of a result depend on."""
    return {name: info.get(name) for name in SAME} | {name: info.get("versions", {}).get(name) for name in PACKAGES}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`seed was 0, is 1`, for each entry of two identities that differs."""
    words = {"version": "fedsim's version", "data": "the data's hash", "hash": "the scenario's hash", "code": "the hash of own code"}
    words |= {"tick": "ticks a second", "noise": "the noise that `privacy` needs for the planned end"}
    return [f"{words.get(name, name)} was {old.get(name)}, is {new.get(name)}" for name in new if old.get(name) != new.get(name)]


class ByHand:
    """While it lasts, Ctrl-C and SIGTERM ask the run at work to stop; a second one, or none at work, or no stop in time, interrupts."""

    def __init__(self) -> None:
        self.guard: Guard | None = None

    def __enter__(self) -> "ByHand":
        self.usual = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        for number, handler in self.usual.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: object) -> None:
        if self.guard is None or self.guard.asked:
            signal.alarm(0)
            raise KeyboardInterrupt
        self.guard.asked = True
        signal.alarm(PATIENCE)
