"""What many models make of samples: their outputs, in evaluation mode."""

# k: models, T: samples, d: parameters, b: running statistics

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fedsim.models.pure import evaluation
from fedsim.task.task import Task


def outputs(task: Task, rows: Tensor, buffers: Tensor, inputs: Tensor, shared: bool) -> Tensor:
    """[k, T, ...]: outputs of models [k, d] in evaluation mode, all on the same inputs [T, ...] (`shared`), or each on its own [k, T, ...].

    Together where the model stacks, else one after the other.
    """
    one = partial(output, task)
    with evaluation(task.model):
        try:
            together: Tensor = vmap(one, in_dims=(0, 0, None if shared else 0))(rows, buffers, inputs)
            return together
        except RuntimeError:  # a model with operations that don't stack
            each = (inputs,) * len(rows) if shared else inputs.unbind()
            return torch.stack([one(*given) for given in zip(rows, buffers, each, strict=True)])


def output(task: Task, model: Tensor, buffers: Tensor, inputs: Tensor) -> Tensor:
    """[T, ...]: of one model [d] with its running statistics [b], in the mode that the task's model is in."""
    found: Tensor = functional_call(task.model, task.layout.views(model) | task.buffers.views(buffers), (inputs,))
    return found
