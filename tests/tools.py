"""Small federations for tests: quadratics with closed forms, a keyed classification task, and a watch that counts rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.base.clock import FOREVER, ticks_per_second
from fedsim.base.keys import fold, normal
from fedsim.base.rows import Layout
from fedsim.base.store import Table
from fedsim.engines.local import LocalEngine
from fedsim.federation.federate import federate
from fedsim.federation.federation import Federation
from fedsim.federation.ledger import KINDS, Ledger
from fedsim.federation.watch import Watch
from fedsim.method.inbox import Inbox
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.settings.values import Linear, PerNode, Population
from fedsim.task.loss import CrossEntropy, Loss
from fedsim.task.task import Task
from fedsim.world import Compute, Nature, World


class Bowl(nn.Module):
    """a/2 |w - b|^2 of a sample (a, b): the module's output is the loss."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x[:, 0] * (self.w - x[:, 1:]).square().sum(-1)


@dataclass(frozen=True)
class OutputLoss(Loss):
    classes = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs


def quadratics(centres: Any, curvature: Any = 1.0, samples: Sequence[int] | None = None) -> Task:
    """Node i has F_i(w) = a_i/2 |w - b_i|^2 in float64, as one sample (or `samples[i]` equal ones); centres [n, d], first model 0."""
    b = torch.as_tensor(centres, dtype=torch.float64)
    b = b[:, None] if b.dim() == 1 else b
    a = torch.as_tensor(curvature, dtype=torch.float64).expand(len(b))
    counts = torch.ones(len(b), dtype=torch.int64) if samples is None else torch.tensor(samples)
    x = torch.cat([a[:, None], b], 1).repeat_interleave(counts, 0)
    model = Bowl(b.shape[1])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    y = torch.zeros(len(x), dtype=torch.float64)
    first = torch.zeros(b.shape[1], dtype=torch.float64)
    return Task(x, y, torch.arange(len(x)), starts, x, y, None, model, Layout.of(model), first, OutputLoss(), 0)


def classification(counts: Sequence[int], features: int = 6, classes: int = 3, seed: int = 0, model: nn.Module | None = None) -> Task:
    """A keyed linear problem; node i has counts[i] samples. By default logistic regression."""
    total, n = sum(counts), torch.tensor(counts)
    x = normal(fold(seed, "x", torch.arange(total + 50)), features)
    y = (x @ normal(fold(seed, "w", torch.arange(features)), classes)).argmax(1)
    if model is None:
        model = nn.Linear(features, classes)
    layout = Layout.of(model)
    first = 0.3 * normal(fold(seed, "init"), layout.size)
    starts = torch.cat([n.new_zeros(1), n.cumsum(0)])
    test = (x[total:], y[total:], None)
    return Task(x[:total], y[:total], torch.arange(total), starts, *test, model, layout, first, CrossEntropy(), classes)


class Until(Watch):
    """A watch that ends after so many rounds (or at a time in ticks) and evaluates never."""

    def __init__(self, rounds: int | None = None, end: int = FOREVER) -> None:
        self.rounds, self.due, self.end = rounds, FOREVER, end
        self.versions: list[Tensor] = []

    def running(self, fed: Federation) -> bool:
        self.versions.append(fed.strategy.model(fed.state).clone())
        return self.rounds is None or fed.round < self.rounds

    def evaluate(self, fed: Federation) -> None:
        raise AssertionError("nothing is due")

    def overdue(self) -> bool:
        return False


def federation(
    task: Task, strategy: Strategy, rounds: int | None = None, world: World | None = None, seed: int = 0, seconds: Any = None, **engine: Any
) -> Federation:
    """Ready to `run()` for so many rounds or seconds, ticks exact. `engine` are settings of LocalEngine, on the CPU by default."""
    world = world or World()
    people = Population(task.nodes, task.groups)
    exact = [*world.denominators(people), *((time * 10**9).denominator for time in strategy.schedule.times())]
    end = None if seconds is None else Fraction(seconds)
    per_second = ticks_per_second([*exact, *([] if end is None else [(end * 10**9).denominator])], end)
    worker = LocalEngine(**{"device": "cpu"} | engine).start(task, strategy, seed)
    watch = Until(rounds, FOREVER if end is None else round(end * per_second))
    ledger = Ledger(per_second=per_second, energy=world.energy is not None)
    fed = federate(worker, Nature(world, people, seed, per_second), ledger, seed)
    fed.watch = watch
    return fed


def run(*args: Any, **settings: Any) -> Federation:
    """A federation that has run."""
    fed = federation(*args, **settings)
    fed.run()
    return fed


def quick(*args: Any, **settings: Any) -> Federation:
    """A federation that has run, by the plan that takes least: short runs are over before the stacked plan is traced."""
    rounds = args[2] if len(args) > 2 else settings.get("rounds")
    return run(*args, plan="looped" if rounds and rounds < 60 else "auto", **settings)


def spread(percent: int, job: Any = 1) -> World:
    """FedFix's F-`percent`: jobs take from `job` down to (1 - percent/100) x job seconds, in equal steps; travel takes no time."""
    slow = Fraction(job)
    return World(compute=Compute(job=PerNode(Linear(slow, slow * (100 - percent) / 100))))


def durations(*seconds: Any) -> World:
    """Jobs of node i take seconds[i]; travel takes no time."""
    return World(compute=Compute(job=PerNode(tuple(Fraction(s) for s in seconds))))


def same(value: Any) -> PerNode[Any]:
    """One value for all nodes."""
    return PerNode(Fraction(value))


def steps(count: int = 1, lr: float = 0.1, batch: Any = "all", **settings: Any) -> Train:
    """Full-batch gradient steps."""
    from fedsim.settings.values import Constant

    return Train(steps=count, batch=batch, lr=Constant(lr), **settings)


def events(fed: Federation, *kinds: str) -> dict[str, np.ndarray[Any, Any]]:
    """Events by column, time in seconds as float; of some kinds, or all."""
    table = fed.ledger.columns()
    keep = np.isin(table["kind"], kinds or KINDS)
    out = {name: column[keep] for name, column in table.items()}
    return out | {name: out[name] / fed.nature.per_second for name in ("time", "down", "work", "up")}


def merges(fed: Federation) -> list[tuple[Fraction, list[tuple[int, int]]]]:
    """For each merge its exact time in seconds and the (sender, age) of what was merged, in the order of the senders."""
    table = fed.ledger.columns()
    out: list[tuple[Fraction, list[tuple[int, int]]]] = []
    rows = table["kind"] == "merge"
    for time, version, node, age in zip(*(table[name][rows].tolist() for name in ("time", "version", "node", "staleness")), strict=True):
        if version > len(out):
            out.append((Fraction(time, fed.nature.per_second), []))
        if node >= 0:
            out[-1][1].append((node, age))
    return out


def models(fed: Federation) -> Tensor:
    """[rounds + 1, h, d]: the model at the start of each turn of the schedule's loop."""
    assert isinstance(fed.watch, Until)
    return torch.stack(fed.watch.versions)


def inbox(
    weight: Sequence[float],
    sender: Sequence[int] | None = None,
    age: Sequence[float] | None = None,
    chance: Sequence[float] | None = None,
    frequency: Sequence[float] | None = None,
    **parts: Any,
) -> Inbox:
    """News for a server by hand, in float64: message i of `sender[i]` (0, 1, ... by default) has parts[i], a number or a list of d."""
    rows = {name: torch.as_tensor(values, dtype=torch.float64).reshape(len(weight), -1) for name, values in parts.items()}
    ages, chances, often = (None if column is None else torch.tensor(column, dtype=torch.float64) for column in (age, chance, frequency))
    return Inbox(
        parts=rows,
        weight=torch.tensor(weight, dtype=torch.float64),
        sender=torch.arange(len(weight)) if sender is None else torch.tensor(sender),
        age=torch.zeros(len(weight), dtype=torch.float64) if ages is None else ages,
        layout=Layout({"w": (next(iter(rows.values())).shape[1],)}),
        chances=chances,
        frequencies=None if often is None else lambda: often,
    )


def table(rows: Tensor) -> Table:
    """A server's table in which node i has row i of [n, d]."""
    found = Table(len(rows), rows[0])
    found[torch.arange(len(rows))] = rows
    return found
