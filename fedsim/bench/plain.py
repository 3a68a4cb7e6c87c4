"""fedsim against a plain PyTorch loop over clients, side by side in one process."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from fedsim.bench.figures import Figure, say, seconds
from fedsim.errors import RunError
from fedsim.keys import fold
from fedsim.local import Local
from fedsim.runner import Run, Tasks
from fedsim.scenario import load
from fedsim.task import decoded
from fedsim.tracking import start_follower

ROUNDS = 5  # a trial
CLIENTS, IMAGES, BATCH, LR = 1000, 60, 10, 0.05


def against_plain_loop(cohort: int, target: float | None, trials: int) -> list[Figure]:
    """Logistic regression 784 x 10, FedAvg, 1,000 clients x 60 images; clock, events, ledger and tracking on."""
    name = f"logistic regression, cohort {cohort}, plain loop"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run = _run(folder, cohort)
        follower = start_follower(folder / "run", f"sqlite:///{folder / 'mlflow.db'}")
        plain = PlainLoop(run)
        try:
            pairs = []
            for trial in range(-1, trials):  # the first warms up
                cohorts = _cohorts(run, cohort)
                ours, theirs = seconds(lambda: _advance(run)), seconds(plain.prepared(cohorts))
                if trial >= 0:
                    pairs.append((ours, theirs))
                say(f"{name}: trial {max(0, trial + 1)} of {trials}")
            _same(run, plain)
        finally:
            run.close("finished")
            if follower:
                follower.finish(30)
    work = ROUNDS * cohort * IMAGES // BATCH
    ours, theirs = (work / median(side) for side in zip(*pairs, strict=True))
    return [Figure(name, ours, theirs, median(t / o for o, t in pairs), target)]


def _run(folder: Path, cohort: int) -> Run:
    """A run that is driven by hand: its folder, events and metrics are written as always."""
    scenario = folder / "bench.yaml"
    scenario.write_text(
        f"task: {{data: 'fedsim.bench:images', partition: {{name: iid, nodes: {CLIENTS}}}, model: logistic}}\n"
        f"strategy: fedavg\ntrain: {{epochs: 1, batch: {BATCH}, lr: {LR}}}\nschedule: {{name: rounds, cohort: {cohort}}}\n"
        "world: {compute: {step: {name: log_normal, median: 20 ms, sigma: 0.5}}, network: {up: 1 MB/s, down: 5 MB/s, latency: 50 ms}}\n"
        "evaluate: {every: 1000000 rounds}\nstop: {rounds: 1000000}\n"
    )
    [loaded] = load(scenario)
    run = Run(loaded, Tasks().get(loaded))
    run.open(folder / "run")
    return run


def _advance(run: Run) -> None:
    run.stop, run.reason = replace(run.stop, rounds=run.fed.round + ROUNDS), ""
    run.fed.run()


def _cohorts(run: Run, cohort: int) -> list[list[tuple[float, list[Tensor]]]]:
    """For each coming round its clients: weight, and sample numbers of each batch. Worked out beforehand, at no cost to the plain loop."""
    fed, out = run.fed, []
    version, turn = fed.version, fed.flight.turn.copy()
    for _ in range(ROUNDS):
        nodes = fed.sample(fed.schedule.sampling, fed.schedule.cohort).nodes  # type: ignore[attr-defined]
        fed.version += 1
        turn[nodes] += 1
        key = fold(fed.seed, "job", torch.from_numpy(nodes), torch.from_numpy(turn[nodes]))
        local = Local(fed.worker.plan, fed.task, fed.strategy.train, torch.from_numpy(nodes), key, nodes * 0)
        table = local._table(0, int(local.steps[0]))[0].view(-1, len(nodes), BATCH)
        out.append([(1 / len(nodes), list(table[:, client])) for client in range(len(nodes))])
    fed.version = version
    return out


class PlainLoop:
    """What one writes first: one model, SGD, client after client, and the mean of their updates."""

    def __init__(self, run: Run) -> None:
        task = run.fed.task
        self.inputs, self.targets = decoded(task.inputs).flatten(1), task.targets
        self.model = nn.Linear(self.inputs.shape[1], task.classes)
        with torch.no_grad():
            for parameter, view in zip(self.model.parameters(), task.layout.views(run.fed.state["model"][0]).values(), strict=True):
                parameter.copy_(view)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR)
        self.loss = nn.CrossEntropyLoss()

    def prepared(self, cohorts: list[list[tuple[float, list[Tensor]]]]) -> Callable[[], None]:
        """The rounds of these cohorts."""

        def work() -> None:
            for clients in cohorts:
                self.round(clients)

        return work

    def round(self, clients: list[tuple[float, list[Tensor]]]) -> None:
        parameters = list(self.model.parameters())
        start = [parameter.detach().clone() for parameter in parameters]
        mean = [torch.zeros_like(tensor) for tensor in start]
        for weight, batches in clients:
            with torch.no_grad():
                for parameter, tensor in zip(parameters, start, strict=True):
                    parameter.copy_(tensor)
            for batch in batches:
                self.optimizer.zero_grad()
                self.loss(self.model(self.inputs[batch]), self.targets[batch]).backward()
                self.optimizer.step()
            with torch.no_grad():
                for total, parameter, tensor in zip(mean, parameters, start, strict=True):
                    total.add_(parameter - tensor, alpha=weight)
        with torch.no_grad():
            for parameter, tensor, total in zip(parameters, start, mean, strict=True):
                parameter.copy_(tensor + total)


def _same(run: Run, plain: PlainLoop) -> None:
    """Both sides must have done the same work."""
    theirs = torch.cat([parameter.detach().flatten() for parameter in plain.model.parameters()])
    ours = run.fed.state["model"][0]
    difference = float((ours - theirs).norm() / theirs.norm())
    if not difference < 1e-4:
        raise RunError(f"bench: the two sides differ by {difference:.2g} relative, so they did not do the same work")
