"""FAL: Li, Song, Yang 2023, "Federated Adversarial Learning: A Framework with Convergence Analysis", https://arxiv.org/abs/2208.03635,
Algorithm 1: FedAvg whose clients train on samples attacked at their own current model (Madry et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim import Local, Rows, setting
from fedsim.method.attacks import Attack, Pgd
from fedsim.method.inbox import Weights
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Adversarial(FedAvg):
    """y <- y - lr x gradient at (A(y, x), label) in each local step; radius 0 is FedAvg.

    Attacks see the model in evaluation mode (no dropout, BatchNorm by its running statistics); the step trains it on what they made.
    """

    name: ClassVar[str] = "adversarial"
    source: ClassVar[str] = "Li, Song, Yang 2023"

    weights: Weights = setting("uniform", "weight of a client: the same for all, or its share of the samples merged")
    attack: Attack = setting(Pgd(), "the adversary A; each of its gradients takes as long as that of the step")

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return 1 + self.attack.gradients

    def start(self, x: Tensor, task: Task) -> Rows:
        self.attack.check(task, "strategy.attack")
        return super().start(x, task)

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        if not self.attack.moves:
            return super().local_update(received, memory, local)
        model = received["model"].clone()
        for batch, y in local.batches(model):
            local.step(y, self.attack.on(batch, y).gradient(y))
        return {"update": model - received["model"]}, memory
