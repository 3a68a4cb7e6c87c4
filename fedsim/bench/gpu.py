"""`fedsim bench gpu`: whole federations on a GPU beside a plain loop and a bare stacked loop, and beside what the card can do."""

# d: parameters

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.base.errors import FedsimError
from fedsim.bench.figures import Figure, limit, say, seconds
from fedsim.bench.plain import BareLoop, PlainLoop, _cohorts
from fedsim.bench.runs import opened
from fedsim.run.tune import advance

GOAL = 45.0  # seconds of pfl-research's CIFAR-10 benchmark on one H100
PFL_ROUNDS = 1500


def need() -> None:
    """Raises FedsimError where there is no GPU."""
    if not torch.cuda.is_available():
        raise FedsimError(f"gpu: there is no CUDA device here (torch {torch.__version__}); nothing was measured")


def images() -> dict[str, Any]:
    """Random images of CIFAR-10's shape, 50 for each of 1,000 users: for the time they take, not for what is learnt."""
    import numpy as np

    lot = np.random.default_rng(0)
    x, y = lot.integers(0, 256, (51_000, 3, 32, 32), dtype=np.uint8), lot.integers(0, 10, 51_000)
    return {"x": x[:50_000], "y": y[:50_000], "x_test": x[50_000:], "y_test": y[50_000:]}


def cnn() -> nn.Module:
    """The benchmark's two convolutions and two dense layers: 1,626,442 parameters (Granqvist et al. 2024, arXiv 2404.06430)."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10)),
    )


@dataclass(frozen=True)
class OnGpu:
    """FedAvg on 1,000 users with 50 images each, one epoch, batch 10; `rounds` are those of a trial."""

    model: str
    cohort: int
    rounds: int

    @property
    def steps(self) -> int:
        """Client-steps of a trial."""
        return self.rounds * self.cohort * 5

    def text(self, device: str) -> str:
        """The scenario."""
        return (
            f"task: {{data: 'fedsim.bench.gpu:images', partition: {{name: iid, nodes: 1000}}, model: {self.model}}}\n"
            "strategy: fedavg\ntrain: {epochs: 1, batch: 10, lr: 0.01}\n"
            f"schedule: {{name: rounds, cohort: {self.cohort}}}\nengine: {{device: '{device}'}}\n"
        )


CIFAR = OnGpu("'fedsim.bench.gpu:cnn'", 50, 20)
WORK = {
    "CIFAR-10 CNN 1.63 M, cohort 50": CIFAR,
    "logistic regression, cohort 100": OnGpu("logistic", 100, 20),
    "MLP 3072-200-10, cohort 100": OnGpu("{name: mlp, hidden: [200]}", 100, 20),
    "ResNet-18 GroupNorm, cohort 20": OnGpu("{name: resnet18, norm: group}", 20, 2),
}


def gpu(trials: int, device: str = "cuda") -> list[Figure]:
    """Client-steps a second of each workload; then what a step reads and computes, in 10^9 a second, beside what the card does at best.

    Raises FedsimError without a GPU.
    """
    if device == "cuda":
        need()
    card, found = limits(torch.device(device)), []
    for name, work in WORK.items():
        found += measured(name, work, trials, device, card)
    return found


def measured(name: str, work: OnGpu, trials: int, device: str, card: tuple[float, float]) -> list[Figure]:
    """The figures of one workload; `card`: bytes and float32 operations a second."""
    with tempfile.TemporaryDirectory() as place:
        run = opened(Path(place), work.text(device))
        there = torch.get_device_module(run.fed.worker.device)
        plain, bare = PlainLoop(run, 0.01), BareLoop(run, 0.01)
        times: list[list[float]] = [[], [], []]

        def timed(task: Callable[[], object]) -> float:
            return seconds(lambda: (task(), there.synchronize()))

        for trial in range(trials + 1):  # the first warms up
            cohorts = _cohorts(run, work.rounds)
            each = (lambda: advance(run, work.rounds)), plain.prepared(cohorts), bare.prepared(cohorts)
            for spent, task in zip(times, each, strict=True):
                spent.append(timed(task))
            say(f"{name}: trial {trial} of {trials}")
        d, flops = run.fed.task.layout.size, float(_flops(run.fed.task))
        run.close("finished")
    ours, theirs, least = (work.steps / median(spent[1:] or spent) for spent in times)
    figures = [
        Figure(f"{name}, plain loop", ours, theirs, ours / theirs, None),
        Figure(f"{name}, bare loop", ours, least, ours / least, None),
        Figure(f"{name}, GB/s", ours * 12 * d / 1e9, card[0] / 1e9, ours * 12 * d / card[0], None),  # read twice, written once
        Figure(f"{name}, GFLOP/s", ours * flops / 1e9, card[1] / 1e9, ours * flops / card[1], None),
    ]
    if work is CIFAR:
        figures.append(limit(f"{PFL_ROUNDS} rounds of it in seconds, random images", PFL_ROUNDS * work.cohort * 5 / ours, GOAL))
    return figures


def _flops(task: Any) -> int:
    """Of a client-step of ten samples: a pass forward, and twice that backward."""
    from torch.utils.flop_counter import FlopCounterMode

    from fedsim.task.task import decoded

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.model.cpu()(decoded(task.inputs[:10].cpu()))
    task.model.to(task.init.device)
    return 3 * int(counter.get_total_flops())


def limits(device: torch.device, size: int = 8192) -> tuple[float, float]:
    """What the card does: bytes a second of a copy (read and written), and operations a second of a product of float32 matrices."""
    there = torch.get_device_module(device)
    a = torch.ones(size, size, device=device)
    b = torch.empty_like(a)

    def rate(work: Callable[[], Tensor], amount: float) -> float:
        work()
        there.synchronize()
        return amount / seconds(lambda: (work(), there.synchronize()))

    return rate(lambda: b.copy_(a), 2.0 * a.nbytes), rate(lambda: torch.matmul(a, a, out=b), 2.0 * size**3)
