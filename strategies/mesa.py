"""MESA: Du, Zhou, Feng, Tan, Zhou 2022, "Sharpness-Aware Training for Free" (NeurIPS), https://arxiv.org/abs/2205.14083: SAF without a
store of outputs; the earlier model is the moving mean of the models so far. Here as local training."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Local, Rows, setting
from strategies.saf import Trajectory


@dataclass(frozen=True)
class Mesa(Trajectory):
    """z0 are the outputs of v <- decay x v + (1 - decay) x w, moved after each local step; v begins at the first model a client receives.

    Each client keeps its own v, and how many steps it has made, from job to job. v has the running statistics of w.
    """

    name: ClassVar[str] = "mesa"
    source: ClassVar[str] = "Du et al. 2022"

    decay: float = setting(0.9998, "of the mean model: weight of the past", ge=0, lt=1)

    def start_local(self, x: Tensor) -> Rows:
        if not self.strength:
            return {}
        return {"mean": x.clone(), "steps": torch.zeros(len(x), 1, dtype=torch.int64, device=x.device)}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        if not self.strength:
            return super().local_update(received, memory, local)
        start, before = received["model"], memory["steps"]
        x, mean = start.clone(), torch.where(before == 0, start, memory["mean"])
        epoch = local.per_epoch[:, None]
        for batch, y, v, done, steps in local.batches(x, mean, before, epoch):
            counts = ((done + batch.number) // steps > self.after).expand_as(batch.weight)
            slope = self.beside(batch, batch.outputs(v).flatten(2), counts).gradient(y)
            local.step(y, slope)
            v.mul_(self.decay).add_(y, alpha=1 - self.decay)
        return {"update": x - start}, {"mean": mean, "steps": before + local.steps[:, None]}
