"""FedMD: Li & Wang 2019, "FedMD: Heterogenous Federated Learning via Model Distillation", https://arxiv.org/abs/1910.03581, Algorithm 1:
clients keep their models, of any architecture, and exchange what these make of public samples."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Strategy, setting
from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.method.distil import answers, batches, check, width
from fedsim.method.inbox import Weights
from fedsim.task.loss import total
from fedsim.task.task import Task


@dataclass(frozen=True)
class FedMD(Strategy):
    """A client's job: digest (`digest` steps towards the consensus, the mean outputs of the round before, on public samples), revisit
    (`train`, on its own samples), communicate (its outputs on all public samples).

    A consensus of 0 everywhere is none yet, and is not digested. digest = 0 is training alone. The paper's first phase on labelled public
    samples is left out: here they have no labels. The server has no model: `test/accuracy` is the mean over the clients' on all test
    samples, `personal/accuracy` that on test data like their own.
    """

    name: ClassVar[str] = "fedmd"
    source: ClassVar[str] = "Li & Wang 2019"
    one_hearer: ClassVar[bool] = True
    architectures: ClassVar[bool] = True
    shared: ClassVar[bool] = False
    mixed: ClassVar[tuple[str, ...]] = ("consensus",)

    digest: int = setting(10, "steps of a job towards the consensus, before its own samples", ge=0, le=10**6)
    digest_batch: int = setting(64, "public samples a step", ge=1)
    digest_lr: float | None = setting(None, "learning rate there; by default that of `train`", gt=0)
    distance: Literal["absolute", "squared"] = setting(
        "absolute", "of outputs, mean over a sample's: `absolute` (as in the authors' code) or `squared`"
    )
    weights: Weights = setting("uniform", "weight of a client in the consensus: the same for all, or its share of the samples")

    def start(self, x: Tensor, task: Task) -> Rows:
        check(self.name, task)
        if task.buffers.size and task.keep_buffers != "local":
            raise SettingError("task.buffers", f"`{self.name}` leaves models to clients, and so their running statistics: `local` is due")
        return {"model": x, "consensus": x.new_zeros(len(x), len(task.public), width(task))}

    def start_local(self, x: Tensor) -> Rows:
        return {"model": x.clone()}

    def broadcast(self, state: Rows) -> Rows:
        return {"consensus": state["consensus"]}

    def effort(self, state: Rows, task: Task) -> tuple[Ints, Ints]:
        size, counts = self.train.batch_size(task), torch.from_numpy(task.sizes)
        steps, samples = self.train.plan(counts, size)[0], self.train.samples(counts, size)
        return (steps + self.digest).numpy(), (samples + self.digest * min(self.digest_batch, len(task.public))).numpy()

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        x = memory["model"].clone()
        for batch in batches(local, received["consensus"], self.digest_batch, self.digest):
            batch.descend(x, local.lr if self.digest_lr is None else self.digest_lr)
        x = local.descend(x)
        return {"outputs": answers(local, x)}, {"model": x}

    def loss(self, task: Task, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        if targets.dim() == 1:  # labels
            return total(task, outputs, targets, weight)
        apart = outputs.flatten(1) - targets
        return (weight * (apart.abs() if self.distance == "absolute" else apart.square()).mean(1)).sum()

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"consensus": inbox.as_one.mean("outputs", self.weights).expand_as(state["consensus"]).clone()}

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        return memory["model"]
