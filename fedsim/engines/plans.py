"""How gradients of many rows are computed: stacked (vmapped and traced once a shape), or looped, one row after the other."""

# L: rows at work, m: rows of a chunk, d: parameters, B: samples a batch

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.shape_prop import ShapeProp

from fedsim.rows import subtract
from fedsim.task import Task, decoded

LossOf = Callable[[Task, Tensor, Tensor, Tensor], Tensor]  # (task, outputs, targets, weight) -> one number


def keep_large_blocks() -> None:
    """Tells glibc to reuse large blocks: without it each step pays for fresh pages (0.8 against 0.6 of a bare loop's speed)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)
        libc.mallopt(-3, 2**30)


class Plan:
    """Gradients and losses of rows of models, each on its own batch."""

    name = ""

    def __init__(self, task: Task, loss: LossOf, chunk: int) -> None:
        self.task, self.loss_of, self.chunk = task, loss, chunk

    def value(self, params: dict[str, Tensor], inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Loss of one model on one batch."""
        outputs = functional_call(self.task.model, params, (inputs,))
        return self.loss_of(self.task, outputs, targets, weight)

    def gradient(self, x: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """[L, d] from x [L, d], inputs [L, B, ...], targets [L, B], weight [L, B]."""
        raise NotImplementedError

    def descend(self, x: Tensor, lr: float | Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> None:
        """x -= lr x gradient, in place; lr a number or [L, 1]."""
        subtract(x, lr, self.gradient(x, inputs, targets, weight))

    def loss(self, x: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """[L], forward only."""
        raise NotImplementedError


class Looped(Plan):
    """One row after the other by plain autograd: for models that don't stack, and convolutions on a CPU."""

    name = "looped"

    def gradient(self, x: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for i in range(len(x)):
            params = {name: view.detach().requires_grad_() for name, view in self.task.layout.views(x[i]).items()}
            with torch.enable_grad():
                value = self.value(params, inputs[i], targets[i], weight[i])
                slopes = torch.autograd.grad(value, list(params.values()))
            self.task.layout.join({name: slope[None] for name, slope in zip(params, slopes, strict=True)}, out=out[i : i + 1])
        return out

    @torch.no_grad()
    def loss(self, x: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return torch.stack([self.value(self.task.layout.views(x[i]), inputs[i], targets[i], weight[i]) for i in range(len(x))])


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

    @torch.no_grad()
    def gradient(self, x: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        pieces = [self.task.layout.join(self._run("gradient", args))[:live] for _, live, args in self._chunks(x, inputs, targets, weight)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.no_grad()
    def descend(self, x: Tensor, lr: float | Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> None:
        for start, live, args in self._chunks(x, inputs, targets, weight):
            rows = slice(start, start + live)
            slopes = self._run("gradient", args)
            for name, view in self.task.layout.views(x[rows]).items():
                subtract(view, lr if isinstance(lr, float) else lr[rows], slopes[name][:live])

    @torch.no_grad()
    def loss(self, x: Tensor, inputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return torch.cat([self._run("loss", args)[:live] for _, live, args in self._chunks(x, inputs, targets, weight)])

    def _chunks(self, *whole: Tensor) -> Iterator[tuple[int, int, tuple[Tensor, ...]]]:
        """For each chunk where it begins, how many rows count, and its rows, filled up to the next shape with copies of the last."""
        for start in range(0, len(whole[0]), self.chunk):
            args = whole if len(whole[0]) <= self.chunk else tuple(tensor[start : start + self.chunk] for tensor in whole)
            live = len(args[0])
            short = next(shape for shape in self.shapes if shape >= live) - live
            if short:
                args = tuple(torch.cat([tensor, tensor[-1:].expand(short, *tensor.shape[1:])]) for tensor in args)
            yield start, live, args

    def _run(self, kind: str, args: tuple[Tensor, ...]) -> Any:
        x, *data = args
        views = self.task.layout.views(x)
        key = (kind, *(tensor.shape for tensor in args))
        if key not in self.traced:
            function = vmap(grad(self.value) if kind == "gradient" else self.value)
            self.traced[key] = trimmed(
                make_fx(lambda p, inputs, targets, weight: function(p, inputs, targets, weight))(views, *data), views, *data
            )
        return self.traced[key](views, *data)


def trimmed(traced: GraphModule, *args: Any) -> GraphModule:
    """Without what changes nothing (views of the same shape, products with 1) and a gradient's unused loss: each costs a call a step."""
    ShapeProp(traced).propagate(*args)
    aten = torch.ops.aten
    for node in list(traced.graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default, aten.expand.default):
            idle = node.meta["tensor_meta"].shape == node.args[0].meta["tensor_meta"].shape
        else:
            idle = node.target is aten.mul.Scalar and node.args[1] == 1
        if idle:
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.ones_like.default:  # the loss is computed only for its shape
            meta = node.meta["tensor_meta"]
            with traced.graph.inserting_before(node):
                one = traced.graph.call_function(torch.ones, (tuple(meta.shape),), {"dtype": meta.dtype, "device": args[1].device})
            one.meta["tensor_meta"] = meta
            node.replace_all_uses_with(one)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


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
        alone.gradient(task.init[None], inputs, targets, torch.ones(1, 1, dtype=task.init.dtype, device=task.init.device))
    except Exception as error:
        if wanted == "stacked":
            raise ValueError(f"the model doesn't stack: {type(error).__name__}: {error}") from error
        return Looped(task, loss, chunk), f"the model doesn't stack: {type(error).__name__}: {str(error).splitlines()[0]}"
    return plan, "set by the scenario" if wanted == "stacked" else "the model stacks"
