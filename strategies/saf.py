"""SAF: Du, Zhou, Feng, Tan, Zhou 2022, "Sharpness-Aware Training for Free" (NeurIPS), https://arxiv.org/abs/2205.14083: what a model says
of a sample is held to what it said some epochs ago, which stands in for SAM's second gradient. Here as local training."""

# m: jobs, B: samples a batch, C: outputs, J: samples of the node that has most

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Local, Rows, setting
from fedsim.base.errors import SettingError
from fedsim.method.distil import width
from fedsim.method.steps import Batch
from fedsim.task.loss import total
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Trajectory(FedAvg):
    """FedAvg whose local steps go down the loss + strength x T^2 x KL(softmax(z0 / T) || softmax(z / T)), the mean over a batch.

    z are a sample's outputs, z0 those of an earlier model (fixed), T the temperature. z0 are taken in evaluation mode, by a forward pass of
    their own; the world's time counts one gradient a step, for in the papers they fall out of it. Defaults are those of the authors' notes.
    """

    abstract: ClassVar[bool] = True

    strength: float = setting(0.3, "times the divergence (lambda); 0 is FedAvg", ge=0)
    temperature: float = setting(5.0, "that both outputs are divided by (tau)", gt=0)
    after: int = setting(5, "epochs of a client, over its jobs, after which the divergence counts (E_start)", ge=0, le=10**9)

    def begins(self, steps: float, epochs: float) -> str:
        return "" if not self.strength or epochs > self.after else fedavg("after", self.after, epochs)

    def start(self, x: Tensor, task: Task) -> Rows:
        if not task.labelled or width(task) < 2:
            raise SettingError(
                "task.data", f"`{self.name}` compares the outputs of classes: one class a sample, two outputs or more are due"
            )
        return super().start(x, task)

    def loss(self, task: Task, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        if targets.dim() == 1:  # labels
            return total(task, outputs, targets, weight)
        label, counts = targets[:, 0].long(), weight * targets[:, 1]
        was, now = ((logits / self.temperature).log_softmax(-1) for logits in (targets[:, 2:], outputs))
        apart = (was.exp() * (was - now)).sum(-1)
        return total(task, outputs, label, weight) + self.strength * self.temperature**2 * (counts * apart).sum()

    def beside(self, batch: Batch, earlier: Tensor, counts: Tensor) -> Batch:
        """The batch with z0 [m, B, C] as targets beside its labels, and where they count [m, B]."""
        return batch.with_(targets=torch.cat([batch.targets[..., None], counts[..., None], earlier], 2).to(earlier.dtype))


@dataclass(frozen=True)
class Saf(Trajectory):
    """z0 are what the client's own model said of the sample `ago` epochs before, each client counting its own epochs.

    The outputs of a client's samples are kept with it from job to job: J x C x `ago` numbers, J those of the client that has most. A sample
    is compared once it has been seen so often, where the authors' code, with a smaller `after`, compares it with outputs of 0.
    """

    name: ClassVar[str] = "saf"
    source: ClassVar[str] = "Du et al. 2022"

    ago: int = setting(3, "epochs between the outputs that are compared (E)", ge=1, le=1000)

    def begins(self, steps: float, epochs: float) -> str:
        return fedavg("ago", self.ago, epochs) if self.strength and epochs <= self.ago else super().begins(steps, epochs)

    def remembered(self, x: Tensor, task: Task) -> Rows:
        if not self.strength:
            return {}
        seen = torch.zeros(len(x), task.most + 1, dtype=torch.int32, device=x.device)  # the last of both is padding's, and stays 0
        return {"said": x.new_zeros(len(x), task.most * self.ago + 1, width(task)), "seen": seen}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        if not self.strength:
            return super().local_update(received, memory, local)
        start = received["model"]
        x, own, said, seen = start.clone(), samples(local), memory["said"], memory["seen"]
        for batch, y, numbers, z, often in local.batches(x, own, said, seen):
            valid = batch.weight > 0
            place = torch.where(valid, torch.searchsorted(numbers, batch.samples), local.task.most)
            times = often.gather(1, place)
            slot = place * self.ago + times % self.ago
            now = batch.outputs(y).flatten(2)
            earlier = z.gather(1, slot[..., None].expand_as(now))
            slope = self.beside(batch, earlier, (times >= max(self.ago, self.after + 1))).gradient(y)
            z.scatter_(1, slot[..., None].expand_as(now), now * valid[..., None])
            often.scatter_(1, place, (times + 1) * valid)
            local.step(y, slope)
        return {"update": x - start}, {"said": said, "seen": seen}


def fedavg(key: str, late: int, epochs: float) -> str:
    """The warning that nothing is ever compared."""
    return f"{key}: {late} epochs, and a client trains for about {epochs:.3g} in this run: all of it is FedAvg"


def samples(local: Local) -> Tensor:
    """int64 [m, J]: the numbers of the samples of each job's node, rising; of a node with fewer the last again."""
    places = torch.arange(local.task.most, device=local.nodes.device)[None]
    return local.task.sample(local.nodes[:, None], torch.minimum(places, local.counts[:, None] - 1)).sort(1).values
