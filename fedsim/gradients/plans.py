"""How gradients of many rows are computed: stacked (vmapped and traced once a shape), or looped, one row after the other."""

# L: rows at work, m: rows of a chunk, d: parameters, B: samples a batch

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.fx import GraphModule

from fedsim.base.rows import BUFFERS, Step, shrink, subtract
from fedsim.gradients.convolutions import PLACES, Convolutions
from fedsim.gradients.images import channels_last
from fedsim.gradients.masks import masked
from fedsim.gradients.samples import LossOf, Samples
from fedsim.gradients.tracing import descend, traced, write
from fedsim.models.pure import call_of, evaluation
from fedsim.task.loss import MASK, takes_mask
from fedsim.task.task import Task, decoded

Function = tuple[Callable[..., Any], Sequence[bool]]  # of flat arguments; and which slopes it leaves as factors


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
        buffers = self.task.buffers.views(samples.extra[BUFFERS]) if BUFFERS in samples.extra else {}
        with evaluation(self.task.model):
            outputs = self._outputs(dict(params) | buffers, samples)
        return self.task.loss(outputs, samples.targets) * (samples.weight != 0)

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

    def input_gradient(self, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """[L, B]: each sample's loss as `sample_losses` has it, and [L, B, ...]: its gradient with respect to the sample, a number's."""
        raise NotImplementedError


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


class Stacked(Plan):
    """Gradients of all rows at once: of the vmapped loss, traced once for each shape and then run as plain tensor operations.

    `exact`: rows have the same bits in every chunk shape (dense layers on one thread), so a short chunk may use a smaller shape;
    otherwise every call has the one shape [chunk, ...] and what is missing is padding.
    """

    name = "stacked"
    places: ClassVar[float] = PLACES  # of an output up to which a convolution is a product of patches and kernels

    def __init__(self, task: Task, loss: LossOf, chunk: int, exact: bool, precision: str = "float32") -> None:
        super().__init__(task, loss, chunk, precision)
        self.exact = exact
        part = max(1, -(-chunk // 8))
        small = [1 << k for k in range(part.bit_length()) if 1 << k < part]
        self.shapes = [*small, *range(part, chunk, part), chunk] if exact else [chunk]
        self.traced: dict[Any, Function] = {}

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for start, live, rows, part in self._chunks(x, samples):
            products, slopes = self._slopes(rows, part, samples, start, live)
            place = out[start : start + live] if live == len(rows) else torch.empty_like(rows)
            write(self.task.layout.views(place).values(), products, slopes)
            if live < len(rows):
                out[start : start + live] = place[:live]
        return out

    def descend(self, x: Tensor, lr: Step, samples: Samples, keep: Step = 1.0, at: Tensor | None = None) -> None:
        if not (isinstance(lr, float) and isinstance(keep, float)):
            return super().descend(x, lr, samples, keep, at)
        for start, live, rows, part in self._chunks(x if at is None else at, samples):
            products, slopes = self._slopes(rows, part, samples, start, live)
            moved = rows if at is None else self._padded(x[start : start + live], len(rows))
            descend(self.task.layout.views(moved).values(), keep, -lr, products, slopes)
            if live < len(rows):  # what moved is a padded copy
                x[start : start + live] = moved[:live]
        return None

    def _slopes(self, rows: Tensor, part: Samples, samples: Samples, start: int, live: int) -> tuple[Sequence[bool], Sequence[Tensor]]:
        """Of a chunk, as `traced` leaves them. Running statistics are kept where they came from."""
        run, products = self._function("slopes", rows, part)
        results = run(*self.task.layout.views(rows).values(), *part.flat())
        if BUFFERS not in samples.extra:
            return products, results
        samples.extra[BUFFERS][start : start + live] = results[-1][:live]
        return products, results[:-1]

    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        pieces = []
        for _, live, rows, part in self._chunks(x, samples):
            run, _ = self._function("loss", rows, part)
            pieces.append(run(*self.task.layout.views(rows).values(), *part.flat())[:live])
        return torch.cat(pieces)

    def input_gradient(self, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        pieces = []
        for _, live, rows, part in self._chunks(x, samples):
            run, _ = self._function("inputs", rows, part)
            pieces.append([found[:live] for found in run(*self.task.layout.views(rows).values(), *part.flat())])
        losses, slopes = (torch.cat(found) if len(found) > 1 else found[0] for found in zip(*pieces, strict=True))
        return losses, slopes

    def _chunks(self, x: Tensor, samples: Samples) -> Iterator[tuple[int, int, Tensor, Samples]]:
        """For each chunk where it begins, how many rows count, and its rows, filled up to the next shape with copies of the last."""
        for start in range(0, len(x), self.chunk):
            args = [x, *samples.flat()]
            if len(x) > self.chunk:
                args = [tensor[start : start + self.chunk] for tensor in args]
            live = len(args[0])
            shape = next(shape for shape in self.shapes if shape >= live)
            args = [self._padded(tensor, shape) for tensor in args]
            rows, inputs, targets, weight, *extra = args
            yield start, live, rows, Samples(inputs, targets, weight, dict(zip(samples.extra, extra, strict=True)))

    @staticmethod
    def _padded(rows: Tensor, count: int) -> Tensor:
        """So many rows: filled up with copies of the last."""
        return rows if len(rows) == count else torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])

    def _function(self, kind: str, rows: Tensor, part: Samples) -> Function:
        """Of rows of these shapes and flat arguments: `slopes` by parameter, as `traced` leaves them, `loss`, or `inputs` (each sample's
        loss and slope)."""
        key = (kind, rows.shape, part.inputs.shape, part.targets.shape, *part.extra)
        found = self.traced.get(key)
        if found is None:
            whose = (type(self), self.precision, self.loss_of, self.task.loss.__call__, rows.dtype, rows.device, part.inputs.dtype)
            known = self.task.known.get((*whose, *key))  # by another run over the task
            found = self.traced[key] = self.task.known[*whose, *key] = known or self._trace(kind, rows, part)
        return found

    @torch.no_grad()
    def _trace(self, kind: str, rows: Tensor, part: Samples) -> Function:
        names = self.task.layout.names
        args = [*self.task.layout.views(rows).values(), *part.flat()]

        def outcome(params: list[Tensor], given: list[Tensor]) -> Any:
            inputs, targets, weight, *extra = given
            samples = Samples(inputs, targets, weight, dict(zip(part.extra, extra, strict=True)))
            of = self.sample_losses if kind == "inputs" else self.outcome
            return of(dict(zip(names, params, strict=True)), samples)

        function = vmap(outcome)

        def flat(*given: Tensor) -> Any:
            """Rows don't touch each other, so the slopes of the sum of their losses are each row's own.

            Not by torch.func.grad, which takes a second to import.
            """
            if kind == "loss":
                return function(list(given[: len(names)]), list(given[len(names) :]))[0]
            if kind == "inputs":
                inputs = given[len(names)].detach().requires_grad_()
                with torch.enable_grad():
                    losses = function(list(given[: len(names)]), [inputs, *given[len(names) + 1 :]])
                    return [losses.detach(), torch.autograd.grad(losses.sum(), inputs)[0]]
            params = [one.detach().requires_grad_() for one in given[: len(names)]]
            with torch.enable_grad():
                losses, after = function(params, list(given[len(names) :]))
                slopes = torch.autograd.grad(losses.sum(), params, materialize_grads=True)
            return [*slopes, after.detach()] if BUFFERS in part.extra else list(slopes)

        with Convolutions(self.places):
            graph, products = traced(flat, args, len(names) if kind == "slopes" else 0)
        return self._ready(graph, args), products

    def _ready(self, graph: GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
        """The graph as a function; its own call would only add checks."""
        run: Callable[..., Any] = graph.forward
        return run
