"""The objective that training makes small, measured: the mean loss of the nodes' own samples, and its gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.settings.part import setting
from fedsim.task.task import Task

# n: nodes, d: parameters, B: samples


@dataclass(frozen=True)
class GradientNorm(Metric):
    """Mean training loss, with what the loss makes parameters cost, and the length of its gradient; with peers, the mean over their models.

    In evaluation mode, on all samples of all nodes: an evaluation costs a pass over the training data.
    """

    weights: Literal["samples", "uniform"] = setting("samples", "a node's weight in the mean: its share of all samples, or 1/n")

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if task.elsewhere:
            raise SettingError(key, "nodes' samples, over which the loss is taken, are not here")

    def measure(self, view: View) -> dict[str, float]:
        found = [self._of(view, model, buffers) for model, buffers in zip(view.models, view.buffers, strict=True)]
        losses, norms = zip(*found, strict=True)
        return {"train/loss": sum(losses) / len(losses), "train/gradient_norm": sum(norms) / len(norms)}

    @torch.enable_grad()
    def _of(self, view: View, model: Tensor, buffers: Tensor) -> tuple[float, float]:
        x, task = model.detach().requires_grad_(), view.task
        loss, gradient = 0.0, torch.zeros_like(model, dtype=torch.float64)
        for inputs, targets, weight in self._samples(view):
            value = (weight * task.loss(view.outputs(x, buffers, inputs), targets)).sum()
            gradient += torch.autograd.grad(value, x)[0]
            loss += float(value.detach())
        if (penalty := task.loss.penalty_of(task.layout.views(x))) is not None:
            gradient += torch.autograd.grad(penalty, x)[0]
            loss += float(penalty.detach())
        return loss, float(gradient.norm())

    def _samples(self, view: View) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Inputs [B, ...], targets [B, ...] and weights [B], which sum to 1, of all samples of all nodes as these have them now."""
        task = view.task
        ends = task.counts.cumsum(0)
        total = int(ends[-1])
        for at in torch.split(torch.arange(total, device=ends.device), max(1, view.slab // task.places)):
            node = torch.searchsorted(ends, at, right=True)
            count = task.counts[node]
            seen = task.seen(node, (at - ends[node] + count)[:, None], view.round)
            weight = count.double() * task.nodes if self.weights == "uniform" else torch.full_like(at, total, dtype=torch.float64)
            yield seen.inputs[:, 0], seen.targets[:, 0], (1 / weight).to(task.init.dtype)
