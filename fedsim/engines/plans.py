"""How gradients of many rows are computed: stacked (vmapped and traced once a shape), or looped, one row after the other."""

# L: rows at work, m: rows of a chunk, d: parameters, B: samples a batch

import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx import GraphModule

from fedsim.engines.tracing import descending, traced
from fedsim.rows import subtract
from fedsim.task import Task, decoded

LossOf = Callable[[Task, Tensor, Tensor, Tensor], Tensor]  # (task, outputs, targets, weight) -> one number


def keep_large_blocks() -> None:
    """Tells glibc to reuse large blocks: without it each step pays for fresh pages (0.8 against 0.6 of a bare loop's speed)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**30)


class Samples(NamedTuple):
    """Samples for rows of models: inputs [L, B, ...], targets [L, B, ...], weight [L, B] (0 is padding).

    `extra` has what only some models need, a row each: `key` (int64 [L]) where they draw random numbers.
    """

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    extra: Mapping[str, Tensor] = {}

    def flat(self) -> list[Tensor]:
        """All tensors in one order."""
        return [self.inputs, self.targets, self.weight, *self.extra.values()]


class Plan:
    """Gradients and losses of rows of models, each on its own samples."""

    name = ""

    def __init__(self, task: Task, loss: LossOf, chunk: int) -> None:
        self.task, self.loss_of, self.chunk = task, loss, chunk

    def value(self, params: Mapping[str, Tensor], samples: Samples) -> Tensor:
        """Loss of one model on its samples."""
        outputs = functional_call(self.task.model, dict(params), (samples.inputs,))
        return self.loss_of(self.task, outputs, samples.targets, samples.weight)

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        """[L, d] from x [L, d], a row a model."""
        raise NotImplementedError

    def descend(self, x: Tensor, lr: float | Tensor, samples: Samples) -> None:
        """x -= lr x gradient, in place; lr a number or [L, 1]. Up to rounding what `gradient` and `subtract` give."""
        subtract(x, lr, self.gradient(x, samples))

    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        """[L], forward only."""
        raise NotImplementedError


class Looped(Plan):
    """One row after the other by plain autograd: for models that don't stack, and convolutions on a CPU."""

    name = "looped"

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for i in range(len(x)):
            params = {name: view.detach().requires_grad_() for name, view in self.task.layout.views(x[i]).items()}
            with torch.enable_grad():
                slopes = torch.autograd.grad(self.value(params, _row(samples, i)), list(params.values()))
            self.task.layout.join({name: slope[None] for name, slope in zip(params, slopes, strict=True)}, out=out[i : i + 1])
        return out

    @torch.no_grad()
    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        return torch.stack([self.value(self.task.layout.views(x[i]), _row(samples, i)) for i in range(len(x))])


def _row(samples: Samples, i: int) -> Samples:
    return Samples(samples.inputs[i], samples.targets[i], samples.weight[i], {name: rows[i] for name, rows in samples.extra.items()})


class Stacked(Plan):
    """Gradients of all rows at once: `vmap(grad(loss))`, traced once for each shape and then run as plain tensor operations.

    `exact`: rows have the same bits in every chunk shape (dense layers on one thread), so a short chunk may use a smaller shape;
    otherwise every call has the one shape [chunk, ...] and what is missing is padding.
    """

    name = "stacked"

    def __init__(self, task: Task, loss: LossOf, chunk: int, exact: bool) -> None:
        super().__init__(task, loss, chunk)
        part = max(1, -(-chunk // 8))
        small = [1 << k for k in range(part.bit_length()) if 1 << k < part]
        self.shapes = [*small, *range(part, chunk, part), chunk] if exact else [chunk]
        self.traced: dict[Any, Callable[..., Any]] = {}

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        pieces = []
        for _, live, rows, part in self._chunks(x, samples):
            slopes = self._function("gradient", rows, part)(*self.task.layout.views(rows).values(), *part.flat())
            pieces.append(self.task.layout.join(dict(zip(self.task.layout.names, slopes, strict=True)))[:live])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def descend(self, x: Tensor, lr: float | Tensor, samples: Samples) -> None:
        if not isinstance(lr, float):
            return super().descend(x, lr, samples)
        for start, live, rows, part in self._chunks(x, samples):
            self._function("descend", rows, part)(*self.task.layout.views(rows).values(), -lr, *part.flat())
            if live < len(rows):  # rows are a padded copy
                x[start : start + live] = rows[:live]
        return None

    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        pieces = []
        for _, live, rows, part in self._chunks(x, samples):
            pieces.append(self._function("loss", rows, part)(*self.task.layout.views(rows).values(), *part.flat())[:live])
        return torch.cat(pieces)

    def _chunks(self, x: Tensor, samples: Samples) -> Iterator[tuple[int, int, Tensor, Samples]]:
        """For each chunk where it begins, how many rows count, and its rows, filled up to the next shape with copies of the last."""
        for start in range(0, len(x), self.chunk):
            args = [x, *samples.flat()]
            if len(x) > self.chunk:
                args = [tensor[start : start + self.chunk] for tensor in args]
            live = len(args[0])
            short = next(shape for shape in self.shapes if shape >= live) - live
            if short:
                args = [torch.cat([tensor, tensor[-1:].expand(short, *tensor.shape[1:])]) for tensor in args]
            rows, inputs, targets, weight, *extra = args
            yield start, live, rows, Samples(inputs, targets, weight, dict(zip(samples.extra, extra, strict=True)))

    def _function(self, kind: str, rows: Tensor, part: Samples) -> Callable[..., Any]:
        """`gradient`, `descend` or `loss` of rows of these shapes, of flat arguments."""
        key = (kind, rows.shape, part.inputs.shape, part.targets.shape, *part.extra)
        found = self.traced.get(key)
        if found is None:
            found = self.traced[key] = self._trace(kind, rows, part)
        return found

    def _trace(self, kind: str, rows: Tensor, part: Samples) -> Callable[..., Any]:
        names = self.task.layout.names
        views = list(self.task.layout.views(rows).values())

        def value(params: list[Tensor], flat: list[Tensor]) -> Tensor:
            inputs, targets, weight, *extra = flat
            samples = Samples(inputs, targets, weight, dict(zip(part.extra, extra, strict=True)))
            return self.value(dict(zip(names, params, strict=True)), samples)

        function = vmap(value if kind == "loss" else grad(value))
        graph = traced(lambda *args: function(list(args[: len(names)]), list(args[len(names) :])), [*views, *part.flat()])
        return self._ready(descending(graph, len(names)) if kind == "descend" else graph)

    def _ready(self, graph: GraphModule) -> Callable[..., Any]:
        """The graph as a function; its own call would only add checks."""
        run: Callable[..., Any] = graph.forward
        return run


def choose(task: Task, loss: LossOf, wanted: str, chunk: int, threads: int) -> tuple[Plan, str]:
    """The plan by a fixed rule, and why: stacked, unless the model doesn't stack or is convolutional on a CPU."""
    on_cpu = task.init.device.type == "cpu"
    convolutional = any(isinstance(module, nn.modules.conv._ConvNd) for module in task.model.modules())
    if wanted == "looped":
        return Looped(task, loss, chunk), "set by the scenario"
    if wanted == "auto" and convolutional and on_cpu:
        return Looped(task, loss, chunk), "convolutions gain nothing from stacking on a CPU"
    plan = Stacked(task, loss, chunk, exact=on_cpu and threads == 1 and not convolutional)
    try:
        zero = torch.zeros(1, dtype=torch.int64, device=task.init.device)
        first = task.sample(zero, zero)
        inputs, targets = decoded(task.inputs[first])[None], task.targets[first][None]
        alone = Stacked(task, loss, 1, exact=False)
        alone.gradient(task.init[None], Samples(inputs, targets, torch.ones(1, 1, dtype=task.init.dtype, device=task.init.device)))
    except Exception as error:
        if wanted == "stacked":
            raise ValueError(f"the model doesn't stack: {type(error).__name__}: {error}") from error
        return Looped(task, loss, chunk), f"the model doesn't stack: {type(error).__name__}: {str(error).splitlines()[0]}"
    return plan, "set by the scenario" if wanted == "stacked" else "the model stacks"
