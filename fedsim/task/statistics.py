"""Running statistics (BatchNorm's) of a model, taken anew from training samples."""

import torch
from torch import Tensor
from torch.func import functional_call

from fedsim.models.pure import call_of, measuring
from fedsim.task.task import Task

BATCHES = 32  # that statistics are taken from anew, at most (Zhu et al. 2026)


@torch.no_grad()
def recomputed(task: Task, model: Tensor, before: Tensor, nodes: Tensor, places: Tensor, size: int, round: int) -> Tensor:
    """Running statistics [b] of a model [d]: the mean of those of batches of `size` of the training samples at these places of nodes [k].

    All other layers are as in evaluation. A layer for which no batch has two values keeps what it had before, [b].
    """
    call, found = call_of(task.model), before
    assert call is not None
    with measuring(task.model):
        for number, (whose, where) in enumerate(zip(torch.split(nodes, size), torch.split(places, size), strict=True), 1):
            weight = torch.ones(len(whose), dtype=model.dtype, device=model.device)
            inputs = task.seen(whose, where[:, None], round).inputs[:, 0]
            with call.training(weight, None, share=1 / number) as new:
                functional_call(task.model, task.layout.views(model) | task.buffers.views(found), (inputs,))
            found = task.buffers.join(task.buffers.views(found) | new)
    return found
