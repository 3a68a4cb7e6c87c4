"""From a checked scenario to a finished run: builds the federation, evaluates, stops, and keeps the run's folder."""

import math
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar

import numpy as np
import torch

from fedsim.clock import FOREVER, ticks_per_second
from fedsim.clock import counted as in_ticks
from fedsim.errors import FedsimError, RunError, SettingError, blame, comes_again, placed
from fedsim.federation import Federation
from fedsim.guard import Guard, facts_of, log_facts
from fedsim.ledger import Ledger
from fedsim.metrics import Accuracy, Metric, TestLoss, View, known
from fedsim.report.crossing import crossing
from fedsim.report.doubts import doubts, nothing_merged
from fedsim.report.text import counted, duration, short_percent, size
from fedsim.runfolder import RunWriter, model_hash, write_scenario
from fedsim.scenario.loader import Loaded
from fedsim.scenario.settings import Evaluate, Scenario, Stop
from fedsim.task import Task
from fedsim.traces import anchored
from fedsim.values import Every, Population
from fedsim.watch import Finished
from fedsim.world import Nature, World

Report = Callable[["Run"], None]
FLUSH_SECONDS, FLUSH_EVENTS = 60.0, 500_000
GRAPH = 1000  # peers whose graph is kept for a picture


def federate(scenario: Scenario, task: Task, watch: "Run") -> Federation:
    """The federation of a scenario over its task. Raises SettingError where they don't fit."""
    people, schedule = Population(task.nodes, task.groups), scenario.strategy.schedule
    world: World = anchored(scenario.world, watch.loaded.base)
    try:
        fine = world.denominators(people)
    except ValueError as error:
        raise SettingError("world", str(error)) from error
    exact = [*schedule.times(), *scenario.evaluate.times(), *([scenario.stop.seconds] if scenario.stop.seconds else [])]
    per_second = ticks_per_second([*fine, *((time * 10**9).denominator for time in exact)], scenario.stop.seconds)
    for key, times in (("schedule", schedule.times()), ("evaluate", scenario.evaluate.times())):
        for time in times:
            with placed(key):
                in_ticks(time, per_second)
    nature = Nature(world, people, scenario.seed, per_second)
    task = task if nature.liars is None else nature.liars.poisoned(task)
    worker = scenario.engine.start(task, anchored(scenario.strategy, watch.loaded.base), scenario.seed)
    ledger = Ledger(per_second=per_second, energy=world.energy is not None)
    return Federation(worker, nature, ledger, watch, scenario.seed, scenario.stop.rounds)


class Run:
    """One run, and the watch of its federation. `report` is called after each evaluation and now and then between."""

    keeps: ClassVar[tuple[str, ...]] = ("due", "measured", "evaluated_round", "fed")

    def __init__(self, loaded: Loaded, task: Task, report: Report | None = None) -> None:
        self.loaded, self.scenario, self.report = loaded, loaded.scenario, report
        self.stop, self.evaluation, self.guard = self.scenario.stop, self.scenario.evaluate, Guard(self.scenario.checkpoint)
        self.due = self.end = self.until = FOREVER  # `until`: a merge at which it ends, whatever the scenario says
        self.writer: RunWriter | None = None
        self.records: list[dict[str, Any]] = []
        self.reason = self.doing = ""
        self.again = False  # it failed, and would again
        self.began = self.flushed = monotonic()
        self.measured = (-1, -1)  # (version, time) of the last evaluation
        self.fed = federate(self.scenario, task, self)
        self._plan()

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
        """The evaluation that is due by the clock."""
        self._measure()
        self.due += self.interval
        if self.overdue():
            raise Finished

    def overdue(self) -> bool:
        """Is the host's time up?"""
        wall = self.stop.wall
        if wall is None or monotonic() - self.began < wall:
            return False
        self.reason = self.reason or self._wall(wall)
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
                by_wall = self.stop.wall if self.overdue() else None
                self.reason = self._wall(by_wall) if by_wall else self._time(self.stop.seconds)
                self.guard.keep_held(self)
            if finished or self.measured != (self.fed.version, self.fed.now):
                self._measure()
            status = "finished"
            if not self.fed.ledger.updates:
                status, self.reason = "failed", nothing_merged(self.fed, self.reason)
                self.again = True
        except KeyboardInterrupt:
            status, self.reason = "stopped", "by hand" if self.guard.stopped else "by hand, within a round"
        except FedsimError as error:
            self.reason, self.again = str(error), comes_again(error)
        except Exception as error:  # a user's merge or metric
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
                writer.begin(facts_of(self) | {"command": command}, status="failed", reason=f"it could not begin: {error}")
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
        writer.begin(facts_of(self) | {"command": command})
        for doubt in doubts(self):
            writer.log(f"warning: {doubt}")

    def attach(self, writer: RunWriter) -> None:
        """From now on everything is kept in the writer's folder."""
        self.writer, self.fed.ledger.folder = writer, writer.folder / "events"
        if self.fed.replicas:
            self.fed.replicas.log.open(log_facts(self), writer.folder / "messages.log")
        self.flushed, self.began = monotonic(), writer.began

    @property
    def progress(self) -> float:
        """How much of the run is done, 0 to 1, by the stop that is nearest; 0 where no end is known."""
        stop, fed, ledger = self.stop, self.fed, self.fed.ledger
        done: list[tuple[float, float | Fraction | None]] = [(fed.round, stop.rounds), (ledger.updates, stop.updates)]
        done += [(ledger.steps, stop.steps), (ledger.bytes, stop.bytes), (self.seconds, stop.seconds)]
        done += [(monotonic() - self.began, stop.wall), (self.spent, stop.epsilon and 1.0)]
        return min(1.0, max([0.0, *(float(value / goal) for value, goal in done if goal)]))

    @property
    def spent(self) -> float:
        """Share of the privacy budget."""
        return self.fed.release.used(self.stop.epsilon) if self.fed.release and self.stop.epsilon is not None else 0.0

    @property
    def seconds(self) -> float:
        """The run's clock."""
        return self.fed.now / self.fed.nature.per_second

    # Inside

    def _plan(self) -> None:
        """When to evaluate, and when time is up."""
        every, goal, stop, fed = self.evaluation.every, self.evaluation.target, self.stop, self.fed
        _measurable(stop, self.evaluation, fed)
        if stop.epsilon is not None and fed.release is None:
            raise SettingError("stop.epsilon", "never reached: `privacy` is not set")
        if stop.epsilon is not None and fed.release is not None:
            fed.release.used(stop.epsilon)  # it says so where the first round costs more
        if every is None:  # 100 times a run if its end is known, else each 10 rounds
            every = Every(rounds=max(1, stop.rounds // 100) if stop.rounds else 10)
            if stop.seconds and not stop.rounds:
                every = Every(seconds=stop.seconds / 100)
        self.evaluation = replace(self.evaluation, every=every, target=stop.accuracy if goal is None else goal)
        self.rounds, self.evaluated_round = every.rounds, -1
        self.due = self.interval = fed.ticks(every.seconds) if every.seconds else FOREVER
        self.end = fed.ticks(stop.seconds) if stop.seconds else FOREVER
        others = [value for name, value in vars(stop).items() if name != "seconds" and value is not None]
        timed = {f"evaluate.metrics.{place}.every": one.every for place, one in enumerate(self.evaluation.metrics)}
        timed = {key: value for key, value in ({"evaluate.every": every} | timed).items() if value and value.seconds}
        if (stop.seconds or timed) and not fed.durations().any() and not fed.schedule.times():
            if not others:
                raise SettingError("stop.seconds", "nothing in `world` takes time, so this is never reached")
            for key in timed:
                raise SettingError(key, "nothing in `world` takes time, so no second ever passes")

    def ended(self) -> str:
        """What stop is reached; "" for none."""
        stop, fed, ledger = self.stop, self.fed, self.fed.ledger
        limits: list[tuple[float, float | Fraction | None, Callable[[Any], str]]] = [
            (fed.version, self.until, lambda n: counted(n, "merge")),
            (fed.round, stop.rounds, lambda n: counted(n, "round")),
            (ledger.updates, stop.updates, lambda n: counted(n, "update")),
            (ledger.steps, stop.steps, lambda n: counted(n, "step")),
            (ledger.bytes, stop.bytes, size),
            (self._now(), self.end if stop.seconds else None, lambda _: self._time(stop.seconds)),
            (monotonic() - self.began, stop.wall, self._wall),
            (self._smooth("test/accuracy") if stop.accuracy else 0, stop.accuracy, lambda share: f"accuracy {short_percent(share)}"),
            (self.spent, stop.epsilon and 1.0, lambda _: f"epsilon {stop.epsilon:g}"),
            (
                0 if stop.loss is None else -self._smooth("test/loss"),
                None if stop.loss is None else -stop.loss,
                lambda loss: f"loss {-loss:g}",
            ),
        ]
        return next((say(goal) for value, goal, say in limits if goal is not None and value >= goal), "")

    def _wall(self, seconds: Fraction) -> str:
        return f"{self._time(seconds)} of wall time"

    def _now(self) -> int:
        """The clock; a tick less while somebody else arrives at the run's last moment: all who do are taken in, or none."""
        fed = self.fed
        return fed.now - int(fed.now == self.end and len(fed.flight.peek(1, self.end).time) > 0)

    def _time(self, seconds: Fraction | None) -> str:
        return duration(float(seconds or 0))

    def _smooth(self, metric: str) -> float:
        """Mean of the last `smooth` evaluations; nan before there are as many."""
        last = islice((record[metric] for record in reversed(self.records) if metric in record), self.evaluation.smooth)
        values = [*last][::-1]
        return float(np.mean(values)) if len(values) == self.evaluation.smooth else math.nan

    def _view(self) -> View:
        fed = self.fed
        key = fed.key("shared", torch.tensor([fed.version], device=fed.worker.device))
        strategy = replace(fed.strategy, privacy=fed.worker.privacy)
        return View(fed.task, strategy.model(fed.state), fed.round, buffers=fed.buffers.rows, strategy=strategy, key=key, say=self._say)

    def _say(self, doing: str) -> None:
        """What an evaluation is at."""
        self.doing = doing
        if self.report:
            self.report(self)

    def _measure(self) -> None:
        fed = self.fed
        view = self._view()
        record: dict[str, Any] = {"round": fed.round, "version": fed.version, "time/seconds": self.seconds}
        record |= {"time/wall_seconds": monotonic() - self.began} | fed.ledger.totals()
        if fed.release and fed.release.noise:
            record["privacy/epsilon"] = fed.release.epsilon
        if (gap := fed.schedule.gap(fed)) is not None:
            record["nodes/spectral_gap"] = gap
        due = [metric for metric in self.evaluation.metrics if self._due(metric.every)]
        fed.ledger.add("evaluate", time=fed.now, version=fed.version)
        self.measured, self.evaluated_round = (fed.version, fed.now), fed.round
        record |= self._numbers(due, view) | known(fed.strategy.measure(fed.state, fed.task))
        self.records.append(record)
        try:
            if len(due) < len(self.evaluation.metrics) and (self.reason or self.ended()):
                record |= self._numbers([one for one in self.evaluation.metrics if one not in due], view)
            if self.writer:
                self.writer.metrics(record)
                for name, arrays in view.arrays.items():
                    self.writer.arrays(name, fed.version, arrays)
        except RunError:
            self.records.pop()  # the last record is the last that is in the file
            raise
        self.doing = ""
        if self.report:
            self.report(self)

    def _due(self, every: Every | None) -> bool:
        """Has such an interval begun since the last evaluation?"""
        if every is None:
            return True
        if every.rounds:
            return self.fed.round // every.rounds > self.evaluated_round // every.rounds
        ticks = self.fed.ticks(every.seconds or Fraction(0))
        return self.fed.now // ticks > self.measured[1] // ticks

    def _numbers(self, metrics: Sequence[Metric], view: View) -> dict[str, float]:
        """What metrics know. Raises RunError where the loss is no number."""
        found = {name: value for metric in metrics for name, value in metric.measure(view).items()}
        if not math.isfinite(loss := found.get("test/loss", 0.0)):
            raise RunError(_diverged(self.fed, loss))
        return known(found)

    def close(self, status: str) -> dict[str, Any]:
        """Writes what is still to write, and of that as much as can be written; run.json's content."""
        assert self.writer
        fed, writer, wall = self.fed, self.writer, monotonic() - self.began
        fed.worker.close()
        writer.make_room()
        models = fed.strategy.model(fed.state)
        kept = partial(writer.model, models, fed.task.layout, fed.buffers.rows, fed.task.buffers)
        reached = crossing(self.records, self.evaluation.target, self.evaluation.smooth)
        facts = {"model": model_hash(models, fed.buffers.rows), "wall_seconds": wall, "target_reached": reached}
        facts |= {"final": self.records[-1] if self.records else {}, "client_steps_per_second": fed.worker.steps_done / max(wall, 1e-9)}
        for write in (fed.flush, kept, partial(writer.update, **facts)):
            try:
                write()
            except RunError as error:
                if status == "finished":
                    status, self.reason = "failed", str(error)
        self.log(f"{status}: {self.reason}")
        with suppress(RunError):
            writer.update(status=status, reason=self.reason, **({"again": True} if self.again and status == "failed" else {}))
        for setting, note in fed.nature.notes.items():
            self.log(f"world.{setting}: {note}")
        writer.release()
        return writer.info

    def log(self, text: str) -> None:
        """A line in log.txt, which nothing depends on."""
        if self.writer:
            with suppress(RunError):
                self.writer.log(text)


def _diverged(fed: Federation, loss: float) -> str:
    """In one line, with the cure."""
    if fed.health.senders:
        return f"diverged in round {fed.round}: the test loss is {loss} {fed.health.after()}; try a smaller `train.lr`, or `train.clip`"
    what = "no learning rate mends that; see `task.data`, `task.model` and `task.loss`"
    return f"the test loss of the first model is {loss}, {fed.health.after()}: {what}"


def _measurable(stop: Stop, evaluation: Evaluate, fed: Federation) -> None:
    """Raises SettingError where a metric does not fit the run, or a stop or the target waits for a number that is never measured."""
    for place, one in enumerate(evaluation.metrics):
        one.check(fed.task, fed.strategy, f"evaluate.metrics.{place}")
    goals = {"stop.accuracy": stop.accuracy, "evaluate.target": evaluation.target, "stop.loss": stop.loss}
    for key, goal in goals.items():
        metric = TestLoss if key == "stop.loss" else Accuracy
        if goal is not None and not any(isinstance(one, metric) for one in evaluation.metrics):
            raise SettingError(key, f"never reached: `evaluate.metrics` lacks `{metric.name}`")
        if goal is not None and metric is Accuracy and not fed.task.classes:
            raise SettingError(key, "never reached: the targets of this task are no classes")
