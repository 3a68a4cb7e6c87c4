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
from fedsim.models.pure import call_of
from fedsim.rows import BUFFERS, subtract
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

    `extra` has what only some models need, a row each: `key` (int64 [L]) where they draw random numbers, `buffers` [L, b] where they
    have running statistics, which gradients write to.
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
        self.call = call_of(task.model)

    def value(self, params: Mapping[str, Tensor], samples: Samples) -> Tensor:
        """Loss of one model on its samples."""
        return self.outcome(params, samples)[0]

    def outcome(self, params: Mapping[str, Tensor], samples: Samples) -> tuple[Tensor, Tensor]:
        """Loss of one model on its samples, and its running statistics [b] of after."""
        model, extra = self.task.model, samples.extra
        if self.call is None:
            outputs = functional_call(model, dict(params), (samples.inputs,))
            return self.loss_of(self.task, outputs, samples.targets, samples.weight), samples.weight[:0]
        before = self.task.buffers.views(extra[BUFFERS]) if BUFFERS in extra else {}
        with self.call.training(samples.weight, extra.get("key")) as new:
            outputs = functional_call(model, dict(params) | before, (samples.inputs,))
            after = self.task.buffers.join(before | new) if before else samples.weight[:0]
        return self.loss_of(self.task, outputs, samples.targets, samples.weight), after

    def example(self) -> Samples:
        """One model's first sample, and what else it needs."""
        task, zero = self.task, torch.zeros(1, dtype=torch.int64, device=self.task.init.device)
        first = task.sample(zero, zero)
        inputs, targets = decoded(task.inputs[first])[None], task.targets[first][None]
        extra = {"key": zero} if task.keyed else {}
        if task.buffers.size:
            extra[BUFFERS] = task.first_buffers[None].clone()
        return Samples(inputs, targets, torch.ones(1, 1, dtype=task.init.dtype, device=task.init.device), extra)

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        """[L, d] from x [L, d], a row a model. Running statistics among the samples are renewed in place."""
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
                value, after = self.outcome(params, _row(samples, i))
                slopes = torch.autograd.grad(value, list(params.values()))
            if BUFFERS in samples.extra:
                samples.extra[BUFFERS][i] = after
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
        for start, live, rows, part in self._chunks(x, samples):
            slopes = self._function("gradient", rows, part)(*self.task.layout.views(rows).values(), *part.flat())
            if BUFFERS in samples.extra:
                *slopes, after = slopes
                samples.extra[BUFFERS][start : start + live] = after[:live]
            pieces.append(self.task.layout.join(dict(zip(self.task.layout.names, slopes, strict=True)))[:live])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def descend(self, x: Tensor, lr: float | Tensor, samples: Samples) -> None:
        if not isinstance(lr, float) or BUFFERS in samples.extra:
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

        def outcome(params: list[Tensor], flat: list[Tensor]) -> tuple[Tensor, Tensor]:
            inputs, targets, weight, *extra = flat
            samples = Samples(inputs, targets, weight, dict(zip(part.extra, extra, strict=True)))
            return self.outcome(dict(zip(names, params, strict=True)), samples)

        function = vmap(outcome if kind == "loss" else grad(outcome, has_aux=True))

        def flat(*args: Tensor) -> Any:
            first, after = function(list(args[: len(names)]), list(args[len(names) :]))
            return [*first, after] if kind != "loss" and BUFFERS in part.extra else first

        graph = traced(flat, [*views, *part.flat()])
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
    if wanted == "auto" and on_cpu and any(isinstance(part, nn.RNNBase) and part.hidden_size >= 128 for part in task.model.modules()):
        return Looped(task, loss, chunk), "large recurrent layers gain nothing from stacking on a CPU"
    plan = Stacked(task, loss, chunk, exact=on_cpu and threads == 1 and not convolutional)
    try:
        alone = Stacked(task, loss, 1, exact=False)
        alone.gradient(task.init[None], alone.example())
    except Exception as error:
        if wanted == "stacked":
            raise ValueError(f"the model doesn't stack: {type(error).__name__}: {error}") from error
        return Looped(task, loss, chunk), f"the model doesn't stack: {type(error).__name__}: {str(error).splitlines()[0]}"
    return plan, "set by the scenario" if wanted == "stacked" else "the model stacks"
