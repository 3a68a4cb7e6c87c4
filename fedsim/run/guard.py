"""Guarding a run: checkpoints when they are due, and stopping by hand where nothing is half done."""

import signal
from contextlib import suppress
from threading import current_thread, main_thread
from time import monotonic
from typing import Any, Protocol

from fedsim.base.errors import RunError
from fedsim.federation.federation import Federation
from fedsim.federation.replicas import Replicas
from fedsim.run import checkpoint
from fedsim.run.facts import identity
from fedsim.run.runfolder import RunWriter
from fedsim.scenario.settings import Checkpoint, Stop

HELD = 1 << 28  # bytes of a state of which a copy is held
PATIENCE = 10  # seconds from the first Ctrl-C until a run is interrupted wherever it is


class Guarded(Protocol):
    """A run: its federation, folder, end and next evaluation (ticks), evaluations so far, and when it began (the host's clock)."""

    fed: Federation
    writer: RunWriter | None
    stop: Stop
    end: int
    due: int
    records: list[dict[str, Any]]
    began: float

    def decisive(self) -> bool:
        """May the next evaluation end the run?"""

    def log(self, text: str) -> None:
        """A line in log.txt, which nothing depends on."""


class Pace:
    """How long rounds take by a clock; what comes within the next round is told by the last ones: it is hardly twice as long."""

    def __init__(self) -> None:
        self.top, self.longest = 0.0, 0.0

    def begun(self, now: float) -> float:
        """A round begins now; when it may last until."""
        self.longest, self.top = max(now - self.top, 0.9 * self.longest), now
        return now + 2 * self.longest


class Guard:
    """Asked at the top of a schedule's loop. `asked`: somebody wants the run to stop there."""

    def __init__(self, settings: Checkpoint) -> None:
        self.settings, self.asked, self.stopped = settings, False, False
        self.saved, self.turn = monotonic(), 0
        self.ticks, self.seconds = Pace(), Pace()  # by the run's clock and by the host's
        self.held: tuple[dict[str, Any], checkpoint.State] | None = None

    def __call__(self, run: Guarded) -> None:
        """Writes a checkpoint where one is due. Raises KeyboardInterrupt, after a checkpoint, where the run is to stop."""
        every, asked = self.settings.every, self.asked  # a signal may come between any two lines: it is heard here, or a round later
        if every and run.writer and (asked or self._due(run)):
            self._save(run)
        self._hold(run)
        if asked:
            signal.alarm(0)
            self.stopped = True
            raise KeyboardInterrupt

    def keep(self, run: Guarded) -> None:
        """The last checkpoint, from which a longer run goes on: of the top of a round at which a stop is reached."""
        if self.settings.every and run.writer:
            with suppress(RunError):  # events that can't be written are told when the run is closed, after its last evaluation
                self._save(run)

    def keep_held(self, run: Guarded) -> None:
        """The same where a run ended within a round: of the top of that round, or of one shortly before."""
        if self.held and run.writer:
            self._write(run, *self.held)

    def _hold(self, run: Guarded) -> None:
        """A copy of the state where the run may end within the coming round."""
        fed = run.fed
        if not (self.settings.every and run.writer):
            return
        until, over = self.ticks.begun(fed.now), self.seconds.begun(monotonic() - run.began)
        near = run.end <= until or (run.due <= until and run.decisive())
        if near or (run.stop.wall is not None and run.stop.wall <= over):
            fed.flush()
            state = checkpoint.collect(run)
            if sum(one.nbytes for one in state.arrays) <= HELD:
                self.held = self._about(run), checkpoint.copied(state)

    def start(self, run: Guarded) -> None:
        """Intervals count from here."""
        every = self.settings.every
        self.saved, self.turn = monotonic(), run.fed.round // every.rounds if every and every.rounds else 0

    def _due(self, run: Guarded) -> bool:
        every = self.settings.every
        assert every
        if every.rounds:
            return run.fed.round // every.rounds > self.turn
        return monotonic() - self.saved >= (every.seconds or 0)

    def _save(self, run: Guarded) -> None:
        """A run whose checkpoint can't be written goes on; the ones before it stay."""
        run.fed.flush()
        self._write(run, self._about(run), checkpoint.collect(run))
        self.held = None
        self.start(run)

    def _write(self, run: Guarded, about: dict[str, Any], state: checkpoint.State) -> None:
        assert run.writer
        began, place = monotonic(), f"checkpoint after round {about['round']}"
        try:
            checkpoint.add(run.writer.folder, about["version"], about, state, self.settings.keep)
            run.fed.flight.saved()
            run.log(f"{place}, written in {monotonic() - began:.2f} s")
        except (RunError, OSError) as error:
            run.log(f"no {place}: {error}")

    def _about(self, run: Guarded) -> dict[str, Any]:
        """What must be known before a state is put back."""
        assert run.writer
        facts = {"round": run.fed.round, "version": run.fed.version, "wall_seconds": monotonic() - run.began}
        replicas = run.fed.companion(Replicas)
        log = [replicas.log.length, replicas.log.sum] if replicas else []
        return facts | {"records": len(run.records), "segments": [*run.fed.ledger.sums], "log": log, "run": identity(run.writer.info)}


class Asked(Protocol):
    """What can be asked to stop."""

    asked: bool


class ByHand:
    """While it lasts, Ctrl-C and SIGTERM ask the run at work to stop; a second one, or none at work, or no stop in time, interrupts."""

    def __init__(self, *signals: signal.Signals) -> None:
        """`signals` ask instead of those."""
        self.signals = signals or (signal.SIGINT, signal.SIGTERM)
        self.guard: Asked | None = None

    def __enter__(self) -> "ByHand":
        told = (*self.signals, signal.SIGALRM) if current_thread() is main_thread() else ()  # others are told nothing
        self.usual = {number: signal.signal(number, self._asked) for number in told}
        return self

    def __exit__(self, *_: object) -> None:
        if self.usual:
            signal.alarm(0)
        for number, handler in self.usual.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: object) -> None:
        if self.guard is None or self.guard.asked:
            signal.alarm(0)
            raise KeyboardInterrupt
        self.guard.asked = True
        signal.alarm(PATIENCE)
