"""fedsim against a plain PyTorch loop over clients, and against a bare loop over stacked gradients, side by side in one process."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fedsim.base.devices import cores, sent
from fedsim.base.errors import RunError
from fedsim.base.keys import fold
from fedsim.bench.figures import Figure, say, seconds
from fedsim.bench.runs import flight_of, opened, rate, side_by_side
from fedsim.method.local import Local
from fedsim.report.mlflow.tracking import start_follower
from fedsim.run.runner import Run
from fedsim.run.tune import advance
from fedsim.task.task import decoded

CLIENTS, IMAGES, BATCH = 1000, 60, 10
COMPILES = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@dataclass(frozen=True)
class Workload:
    """A method on 1,000 clients with 60 MNIST images each, batch 10; `rounds` are those of a trial, `engine` the engine's settings."""

    model: str
    cohort: int
    rounds: int
    engine: str = "{processes: 1}"
    lr: float = 0.05
    epochs: int = 1
    strategy: str = "fedavg"

    def text(self) -> str:
        """The scenario."""
        return (
            f"task: {{data: 'fedsim.bench:images', partition: {{name: iid, nodes: {CLIENTS}}}, model: {self.model}}}\n"
            f"strategy: {self.strategy}\ntrain: {{epochs: {self.epochs}, batch: {BATCH}, lr: {self.lr}}}\n"
            f"schedule: {{name: rounds, cohort: {self.cohort}}}\nengine: {self.engine}\n"
            "world: {compute: {step: {name: log_normal, median: 20 ms, sigma: 0.5}}, network: {up: 1 MB/s, down: 5 MB/s, latency: 50 ms}}\n"
        )

    @property
    def steps(self) -> int:
        """Client-steps of a trial."""
        return self.rounds * self.cohort * self.epochs * IMAGES // BATCH


@contextmanager
def running(work: Workload) -> Iterator[Run]:
    """A run with its folder, events and tracking, driven by hand."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = opened(folder, work.text())
        follower = start_follower(folder / "run", f"sqlite:///{folder / 'mlflow.db'}")
        try:
            yield run
        finally:
            run.close("finished")
            if follower:
                follower.finish(30)


def against_plain_loop(name: str, work: Workload, target: float | None, tolerance: float, trials: int) -> list[Figure]:
    """Clock, events, ledger and tracking are on; the plain loop has nothing but its batches, worked out beforehand."""
    with running(work) as run:
        return _compared(f"{name}, plain loop", work, run, PlainLoop(run, work.lr), target, trials, tolerance)


def against_bare_loop(name: str, work: Workload, target: float | None, trials: int) -> list[Figure]:
    """The other side is a loop over traced gradients of all rows and a step along them, and nothing else."""
    with running(work) as run:
        return _compared(f"{name}, bare loop", work, run, BareLoop(run, work.lr), target, trials, 1e-4)


def _compared(
    name: str,
    work: Workload,
    run: Run,
    other: "PlainLoop | BareLoop",
    target: float | None,
    trials: int,
    tolerance: float,
) -> list[Figure]:
    """Both sides begin each trial at one model, so that no rounding of a trial grows in the next, and must have done the same work."""
    pairs = []
    for trial in range(-1, trials):  # the first warms up
        cohorts = _cohorts(run, work.rounds)
        other.begin(run)
        ours, theirs = seconds(lambda: advance(run, work.rounds)), seconds(other.prepared(cohorts))
        _same(run, other.rows(), tolerance)
        if trial >= 0:
            pairs.append((ours, theirs))
        say(f"{name}: trial {max(0, trial + 1)} of {trials}")
    ours, theirs = (work.steps / median(side) for side in zip(*pairs, strict=True))
    return [Figure(name, ours, theirs, median(t / o for o, t in pairs), target)]


def processes(trials: int) -> list[Figure]:
    """Two worker processes beside one, on the CNN."""
    one, two = (Workload("cnn_gn", 10, 1, f"{{processes: {count}}}", 0.01) for count in (1, 2))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        single, double = opened(Path(first), one.text()), opened(Path(second), two.text())
        name = "cnn_gn, two processes beside one"
        figures = side_by_side(name, trials, lambda: rate(double, 1), lambda: rate(single, 1))
        for run in (single, double):
            run.close("finished")
    return [Figure(name, *figures, 1.6 if cores() > 1 else None)]


Cohorts = list[list[Tensor]]  # of each round, of each client its batches as sample numbers, int64 [steps, B]


def _cohorts(run: Run, rounds: int) -> Cohorts:
    """Those of the coming rounds."""
    fed, out = run.fed, []
    version, turn = fed.version, flight_of(run).turn.copy()
    for _ in range(rounds):
        nodes = fed.sample(fed.schedule.sampling, fed.schedule.cohort).nodes  # type: ignore[attr-defined]
        fed.version += 1
        turn[nodes] += 1
        at, turns = (sent(one, fed.worker.device) for one in (nodes, turn[nodes]))
        key = fold(fed.seed, "job", at, turns)
        local = Local(fed.worker.plan, fed.task, fed.strategy.train, at, key, nodes * 0)
        table = local._table(0, int(local.steps[0]))[1].view(-1, len(nodes), BATCH)
        out.append(list(table.transpose(0, 1).contiguous()))
    fed.version = version
    return out


class PlainLoop:
    """What one writes first: one model, SGD, client after client, and the mean of their updates."""

    def __init__(self, run: Run, lr: float) -> None:
        task = run.fed.task
        self.inputs, self.targets = decoded(task.inputs), task.targets
        self.model = copy.deepcopy(task.model).train()
        self.optimizer, self.loss = torch.optim.SGD(self.model.parameters(), lr=lr), nn.CrossEntropyLoss()

    @torch.no_grad()
    def begin(self, run: Run) -> None:
        """At the run's model."""
        for parameter, view in zip(self.model.parameters(), run.fed.task.layout.views(run.fed.state["model"][0]).values(), strict=True):
            parameter.copy_(view)

    def rows(self) -> Tensor:
        """The model as a row."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def prepared(self, cohorts: Cohorts) -> Callable[[], None]:
        """The rounds of these cohorts."""
        return partial(_each, self.round, cohorts)

    def round(self, clients: list[Tensor]) -> None:
        parameters = list(self.model.parameters())
        start = [parameter.detach().clone() for parameter in parameters]
        mean = [torch.zeros_like(tensor) for tensor in start]
        for batches in clients:
            with torch.no_grad():
                for parameter, tensor in zip(parameters, start, strict=True):
                    parameter.copy_(tensor)
            for batch in batches:
                self.optimizer.zero_grad()
                self.loss(self.model(self.inputs[batch]), self.targets[batch]).backward()
                self.optimizer.step()
            with torch.no_grad():
                for total, parameter, tensor in zip(mean, parameters, start, strict=True):
                    total.add_(parameter - tensor, alpha=1 / len(clients))
        with torch.no_grad():
            for parameter, tensor, total in zip(parameters, start, mean, strict=True):
                parameter.copy_(tensor + total)


class BareLoop:
    """Gradients of all rows by one traced function, a step along them, and the mean of the rows."""

    def __init__(self, run: Run, lr: float) -> None:
        self.task, self.lr = run.fed.task, lr
        self.x: Tensor = run.fed.state["model"][0]
        self.gradient: Callable[..., list[Tensor]] | None = None

    def begin(self, run: Run) -> None:
        """At the run's model."""
        self.x = run.fed.state["model"][0].clone()

    def rows(self) -> Tensor:
        """The model as a row."""
        return self.x

    def prepared(self, cohorts: Cohorts) -> Callable[[], None]:
        """The rounds of these cohorts."""
        tables = [torch.stack(clients, 1) for clients in cohorts]
        return partial(_each, self.round, tables)

    @torch.no_grad()
    def round(self, table: Tensor) -> None:
        """table int64 [steps, clients, B]"""
        task = self.task
        x = self.x.expand(table.shape[1], -1).clone()
        views = task.layout.views(x)
        for samples in table:
            flat = samples.flatten()
            inputs = decoded(task.inputs.index_select(0, flat)).view(*samples.shape, *task.inputs.shape[1:])
            targets = task.targets.index_select(0, flat).view(samples.shape)
            if self.gradient is None:
                self.gradient = self._traced(list(views.values()), inputs, targets)
            for view, slope in zip(views.values(), self.gradient(list(views.values()), inputs, targets), strict=True):
                view.sub_(slope, alpha=self.lr)
        self.x = x.mean(0)

    def _traced(self, params: list[Tensor], inputs: Tensor, targets: Tensor) -> Callable[..., list[Tensor]]:
        names = self.task.layout.names

        def loss(params: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            outputs = functional_call(self.task.model, dict(zip(names, params, strict=True)), (inputs,))
            return nn.functional.cross_entropy(outputs, targets)

        found: Callable[..., list[Tensor]] = make_fx(vmap(grad(loss)))(params, inputs, targets)
        return found


def _each(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    for item in items:
        work(item)


def _same(run: Run, theirs: Tensor, tolerance: float) -> None:
    """Both sides must have done the same work."""
    ours = run.fed.state["model"][0]
    difference = float((ours - theirs).norm() / theirs.norm())
    if not difference < tolerance:
        raise RunError(f"bench: the two sides differ by {difference:.2g} relative, so they did not do the same work")


def measurements() -> dict[str, Callable[[int], list[Figure]]]:
    """Those of this module, by name."""
    amx = torch.cpu._is_amx_tile_supported()
    regression, five = "logistic regression", Workload("logistic", 100, 2, epochs=5)
    compiled, half = "{plan: compiled, processes: 1}", "{precision: bfloat16, processes: 1}"
    mlp, cnn = Workload("{name: mlp, hidden: [200]}", 50, 2), Workload("cnn_gn", 10, 1, lr=0.01)
    ten = Workload("logistic", 10, 20, compiled)
    return {
        "logistic-100": partial(against_plain_loop, f"{regression}, cohort 100", Workload("logistic", 100, 5), 8.0, 1e-4),
        "logistic-10": partial(against_plain_loop, f"{regression}, cohort 10", Workload("logistic", 10, 20), 3.0, 1e-4),
        "logistic-10-compiled": partial(against_plain_loop, f"{regression}, cohort 10, compiled", ten, 5.0 if COMPILES else None, 1e-4),
        "mlp": partial(against_plain_loop, "MLP 784-200-10, cohort 50", mlp, 1.7, 1e-4),
        "cnn": partial(against_plain_loop, "cnn_gn, cohort 10", cnn, 1.1, 1e-3),
        "cnn-bfloat16": partial(
            against_plain_loop, "cnn_gn, cohort 10, bfloat16", Workload("cnn_gn", 10, 1, half, 0.01), 2.0 if amx else None, 0.1
        ),
        "bare": partial(against_bare_loop, f"{regression}, cohort 100, 5 epochs", five, 0.85),
        "bare-1": partial(against_bare_loop, f"{regression}, cohort 100, 1 epoch", Workload("logistic", 100, 5), None),
        "processes": processes,
    }
