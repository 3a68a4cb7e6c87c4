"""How gradients of many rows are computed: what all plans share."""

# L: rows at work, m: rows of a chunk, d: parameters, B: samples a batch

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.base.rows import BUFFERS, Step, shrink, subtract
from fedsim.gradients.masks import masked
from fedsim.gradients.samples import LossOf, Samples
from fedsim.models.pure import call_of, evaluation
from fedsim.task.loss import MASK, takes_mask
from fedsim.task.task import Task, decoded


class Plan:
    """Gradients and losses of rows of models, each on its own samples."""

    name = ""

    def __init__(self, task: Task, loss: LossOf, chunk: int, precision: str = "float32") -> None:
        self.task, self.loss_of, self.chunk, self.precision = task, loss, chunk, precision
        self.call = call_of(task.model)
        self.masks = task.classes > 0 and (takes_mask(loss) or takes_mask(task.loss))

    def value(self, params: Mapping[str, Tensor], samples: Samples) -> Tensor:
        """Loss of one model on its samples."""
        return self.outcome(params, samples)[0]

    def outcome(self, params: Mapping[str, Tensor], samples: Samples) -> tuple[Tensor, Tensor]:
        """Loss of one model on its samples, and its running statistics [b] of after."""
        extra, after = samples.extra, samples.weight[:0]
        if self.call is None:
            outputs = self._outputs(params, samples)
        else:
            before = self.task.buffers.views(extra[BUFFERS]) if BUFFERS in extra else {}
            with self.call.training(samples.weight, extra.get("key")) as new:
                outputs = self._outputs(dict(params) | before, samples)
                if before:
                    after = self.task.buffers.join(before | new)
        value = masked(self.loss_of, self.task, extra.get(MASK))(outputs, samples.targets, samples.weight)
        penalty = self.task.loss.penalty_of(params)
        return value if penalty is None else value + samples.weight.sum() * penalty, after

    def sample_losses(self, params: Mapping[str, Tensor], samples: Samples) -> Tensor:
        """[B]: the task's loss of each sample for one model in evaluation mode, 0 for padding; running statistics are read, not renewed."""
        return self.task.loss(self.answers(params, samples), samples.targets) * (samples.weight != 0)

    def answers(self, params: Mapping[str, Tensor], samples: Samples) -> Tensor:
        """[B, ...]: outputs of one model in evaluation mode on its samples."""
        buffers = self.task.buffers.views(samples.extra[BUFFERS]) if BUFFERS in samples.extra else {}
        with evaluation(self.task.model):
            return self._outputs(dict(params) | buffers, samples)

    def _outputs(self, params: Mapping[str, Tensor], samples: Samples) -> Tensor:
        low = self.precision == "bfloat16"  # rows, losses and steps stay float32
        with torch.autocast(self.task.init.device.type, dtype=torch.bfloat16, cache_enabled=False) if low else nullcontext():
            outputs: Tensor = functional_call(self.task.model, dict(params), (samples.inputs,))
        return outputs.float() if low else outputs

    def example(self) -> Samples:
        """One model's first sample, and what else it needs."""
        task, zero = self.task, torch.zeros(1, dtype=torch.int64, device=self.task.init.device)
        first = task.sample(zero, zero)
        inputs, targets = decoded(task.inputs[first])[None], task.targets[first][None]
        extra = {"key": zero} if task.keyed else {}
        if task.buffers.size:
            extra[BUFFERS] = task.first_buffers[None].clone()
        if self.masks:
            extra[MASK] = torch.ones(1, task.classes, dtype=torch.bool, device=task.init.device)
        return Samples(inputs, targets, torch.ones(1, 1, dtype=task.init.dtype, device=task.init.device), extra)

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        """[L, d] from x [L, d], a row a model. Running statistics among the samples are renewed in place."""
        raise NotImplementedError

    def descend(self, x: Tensor, lr: Step, samples: Samples, keep: Step = 1.0, at: Tensor | None = None) -> None:
        """x <- keep x x - lr x gradient at `at` (None: at x), in place; lr and keep may be [L, 1]. Up to rounding as with `gradient`."""
        slopes = self.gradient(x if at is None else at, samples)
        shrink(x, keep)
        subtract(x, lr, slopes)

    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        """[L], forward only."""
        raise NotImplementedError

    def outputs(self, x: Tensor, samples: Samples) -> Tensor:
        """[L, B, ...]: outputs in evaluation mode, forward only."""
        raise NotImplementedError

    def input_gradient(self, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """[L, B]: each sample's loss as `sample_losses` has it, and [L, B, ...]: its gradient with respect to the sample, a number's."""
        raise NotImplementedError
