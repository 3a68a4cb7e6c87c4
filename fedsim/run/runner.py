"""From a checked scenario to a finished run: builds the federation, evaluates, stops, and keeps the run's folder."""

import math
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

from torch import Tensor

from fedsim.base.clock import FOREVER
from fedsim.base.errors import Diverged, FedsimError, Finished, RunError, blame, comes_again
from fedsim.base.rows import model_hash
from fedsim.base.text import counted
from fedsim.federation.buffers import statistics_of
from fedsim.federation.federation import Federation
from fedsim.federation.replicas import Replicas
from fedsim.metrics.metrics import EachClient
from fedsim.run.crossing import crossing
from fedsim.run.doubts import doubts, nothing_merged
from fedsim.run.facts import facts_of, log_facts
from fedsim.run.folders import BEST, LAST
from fedsim.run.guard import Guard
from fedsim.run.measured import Measured
from fedsim.run.runfolder import RunWriter, write_scenario
from fedsim.run.stops import MEASURED, by_name, progress, reached
from fedsim.scenario.loader import Loaded

Report = Callable[["Run"], None]
FLUSH_SECONDS, FLUSH_EVENTS = 60.0, 500_000
GRAPH = 1000  # peers whose graph is kept for a picture


class Run(Measured):
    """One run, and the watch of its federation. `report` is called after each evaluation and now and then between."""

    keeps: ClassVar[tuple[str, ...]] = ("due", "measured", "evaluated_round", "clients", "best", "fed")

    def __init__(self, loaded: Loaded, fed: Federation, report: Report | None = None) -> None:
        super().__init__(loaded, fed, report)
        self.guard, self.until = Guard(self.scenario.checkpoint), FOREVER  # a merge at which it ends, whatever the scenario says
        self.beside = 1  # runs at work on this machine at a time, of which its wall seconds tell
        self.again = self.diverged = False  # it failed, and would again; by its numbers alone
        self.about: Callable[[], dict[str, Any]] = dict  # what else run.json says in the end
        self.flushed = self.began
        fed.watch = self

    # The watch

    def running(self, fed: Federation) -> bool:
        """Evaluates and stops between rounds."""
        self._keep_the_end()
        if self.measured[0] < 0 or (self.rounds and fed.round % self.rounds == 0 and fed.round != self.evaluated_round):
            self._measure()
            self._keep_the_end()
        self.wall = monotonic() - self.began
        if monotonic() - self.flushed > FLUSH_SECONDS or fed.ledger.used > FLUSH_EVENTS:
            fed.flush()
            self.flushed = monotonic()
        if self.report:
            self.report(self)
        if not self.reason:
            self.guard(self)
        return not self.reason

    def _keep_the_end(self) -> None:
        """Where a stop is reached, the state is kept before anything is done that a longer run does not do."""
        if not self.reason and (reason := self.ended()):
            self.reason = reason
            self.guard.keep(self)

    def evaluate(self, fed: Federation) -> None:
        """The evaluation that is due by the clock. Raises Finished where it ends the run."""
        self._measure()
        self.due += self.interval
        self.reason = self.reason or reached(self.stop, self.so_far, MEASURED)
        if self.reason or self.overdue():
            raise Finished

    def overdue(self) -> bool:
        """Is the host's time up?"""
        wall = self.stop.wall
        if wall is None or monotonic() - self.began < wall:
            return False
        self.reason = self.reason or by_name("wall", self.stop)
        return True

    # From outside

    def execute(self, folder: Path, command: str = "") -> dict[str, Any]:
        """Runs to the end and keeps all in the folder, or goes on in the one it has; run.json's content. Errors end as status `failed`.

        Raises FedsimError where the folder can't be begun.
        """
        if not self.writer:
            self.open(folder, command)
        assert self.writer
        self.guard.start(self)
        self.fed.worker.ends = math.inf if self.stop.wall is None else self.began + float(self.stop.wall)
        try:
            status = "failed"
            finished = self.fed.run()
            if not self.reason:
                self.reason = by_name("wall" if self.overdue() else "seconds", self.stop)
            self.guard.keep_held(self)
            if finished or self.measured != (self.fed.version, self.fed.now):
                self._measure()
            status = "finished"
            if not self.fed.ledger.updates:
                status, self.reason = "failed", nothing_merged(self.fed, self.reason)
                self.again = not self.overdue()  # a later end by the host's time may bring something
        except KeyboardInterrupt:
            status, self.reason = "stopped", "by hand" if self.guard.stopped else "by hand, within a round"
        except FedsimError as error:
            self.reason, self.again, self.diverged = str(error), comes_again(error), isinstance(error, Diverged)
        except (Exception, SystemExit) as error:  # a user's merge or metric
            self.again = comes_again(error)
            self.reason = f"round {self.fed.round + 1}: {blame(error)}"
            self.log(traceback.format_exc())
        finally:
            info = self.close(status)
        return info

    def open(self, folder: Path, command: str = "") -> None:
        """Starts the run's folder. Raises FedsimError where it can't be written."""
        writer = RunWriter(folder)
        try:
            self._begin(writer, command)
        except RunError as error:
            with suppress(RunError):
                writer.begin(self.facts | {"command": command}, status="failed", reason=f"it could not begin: {error}")
            writer.make_room()
            writer.release()
            raise
        self.attach(writer)

    def _begin(self, writer: RunWriter, command: str) -> None:
        """The files that a run has from its start."""
        writer.hold_room()
        about = self.fed.worker.about
        write_scenario(writer.folder, self.loaded.resolved, self.loaded.own)
        writer.log(f"plan {about['plan']}: {about['plan_reason']}")
        if self.fed.nature.liars:
            writer.log(f"attackers: {self.fed.nature.liars}")
        if self.fed.task.classes:
            writer.labels(self.fed.task.some(), self.fed.task.label_counts())
        if self.fed.nodes <= GRAPH and (graph := self.fed.schedule.graph(self.fed)):
            writer.graph(graph)
        writer.begin(self.facts | {"command": command} | ({"beside": self.beside} if self.beside > 1 else {}))
        for doubt in doubts(self.fed, self.stop):
            writer.log(f"warning: {doubt}")

    def attach(self, writer: RunWriter) -> None:
        """From now on everything is kept in the writer's folder."""
        self.writer, self.fed.ledger.folder = writer, writer.folder / "events"
        if replicas := self.fed.companion(Replicas):
            replicas.log.open(log_facts(self.facts), writer.folder / "messages.log")
        self.flushed, self.began = monotonic(), writer.began

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json says of it from its start."""
        return facts_of(self.loaded, self.fed, (self.rounds, self.interval), self.evaluation.target)

    @property
    def hopeless(self) -> dict[str, bool]:
        """What run.json says of a run that failed, where a resume can't help."""
        return {"again": True} | ({"diverged": True} if self.diverged else {}) if self.again else {}

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1, by the stop that is nearest; 0 where no end is known."""
        return progress(self.stop, self.so_far)

    @property
    def so_far(self) -> dict[str, float]:
        """What has been spent and reached, by the name of its stop."""
        fed, ledger = self.fed, self.fed.ledger
        return {
            "rounds": fed.round,
            "updates": ledger.updates,
            "steps": ledger.steps,
            "bytes": ledger.bytes,
            "seconds": math.inf if (now := self._now()) >= self.end else now / fed.nature.per_second,
            "wall": monotonic() - self.began,
            "accuracy": self._smooth("test/accuracy"),
            "epsilon": self.spent,
            "loss": self._smooth("test/loss"),
            "patience": self.best.waited(self.stop.patience),
        }

    def ended(self) -> str:
        """What stop is reached; "" for none."""
        return counted(self.until, "merge") if self.fed.version >= self.until else reached(self.stop, self.so_far)

    def _now(self) -> int:
        """The clock; a tick less while somebody else arrives at the run's last moment: all who do are taken in, or none."""
        fed = self.fed
        return fed.now - int(fed.now == self.end and len(fed.flight.peek(1, self.end).time) > 0)

    def close(self, status: str) -> dict[str, Any]:
        """Writes what is still to write, and of that as much as can be written; run.json's content."""
        assert self.writer
        fed, writer, wall = self.fed, self.writer, monotonic() - self.began
        fed.worker.close()
        writer.make_room()
        models, clients = partial(self.keep_models, writer), partial(self.keep_clients, writer)
        reached = crossing(self.records, self.evaluation.target, self.evaluation.smooth)
        facts = {"model": self.models(), "wall_seconds": wall, "target_reached": reached} | self.best.told()
        facts |= {"final": self.records[-1] if self.records else {}, "client_steps_per_second": fed.worker.steps_done / max(wall, 1e-9)}
        facts |= self.about()
        for write in (fed.flush, models, clients, partial(writer.update, **facts)):
            try:
                write()
            except RunError as error:
                if status == "finished":
                    status, self.reason = "failed", str(error)
        self.log(f"{status}: {self.reason}")
        with suppress(RunError):
            writer.update(status=status, reason=self.reason, **(self.hopeless if status == "failed" else {}))
        for setting, note in fed.nature.notes.items():
            self.log(f"world.{setting}: {note}")
        writer.release()
        return writer.info

    def models(self) -> str | None:
        """The models' hash; of a method without shared ones, or of several architectures, that of all that the server has."""
        if not self.fed.strategy.shared or self.fed.task.architectures:
            return model_hash(*(rows for rows in self.fed.state.values() if isinstance(rows, Tensor)))
        return model_hash(*self.living())

    def keep_models(self, writer: RunWriter) -> None:
        """Writes them, and the best ones where these are kept. Raises RunError where that can't be."""
        fed = self.fed
        self._keep(writer, fed.strategy.model(fed.state), statistics_of(fed), LAST)
        if self.best.models is not None and self.best.statistics is not None:
            self._keep(writer, self.best.models, self.best.statistics, BEST)

    def _keep(self, writer: RunWriter, models: Tensor, statistics: Tensor, name: str) -> None:
        """In one file, or one an architecture."""
        task = self.fed.task
        if not task.architectures:
            return writer.model(models, statistics, task.layout, task.buffers, name)
        for at, (of, model) in enumerate(zip(task.architectures, models, strict=True)):
            own = name.replace(".", f"-{of.group}.") if at else name
            writer.model(model[None, : of.layout.size], statistics[:1], of.layout, task.buffers, own)

    def keep_clients(self, writer: RunWriter) -> None:
        """Writes what each client got at the last evaluation, in the place of earlier ones unless these are asked for."""
        if self.clients:
            writer.clients(*self.clients, alone=not any(isinstance(metric, EachClient) for metric in self.evaluation.metrics))

    def log(self, text: str) -> None:
        """A line in log.txt, which nothing depends on."""
        if self.writer:
            with suppress(RunError):
                self.writer.log(text)
