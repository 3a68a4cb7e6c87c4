"""The part of a run that looks at its federation: when it is evaluated, and what was found."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import FOREVER
from fedsim.base.errors import Diverged, FedsimError, SettingError
from fedsim.base.rows import Rows
from fedsim.federation.buffers import statistics_of
from fedsim.federation.federation import Federation
from fedsim.federation.lies import Lies
from fedsim.federation.watch import Watch
from fedsim.method.privacy import Account
from fedsim.metrics.metrics import Metric, known, numbers
from fedsim.metrics.personal import PERSONAL, TUNED, Finetuned, OfClients, Personal, keeps_personal
from fedsim.metrics.told import Question, kinds_of, of_peers, personal_models, tested, tuned_models
from fedsim.metrics.view import TESTS, View
from fedsim.run.best import Best
from fedsim.run.runfolder import RunWriter
from fedsim.run.stops import MEASURED, diverged, measurable, reached
from fedsim.scenario.loader import Loaded
from fedsim.settings.values import Every


class Measured(Watch):
    """Evaluations so far (`records`), and when the next is due. `report` is told what is being done (`doing`)."""

    def __init__(self, loaded: Loaded, fed: Federation, report: Callable[[Any], None] | None) -> None:
        self.loaded, self.scenario, self.report, self.fed = loaded, loaded.scenario, report, fed
        self.stop, self.evaluation = self.scenario.stop, self.scenario.evaluate
        self.due = self.end = self.interval = FOREVER
        self.rounds: int | None = None
        self.writer: RunWriter | None = None
        self.records: list[dict[str, Any]] = []
        self.clients: tuple[int, int, Tensor, Tensor] | None = None  # version, round, nodes and their accuracies, as measured last
        self.reason = self.doing = ""
        self.began = monotonic()
        self.measured, self.evaluated_round = (-1, -1), -1  # (version, time) of the last evaluation
        self._plan()

    def ended(self) -> str:
        """What stop is reached; "" for none."""
        raise NotImplementedError

    @property
    def spent(self) -> float:
        """Share of the privacy budget."""
        account = self.fed.companion(Account)
        return account.used(self.stop.epsilon) if account and self.stop.epsilon is not None else 0.0

    @property
    def seconds(self) -> float:
        """The run's clock."""
        return self.fed.now / self.fed.nature.per_second

    def _plan(self) -> None:
        """When to evaluate, and when time is up."""
        every, goal, stop, fed = self.evaluation.every, self.evaluation.target, self.stop, self.fed
        if stop.epsilon is not None and not fed.companion(Account):
            raise SettingError("stop.epsilon", "never reached: `privacy` is not set")
        self.spent  # noqa: B018 - it says so where the first round costs more
        if every is None:  # 100 times a run if its end is known, else each 10 rounds
            every = Every(rounds=max(1, stop.rounds // 100) if stop.rounds else 10)
            if stop.seconds and not stop.rounds:
                every = Every(seconds=stop.seconds / 100)
        best = self.evaluation.best or ("test/loss" if stop.patience else None)
        self.evaluation = replace(self.evaluation, every=every, target=stop.accuracy if goal is None else goal, best=best)
        self.best = Best(best, self.evaluation.gain)
        measurable(stop, self.evaluation, fed)
        self.rounds = every.rounds
        self.due = self.interval = fed.ticks(every.seconds) if every.seconds else FOREVER
        self.end = fed.ticks(stop.seconds) if stop.seconds else FOREVER
        others = [value for name, value in vars(stop).items() if name != "seconds" and value is not None]
        timed = {f"evaluate.metrics.{place}.every": one.every for place, one in enumerate(self.evaluation.metrics)}
        timed |= {"evaluate.every": every, "stop.patience": stop.patience}
        timed = {key: value for key, value in timed.items() if value and value.seconds}
        if (stop.seconds or timed) and not fed.durations().any() and not fed.schedule.times():
            if not others:
                raise SettingError("stop.seconds", "nothing in `world` takes time, so this is never reached")
            for key in timed:
                raise SettingError(key, "nothing in `world` takes time, so no second ever passes")

    def _smooth(self, metric: str, *coming: float) -> float:
        """Mean of the last `smooth` evaluations, with those that are still to come; nan before there are as many."""
        last = (record[metric] for record in reversed(self.records) if metric in record)
        values = [*islice(chain(coming, last), self.evaluation.smooth)][::-1]
        return float(np.mean(values)) if len(values) == self.evaluation.smooth else math.nan

    def decisive(self) -> bool:
        """May the next evaluation end the run, if it is as good as can be?"""
        best = {"accuracy": self._smooth("test/accuracy", 1.0), "loss": self._smooth("test/loss", 0.0)}
        best["patience"] = self.best.waited(self.stop.patience, (self.fed.round + 1, self.due / self.fed.nature.per_second))
        return bool(reached(self.stop, best, MEASURED))

    def _view(self) -> View:
        fed = self.fed
        key = fed.key("shared", torch.tensor([fed.version], device=fed.worker.device))
        strategy, (models, buffers), living = replace(fed.strategy, privacy=fed.worker.privacy), self.living(), fed.living
        nodes = None if living is None else torch.from_numpy(living).to(models.device)
        here = not fed.schedule.peers and fed.flight.remembered(np.zeros(0, dtype=np.int64)) is not None
        kinds = [] if here or fed.schedule.peers else kinds_of(fed.task, strategy)
        told = fed.flight.judged(Question(kinds, fed.round, (models, buffers), self._hears)) if kinds else self._peers_tests()
        own = partial(self._personal, (models, buffers)) if here and keeps_personal(strategy) else None
        given = own or partial(self._heard, (models, buffers))
        tuned = partial(tuned_models, fed.worker, fed.round, given) if here else None
        ask = None if here or fed.schedule.peers or not tested(fed.task) else partial(self._ask, (models, buffers))
        home = None if fed.schedule.served or fed.schedule.peers else torch.from_numpy(fed.home).to(models.device)
        kind = OfClients if own and (fed.task.architectures or not strategy.shared) else View
        return kind(fed.task, models, fed.round, 4096, buffers, strategy, key, self._say, nodes, own, tuned, home, told, ask)

    def _peers_tests(self) -> dict[str, Tensor]:
        """What peers say of their own models, where each has test samples of its own and nobody else has some."""
        fed = self.fed
        if not (fed.schedule.peers and fed.task.apart):
            return {}
        living = range(fed.nodes) if fed.living is None else fed.living.tolist()
        return {TESTS: of_peers(fed.task, fed.strategy.model(fed.state), statistics_of(fed), living)}

    def _heard(self, shared: tuple[Tensor, Tensor], nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The model that nodes [k] hear, a row each."""
        models, buffers = (self._each(rows, nodes) for rows in shared)
        return models, buffers

    def _each(self, rows: Tensor, nodes: Tensor) -> Tensor:
        """[k, ...]: of rows [h, ...] those of the hearers of nodes [k]."""
        if len(rows) == 1:
            return rows.expand(len(nodes), *rows.shape[1:])
        return rows[torch.from_numpy(self.fed.home).to(nodes.device)[nodes]]

    def _ask(self, shared: tuple[Tensor, Tensor], how: Finetuned) -> Tensor:
        """What nodes say of the model that they hear or keep, after some training; float64 [3, n]."""
        fed = self.fed
        hears = self._hears if keeps_personal(fed.strategy) else lambda nodes: {}
        return fed.flight.judged(Question([TUNED], fed.round, shared, hears, how))[TUNED]

    def _personal(self, shared: tuple[Tensor, Tensor], nodes: Tensor) -> tuple[Tensor, Tensor]:
        """What nodes [k] would use themselves: models [k, d] and running statistics [k, b]."""
        fed = self.fed
        memory = fed.flight.remembered(nodes.cpu().numpy()) or {}
        return personal_models(fed.strategy, fed.task, self._hears(nodes), memory, self._heard(shared, nodes))

    def _hears(self, nodes: Tensor) -> Rows:
        """What nodes [k] hear in their next job, parts [k, ...]."""
        fed = self.fed
        heard = {name: self._each(rows, nodes) for name, rows in fed.strategy.broadcast(fed.state).items()}
        return heard | fed.strategy.instruct(fed.state, nodes)

    def living(self) -> tuple[Tensor, Tensor]:
        """The hearers' models and their running statistics, without those of peers that are lost; of several architectures the first."""
        models, buffers, who = self.fed.strategy.model(self.fed.state), statistics_of(self.fed), self.fed.living
        if self.fed.task.architectures:
            return models[:1, : self.fed.task.layout.size], buffers[:1]
        return (models, buffers) if who is None else (models[who], buffers[who])

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
        if (account := fed.companion(Account)) and account.noise:
            record["privacy/epsilon"] = account.epsilon
        if account and account.adapt:
            record["privacy/clip"] = account.clip
        if (lies := fed.companion(Lies)) and lies.share is not None:
            record["attackers/chosen"] = lies.share
        if (gap := fed.schedule.gap(fed)) is not None:
            record["nodes/spectral_gap"] = gap
        due = [metric for metric in self.evaluation.metrics if self._due(metric.every)]
        if (view.personal or PERSONAL in view.told) and not any(isinstance(one, Personal) for one in self.evaluation.metrics):
            due.append(Personal())
        if view.told:
            record["clients/answered"] = int(next(iter(view.told.values()))[0].count_nonzero())
        fed.ledger.add("evaluate", time=fed.now, version=fed.version)
        self.measured, self.evaluated_round = (fed.version, fed.now), fed.round
        record |= self._numbers(due, view, record) | self._own()
        self.records.append(record)
        try:
            if not {*self.evaluation.metrics} <= {*due} and (self.reason or self.ended()):
                record |= self._numbers([one for one in self.evaluation.metrics if one not in due], view, record)
            self.best.seen(record, fed.strategy.model(fed.state), statistics_of(fed))
            if each := view.each_client:
                self.clients = (fed.version, fed.round, *each)
            if self.writer:
                self.writer.metrics(record)
                if view.keeps_clients and self.clients:
                    self.writer.clients(*self.clients)
                for name, arrays in view.arrays.items():
                    self.writer.arrays(name, fed.version, arrays)
        except FedsimError:
            self.records.pop()  # the last record is the last that is in the file
            raise
        self.doing = ""
        if self.report:
            self.report(self)

    def _own(self) -> dict[str, float]:
        """What the strategy says of itself."""
        return known(self.fed.strategy.measure(self.fed.state, self.fed.task))

    def _due(self, every: Every | None) -> bool:
        """Has such an interval begun since the last evaluation?"""
        if every is None:
            return True
        if every.rounds:
            return self.fed.round // every.rounds > self.evaluated_round // every.rounds
        ticks = self.fed.ticks(every.seconds or Fraction(0))
        return self.fed.now // ticks > self.measured[1] // ticks

    def _numbers(self, metrics: Sequence[Metric], view: View, record: Mapping[str, Any]) -> dict[str, float]:
        """What metrics know. Raises Diverged where the loss is no number."""
        found = {name: value for metric in metrics for name, value in numbers(metric, view, record).items()}
        if not math.isfinite(loss := found.get("test/loss", 0.0)):
            raise Diverged(diverged(self.fed, loss))
        return known(found)
