"""An own strategy tried before a run: two rounds of a few unequal clients show what one client alone does not."""

# n: clients of the trial

from dataclasses import replace
from types import NoneType
from typing import Any

import numpy as np
import torch

from fedsim.base.errors import RunError, SettingError, TooFew
from fedsim.engines.local import MatrixEngine
from fedsim.federation.federate import federate
from fedsim.federation.federation import Federation
from fedsim.federation.ledger import Ledger
from fedsim.federation.watch import Watch
from fedsim.method.contract import Misuse
from fedsim.method.strategy import Strategy
from fedsim.run.runner import Run
from fedsim.scenario.fault import told
from fedsim.scenario.parts import part_name
from fedsim.schedule import Gossip, Rounds
from fedsim.settings.anchored import anchored
from fedsim.settings.values import Count, Population
from fedsim.task.task import Task
from fedsim.topology import Ring
from fedsim.topology.graphs import Exponential
from fedsim.world import Nature, World

SIZES = (1, 3, 4, 9)  # samples of the clients; with batches of 2 they have 1, 2, 2 and 5 steps
ROUNDS = 2


class _Twice(Watch):
    """Lets two rounds pass and measures nothing."""

    def running(self, fed: Federation) -> bool:
        return fed.round < ROUNDS


def tried(run: Run) -> list[str]:
    """What is odd about a user's own strategy, in lines. Raises SettingError, at its key, where it fails."""
    scenario = run.scenario
    task, strategy = _few(run.fed.task), _short(scenario.strategy)
    if ":" not in part_name(scenario.strategy) or task is None or strategy is None:
        return []
    try:
        fed = _federation(run, task, strategy)
    except Exception:  # about so few clients: the run itself could be built
        return []
    try:
        return _two_rounds(fed)
    except (Exception, SystemExit) as error:
        if isinstance(error, RunError) and not isinstance(error, Misuse) and isinstance(error.__cause__, TooFew | NoneType):
            return []  # too few for a robust average, or diverged on batches of two
        found = told(error, scenario)
        where = f"tried on clients of {', '.join(map(str, task.counts.tolist()))} samples, {ROUNDS} rounds"
        raise SettingError(found.key, f"{found.message} ({where})") from error
    finally:
        fed.worker.close()


def _two_rounds(fed: Federation) -> list[str]:
    """The second with a client that is new and without one that was there before; under peers all."""
    if fed.schedule.peers:
        fed.run()
        return []
    notes, everyone = list[str](), np.arange(fed.nodes)
    for cohort in (everyone[:-1], everyone[1:]):
        fed.send(cohort, np.full(len(cohort), len(cohort) / fed.nodes))
        news = fed.receive()
        update = fed.flight.taken(news.slot).get("update")
        if update is not None and not update.any():
            notes = [
                "all updates are zero; if steps are lost: rows of `batches` are views, written in place (`y -= ...`, not `y = y - ...`)"
            ]
        fed.merge(news)
    return notes


def _few(task: Task) -> Task | None:
    """The first samples, shared out to a few clients; None where there are too few."""
    total = len(task.targets)
    counts = torch.tensor([size for place, size in enumerate(SIZES) if sum(SIZES[: place + 1]) <= total])
    if len(counts) < 2:
        return None
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(task.starts.device)
    samples = torch.arange(int(starts[-1]), device=task.starts.device)
    return replace(task, samples=samples, starts=starts, groups={}, shifts=(), poison=(), test_owner=None)


def _short(strategy: Strategy) -> Strategy | None:
    """With little work of unequal length, and all in rounds; None where the strategy has rules of its own about that."""
    if strategy.schedule.peers:
        schedule: Any = Gossip(topology=Exponential() if strategy.stochastic == "columns" else Ring())
    else:
        schedule = Rounds(cohort=Count())
    train = strategy.train.alike()
    train = replace(train, batch=2, **({"steps": min(train.steps, 3)} if isinstance(train.steps, int) else {"epochs": 1.0}))
    try:
        return replace(strategy, train=train, schedule=schedule, privacy=None)
    except ValueError:
        return None


def _federation(run: Run, task: Task, strategy: Strategy) -> Federation:
    engine = run.scenario.engine
    if isinstance(engine, MatrixEngine):
        engine = replace(engine.alone(), chunk="auto")
    worker = engine.start(task, anchored(strategy, run.loaded.base), run.scenario.seed)
    nature = Nature(World(), Population(task.nodes, {}), run.scenario.seed, 1)
    fed = federate(worker, nature, Ledger(per_second=1, energy=False), run.scenario.seed, ROUNDS)
    fed.watch = _Twice()
    return fed
