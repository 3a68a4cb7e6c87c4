"""From scenarios to runs that can start: their tasks, and what is wrong with them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from fedsim.base.clock import counted, ticks_per_second
from fedsim.base.errors import RunError, SettingError, placed
from fedsim.data.arrays import Arrays
from fedsim.engines.stacks import started
from fedsim.federation.federate import federate
from fedsim.federation.federation import Federation
from fedsim.federation.field import Field
from fedsim.federation.flight import Flight
from fedsim.federation.ledger import Ledger
from fedsim.run.runner import Run
from fedsim.scenario.fault import told
from fedsim.scenario.loader import Loaded
from fedsim.scenario.settings import Scenario
from fedsim.settings.anchored import anchored
from fedsim.settings.values import Population
from fedsim.task.build import build_task
from fedsim.task.task import Task
from fedsim.task.weights import given_weights
from fedsim.world import Nature, World

KEPT = 1 << 28  # bytes


class Tasks:
    """Builds the tasks of runs, keeping the last one, and the last samples as they were read: runs of a sweep mostly share them."""

    def __init__(self) -> None:
        self.key: Any = None
        self.task: Task | None = None
        self.read: tuple[Any, Arrays] | None = None

    def get(self, loaded: Loaded) -> Task:
        """Raises SettingError where the task can't be built."""
        settings, scenario = loaded.scenario.task, loaded.scenario
        seed = scenario.seed if settings.seed is None else settings.seed
        dtype = torch.float64 if getattr(scenario.engine, "precision", "") == "float64" else torch.float32
        key = (repr(settings.anchored(loaded.base)), seed, repr(dict(scenario.groups)), repr(loaded.own), dtype)
        if self.task is None or key != self.key:
            task = build_task(settings, seed, scenario.groups, loaded.base, dtype, self._arrays(loaded))
            weights = given_weights(settings, Population(task.nodes, task.groups), seed)
            self.task, self.key = replace(task, keep_buffers=settings.buffers, importance=weights), key
        return self.task

    def _arrays(self, loaded: Loaded) -> Arrays:
        """The samples; those that take much memory are read anew each time."""
        data, base = loaded.scenario.task.data, loaded.base
        key = (repr(data.anchored(base)), repr(loaded.own))
        if self.read and self.read[0] == key:
            return self.read[1]
        arrays = data.load(base)
        small = sum(one.nbytes for one in (arrays.x, arrays.x_test) if one is not None) <= KEPT
        self.read = (key, arrays) if small else None
        return arrays


def build(loaded: Loaded, tasks: Tasks) -> Run:
    """A run ready to start. Raises SettingError where it can't be built, or a user's own code raises."""
    try:
        return assemble(loaded, tasks.get(loaded))
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        if not (loaded.own or isinstance(error, RunError)):
            raise
        raise told(error, loaded.scenario) from error


def assemble(
    loaded: Loaded,
    task: Task,
    nature: type[Nature] = Nature,
    field: Callable[..., Field] = Flight,
    kind: type[Federation] = Federation,
    run: type[Run] = Run,
) -> Run:
    """From settings to a run over a task: world and clock, who works, the federation. Raises SettingError where they don't fit."""
    scenario, base, people = loaded.scenario, loaded.base, Population(task.nodes, task.groups)
    world, strategy = anchored(scenario.world, base), anchored(scenario.strategy, base)
    if task.each is not None and not strategy.schedule.peers:
        what = f"`own` is for peers (`gossip`, `pairwise`); under `{strategy.schedule.name}` the server's model is the first of all"
        raise SettingError("task.first_model", what)
    around = nature(world, people, scenario.seed, ticks_a_second(scenario, world, people))
    if around.liars is not None:
        task = around.liars.poisoned(task)
    if field is not Flight and task.architectures:
        raise SettingError("task.models", "on real machines all nodes have one model; groups' own are simulated")
    if field is not Flight and not strategy.shared:
        raise SettingError("strategy", f"`{strategy.name}` leaves all models with clients, and on real machines nobody judges them")
    worker = started(scenario.engine, task, strategy, scenario.seed)
    if worker.spread:
        if field is not Flight:
            raise SettingError("engine.name", f"`{scenario.engine.name}` computes simulations; on real machines each worker is its own")
        from fedsim.federation.spread import Spread

        field = Spread
    ledger = Ledger(per_second=around.per_second, energy=world.energy is not None)
    return run(loaded, federate(worker, around, ledger, scenario.seed, scenario.stop.rounds, field, kind))


def ticks_a_second(scenario: Scenario, world: World, people: Population) -> int:
    """So many that all exact times of a scenario are whole. Raises SettingError where that can't be."""
    try:
        fine = world.denominators(people)
    except ValueError as error:
        raise SettingError("world", str(error)) from error
    stop, written = scenario.stop.seconds, {"schedule": scenario.strategy.schedule.times(), "evaluate": scenario.evaluate.times()}
    exact = [*written["schedule"], *written["evaluate"], *([stop] if stop else [])]
    per_second = ticks_per_second([*fine, *((time * 10**9).denominator for time in exact)], stop)
    for key, times in written.items():
        for time in times:
            with placed(key):
                counted(time, per_second)
    return per_second


def check(runs: list[Loaded], tasks: Tasks) -> dict[str, SettingError]:
    """Builds one run of each variant to see that it can be built; the mistakes by the run's label."""
    seen: set[tuple[str, str]] = set()
    found: dict[str, SettingError] = {}
    for loaded in runs:
        what = (loaded.variant, repr(sorted(loaded.changed.items())))
        if what in seen:
            continue
        seen.add(what)
        try:
            build(loaded, tasks)
        except SettingError as error:
            found[loaded.label] = error
    return found
