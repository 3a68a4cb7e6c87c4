"""Which plan runs, in how many processes and on how many rows at once: fixed rules, so that a scenario gives the same bits every time."""

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from fedsim.base.devices import api, cores, forks
from fedsim.base.errors import SettingError, line
from fedsim.base.memory import afford
from fedsim.base.text import count, size
from fedsim.gradients.graphs import Compiled, CudaGraphs
from fedsim.gradients.looped import Looped
from fedsim.gradients.one_way import Grouped, Unfolded
from fedsim.gradients.plan import Plan
from fedsim.gradients.samples import LossOf
from fedsim.gradients.stacked import Stacked
from fedsim.models.policy import Rollout
from fedsim.task.task import Task, decoded

ROWS = 100  # more at once gain nothing: the cost of calls is spread
CACHE = 5 << 20  # bytes of models that a CPU's cache holds over the steps of a chunk, beside what methods add to each: 8 rows of 159,010


def choose(task: Task, loss: LossOf, wanted: str, chunk: int, threads: int, precision: str = "float32") -> tuple[Plan, str]:
    """The plan, and why: stacked, unless the model doesn't stack or is convolutional on a CPU. Raises ValueError for what can't be."""
    on_cpu = task.init.device.type == "cpu"
    if wanted == "looped":
        return Looped(task, loss, chunk, precision), "set by the scenario"
    if wanted == "cuda_graphs" and on_cpu:
        raise ValueError("`cuda_graphs` needs a CUDA device; the engine's is the CPU")
    if wanted == "auto" and convolutional(task) and on_cpu:
        return Looped(task, loss, chunk, precision), "convolutions gain nothing from stacking on a CPU"
    if wanted == "auto" and isinstance(task.model, Rollout):
        return Looped(task, loss, chunk, precision), "an episode's steps are too many to record"
    if wanted == "auto" and on_cpu and any(isinstance(part, nn.RNNBase) and part.hidden_size >= 128 for part in task.model.modules()):
        return Looped(task, loss, chunk, precision), "large recurrent layers gain nothing from stacking on a CPU"
    try:
        alone = Stacked(task, loss, 1, exact=False)
        alone.gradient(task.init[None], alone.example())
    except Exception as error:
        if wanted != "auto":
            raise ValueError(f"{_obstacle(error)}; `looped` computes one after the other") from error
        return Looped(task, loss, chunk, precision), _obstacle(error)
    if wanted == "auto" and not on_cpu and hasattr(api(task.init.device), "CUDAGraph"):
        try:
            with torch.no_grad():
                CudaGraphs(task, loss, 1, precision).gradient(task.init[None], alone.example())
            return CudaGraphs(task, loss, chunk, precision), "the model stacks, and its work can be recorded"
        except RuntimeError as error:
            return Stacked(task, loss, chunk, False, precision), f"the model stacks, but its work can't be recorded: {_first(error)}"
    if wanted in ("compiled", "cuda_graphs"):
        return (Compiled if wanted == "compiled" else CudaGraphs)(task, loss, chunk, precision), "set by the scenario"
    exact = on_cpu and threads == 1 and precision != "bfloat16" and not convolutional(task)
    kind: type[Stacked] = {"grouped": Grouped, "unfolded": Unfolded}.get(wanted, Stacked)
    return kind(task, loss, chunk, exact, precision), "the model stacks" if wanted == "auto" else "set by the scenario"


def _obstacle(error: Exception) -> str:
    """What keeps many models from being computed together, and the line where it stands."""
    text, where = _first(error), line(error)
    if "data-dependent" in text or ".item()" in text:
        return f"the model doesn't stack: {where} branches on numbers of the samples or of the model, which differ from model to model"
    return f"the model doesn't stack: {type(error).__name__}: {text} ({where})"


def _first(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or "no text"


def convolutional(task: Task) -> bool:
    """Has the model a convolution?"""
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in task.model.modules())


def processes(wanted: int | Literal["auto"], plan: Plan, task: Task, at_work: int, devices: int) -> int:
    """How many compute; auto: one a core for convolutions on a CPU, else 1. Raises SettingError where several are wanted and can't be."""
    on_cpu = task.init.device.type == "cpu" and devices == 1
    if wanted == "auto":
        return max(1, min(cores(), at_work)) if on_cpu and isinstance(plan, Looped) and convolutional(task) and forks() else 1
    if wanted > 1 and not on_cpu:
        what = "a GPU is used by one process" if devices == 1 else "several devices have a thread each, of one process"
        raise SettingError("engine.processes", what)
    if wanted > 1 and not forks():
        what = "torch takes no gradients in forked processes where there are GPUs; CUDA_VISIBLE_DEVICES= hides them"
        raise SettingError("engine.processes", what)
    return wanted


def rows_at_once(task: Task, batch: int, at_work: int, memory: int) -> int:
    """Rows of a chunk: 100, or as many as work at once, as a CPU's cache holds, or as the memory (bytes) has room for.

    Raises SettingError where not even one has.
    """
    each = row_bytes(task, batch)
    if memory < each:
        raise SettingError("engine.memory", f"{size(memory)} is too small: {_one(task, batch)} takes about {size(each)}")
    cached = CACHE // (task.init.itemsize * task.layout.size) if task.init.device.type == "cpu" else ROWS
    return max(1, min(ROWS, at_work, memory // each, max(1, cached)))


def affordable(task: Task, batch: int) -> int:
    """See `row_bytes`. Raises SettingError where this machine has less memory."""
    each = row_bytes(task, batch)
    afford(each, "task.model", f"training {_one(task, batch)}")
    return each


def _one(task: Task, batch: int) -> str:
    return f"one model of {count(task.layout.size)} parameters with a batch of {batch}"


def row_bytes(task: Task, batch: int) -> int:
    """About what training one row takes: six times its parameters (start, model, slopes, update ...), its batch, and activations."""
    return task.init.itemsize * (6 * task.layout.size + batch * (4 * task.inputs[0].numel() + 3 * _activations(task)))


@torch.no_grad()
def _activations(task: Task) -> int:
    """Numbers that a forward pass of one sample makes, layer by layer; a recurrent layer's gates and cells are some ten a unit."""
    made: list[int] = []

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            made.append(prod(output.shape))
        elif isinstance(module, nn.RNNBase) and isinstance(output, tuple):
            made.append(10 * module.num_layers * prod(output[0].shape))

    leaves = [module for module in task.model.modules() if not any(True for _ in module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        task.model(decoded(task.inputs[:1]))
    except RuntimeError as error:
        if "on the same device" not in str(error):
            raise
        what = "makes a tensor on the CPU, where the model is on a GPU; `device=x.device` makes it where its input x is"
        raise SettingError("task.model", f"{line(error)} {what}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return sum(made)
