"""Knowledge distillation: models learn other models' outputs on public samples, in the place of labels."""

# m: jobs, k: teachers, P: public samples, C: outputs, B: samples a batch, d: parameters

from collections.abc import Iterator
from math import cos, pi

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, permutation
from fedsim.method.local import Local
from fedsim.method.steps import Batch
from fedsim.models.pure import evaluation
from fedsim.task.architectures import MODEL
from fedsim.task.outputs import output, outputs
from fedsim.task.task import Task, decoded

SLAB = 128  # public samples looked at together
TOGETHER = 100  # models, likewise


def check(name: str, task: Task) -> None:
    """Raises SettingError where a method of this name can't distil."""
    if not task.labelled:
        raise SettingError("task.data", f"`{name}` exchanges outputs of classes, and each sample of these data has not one class")
    if not len(task.public):
        own = [one.group for one in task.architectures if one.key != MODEL]
        why = f"group `{own[-1]}` has a model of its own, and " if own else ""
        raise SettingError("task.public", f"{why}`{name}` exchanges outputs on public samples: `public: 500` holds some out")


def width(task: Task) -> int:
    """How many outputs a sample has (C)."""
    with torch.no_grad(), evaluation(task.model):
        found: Tensor = task.model(decoded(task.inputs[:1]))
    return found[0].numel()


def answers(local: Local, x: Tensor) -> Tensor:
    """[m, P, C]: what jobs' models [m, d] make of the public samples; the same bits whatever jobs are computed together."""
    found = []
    for at in torch.split(torch.arange(len(local.task.public), device=x.device), SLAB):
        places = at.expand(len(x), -1)
        found.append(_shown(local, places, torch.zeros_like(places), 0).outputs(x).flatten(2))
    return torch.cat(found, 1)


def batches(local: Local, targets: Tensor, size: int, steps: int) -> Iterator[Batch]:
    """For each step a batch of public samples with what is to be learnt of them, from targets [m, P, C]; each job in its own order.

    Each epoch is shuffled anew by the job's key, and its last batch is dropped where it is not whole. Jobs with targets of 0 everywhere
    have none yet: their batches weigh nothing.
    """
    count = len(local.task.public)
    size = min(size, count)
    has = (targets != 0).flatten(1).any(1).to(targets.dtype)[:, None]
    for step in range(steps):
        if (place := step % (count // size)) == 0:
            order = permutation(fold(local.key, "public", step), count)
        local.in_time()
        places = order[:, place * size : (place + 1) * size]
        wanted = targets.gather(1, places[:, :, None].expand(-1, -1, targets.shape[2]))
        yield _shown(local, places, wanted, step).with_(weight=(has / size).expand(-1, size).contiguous())


def _shown(local: Local, places: Tensor, targets: Tensor, step: int) -> Batch:
    """A batch of the public samples at places [m, B]."""
    inputs = decoded(local.task.public.index_select(0, places.flatten()))
    inputs = inputs.view(*places.shape, *inputs.shape[1:])
    weight = torch.ones(places.shape, dtype=local.task.init.dtype, device=places.device)
    return Batch(local.plan, inputs, targets, weight, fold(local.key, "distil"), step, local.buffers, local.mask)


@torch.no_grad()
def ensemble(task: Task, models: Tensor) -> Tensor:
    """[P, C]: sum over models [k, d] of their outputs on the public samples."""
    statistics, slabs = task.first_buffers.expand(len(models), -1), list[Tensor]()
    for inputs in torch.split(task.public, SLAB):
        pieces = zip(torch.split(models, TOGETHER), torch.split(statistics, TOGETHER), strict=True)
        slabs.append(torch.stack([outputs(task, *piece, decoded(inputs), shared=True).flatten(2).sum(0) for piece in pieces]).sum(0))
    return torch.cat(slabs)


def learnt(task: Task, model: Tensor, shares: Tensor, steps: int, size: int, lr: float, key: Tensor) -> Tensor:
    """A model [d] after steps of Adam (Kingma & Ba 2015) on the divergence of its softmax from shares [P, C], along a cosine down to 0.

    In evaluation mode, so without dropout. Batches as in `batches`; a server's one model, by plain autograd.
    """
    count, x = len(task.public), model.clone()
    size, first, second = min(size, count), torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps):
        if (place := step % (count // size)) == 0:
            order = permutation(fold(key, "public", step), count)
        at = order[place * size : (place + 1) * size]
        with torch.enable_grad(), evaluation(task.model):
            y = x.detach().requires_grad_()
            said = output(task, y, task.first_buffers, decoded(task.public[at])).flatten(1).log_softmax(1)
            slope = torch.autograd.grad(-(shares[at] * said).sum(1).mean(), y)[0]
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
        along = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        x = x - lr * 0.5 * (1 + cos(pi * step / steps)) * along
    return x


@torch.no_grad()
def accuracy(task: Task, model: Tensor) -> float:
    """Of a model [d] on the test samples."""
    right = []
    with evaluation(task.model):
        for inputs, targets in zip(torch.split(task.test_inputs, 4096), torch.split(task.test_targets, 4096), strict=True):
            right.append(task.loss.predicted(output(task, model, task.first_buffers, decoded(inputs))) == targets)
    return float(torch.cat(right).double().mean())
