"""One row after the other by plain autograd: for models that don't stack, and convolutions on a CPU."""

# L: rows at work, m: rows of a chunk, d: parameters, B: samples a batch

import torch
from torch import Tensor

from fedsim.base.rows import BUFFERS, Step, shrink, subtract
from fedsim.gradients.images import channels_last
from fedsim.gradients.plan import Plan
from fedsim.gradients.samples import LossOf, Samples
from fedsim.task.task import Task


class Looped(Plan):
    """One row after the other by plain autograd: for models that don't stack, and convolutions on a CPU."""

    name = "looped"

    def __init__(self, task: Task, loss: LossOf, chunk: int, precision: str = "float32") -> None:
        super().__init__(task, loss, chunk, precision)
        self.format = torch.channels_last if channels_last(task.model, task.init.device) else torch.contiguous_format

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for i in range(len(x)):
            slopes = self._slopes(x, samples, i)
            self.task.layout.join({name: slope[None] for name, slope in slopes.items()}, out=out[i : i + 1])
        return out

    def descend(self, x: Tensor, lr: Step, samples: Samples, keep: Step = 1.0, at: Tensor | None = None) -> None:
        for i in range(len(x)):
            slopes = self._slopes(x if at is None else at, samples, i)
            shrink(x[i], keep if isinstance(keep, float) else keep[i])
            for name, view in self.task.layout.views(x[i]).items():
                subtract(view, lr if isinstance(lr, float) else lr[i], slopes[name])

    def _slopes(self, x: Tensor, samples: Samples, i: int) -> dict[str, Tensor]:
        """By parameter, of one row."""
        row = _row(samples, i)
        params = {name: kernel.requires_grad_() for name, kernel in self._kernels(x[i].detach()).items()}
        with torch.enable_grad():
            value, after = self.outcome(params, row._replace(inputs=self._laid(row.inputs)))
            slopes = torch.autograd.grad(value, list(params.values()))
        if BUFFERS in samples.extra:
            samples.extra[BUFFERS][i] = after
        return dict(zip(params, slopes, strict=True))

    @torch.no_grad()
    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        return torch.stack([self.value(self.task.layout.views(x[i]), _row(samples, i)) for i in range(len(x))])

    @torch.no_grad()
    def outputs(self, x: Tensor, samples: Samples) -> Tensor:
        return torch.stack([self.answers(self.task.layout.views(x[i]), _row(samples, i)) for i in range(len(x))])

    def input_gradient(self, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        losses, slopes = samples.weight.new_empty(samples.weight.shape), torch.empty_like(samples.inputs)
        for i in range(len(x)):
            row, params = _row(samples, i), self._kernels(x[i])
            inputs = self._laid(row.inputs).detach().requires_grad_()
            with torch.enable_grad():
                losses[i] = found = self.sample_losses(params, row._replace(inputs=inputs))
                slopes[i] = torch.autograd.grad(found.sum(), inputs)[0]
        return losses.detach(), slopes

    def _laid(self, values: Tensor) -> Tensor:
        """Images in their format."""
        return values.contiguous(memory_format=self.format) if values.dim() == 4 else values

    def _kernels(self, x: Tensor) -> dict[str, Tensor]:
        """A row's parameters, kernels in their format, by their strides too where one channel fits both: outputs lie as kernels do."""
        views = self.task.layout.views(x)
        return {name: view.to(memory_format=self.format) if view.dim() == 4 else view for name, view in views.items()}


def _row(samples: Samples, i: int) -> Samples:
    return Samples(samples.inputs[i], samples.targets[i], samples.weight[i], {name: rows[i] for name, rows in samples.extra.items()})
