"""Many rows at once: vmapped, and traced once a shape."""

# L: rows at work, m: rows of a chunk, d: parameters, B: samples a batch

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

from fedsim.base.rows import BUFFERS, Rows, Step
from fedsim.gradients.convolutions import PLACES, Aside, Convolutions, Gathered
from fedsim.gradients.plan import Plan
from fedsim.gradients.samples import LossOf, Samples
from fedsim.gradients.tracing import descend, traced, write
from fedsim.task.task import Task

FEW = 3  # places of slopes that are no products
Placed = tuple[Iterable[Tensor], Sequence[bool], Sequence[Tensor]]
Function = tuple[Callable[..., Any], Sequence[bool]]  # of flat arguments; and which slopes it leaves as factors


class Stacked(Plan):
    """Gradients of all rows at once: of the vmapped loss, traced once for each shape and then run as plain tensor operations.

    `exact`: rows have the same bits in every chunk shape (dense layers on one thread), so a short chunk may use a smaller shape;
    otherwise every call has the one shape [chunk, ...] and what is missing is padding.
    """

    name = "stacked"
    places: ClassVar[float | None] = None  # of an output up to which a convolution is a product of patches and kernels; None: by device

    def __init__(self, task: Task, loss: LossOf, chunk: int, exact: bool, precision: str = "float32") -> None:
        super().__init__(task, loss, chunk, precision)
        self.exact = exact
        part = max(1, -(-chunk // 8))
        small = [1 << k for k in range(part.bit_length()) if 1 << k < part]
        self.shapes = [*small, *range(part, chunk, part), chunk] if exact else [chunk]
        self.traced: dict[Any, Function] = {}
        self.gathered = Gathered(task.model, task.layout) if task.init.device.type != "cpu" else None

    def gradient(self, x: Tensor, samples: Samples) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for start, live, rows, part in self._chunks(x, samples):
            views = self.task.layout.views(rows)
            products, slopes = self._slopes(views, rows, part, samples, start, live)
            place = out[start : start + live] if live == len(rows) else torch.empty_like(rows)
            write(*self._placed(place, self.task.layout.views(place), products, slopes))
            if live < len(rows):
                out[start : start + live] = place[:live]
        return out

    def descend(self, x: Tensor, lr: Step, samples: Samples, keep: Step = 1.0, at: Tensor | None = None) -> None:
        if not (isinstance(lr, float) and isinstance(keep, float)):
            return super().descend(x, lr, samples, keep, at)
        for start, live, rows, part in self._chunks(x if at is None else at, samples):
            views = self.task.layout.views(rows)
            products, slopes = self._slopes(views, rows, part, samples, start, live)
            moved = rows if at is None else self._padded(x[start : start + live], len(rows))
            views = views if moved is rows else self.task.layout.views(moved)
            descend(*self._placed(moved, views, products, slopes), keep, -lr)
            if live < len(rows):  # what moved is a padded copy
                x[start : start + live] = moved[:live]
        return None

    def _placed(self, x: Tensor, views: Rows, products: Sequence[bool], slopes: Sequence[Tensor]) -> Placed:
        """Which parts of x [L, d], whose views are given, the slopes belong to, and these, as `traced` leaves them.

        A GPU pays for launches: neighbours that are no products become one slope there, and where they lie apart at many places all do.
        """
        if x.device.type == "cpu":
            return views.values(), products, slopes
        if sum(not product for product, _ in groupby(products)) > FEW:
            found = iter(slopes)
            slopes = [torch.bmm(next(found), next(found)) if product else next(found) for product in products]
            products = [False] * len(products)
        found, slices = iter(slopes), self.task.layout.slices
        places, kinds, joined = list[Tensor](), list[bool](), list[Tensor]()
        for product, run in groupby(zip(views, products, strict=True), itemgetter(1)):
            names = [name for name, _ in run]
            if product or len(names) == 1:
                places += [views[name] for name in names]
                kinds += [product] * len(names)
                joined += islice(found, len(names) * (1 + product))
            else:
                places.append(x[:, slices[names[0]].start : slices[names[-1]].stop])
                kinds.append(False)
                joined.append(torch.cat([one.reshape(len(one), -1) for one in islice(found, len(names))], 1))
        return places, kinds, joined

    def _slopes(
        self, views: Rows, rows: Tensor, part: Samples, samples: Samples, start: int, live: int
    ) -> tuple[Sequence[bool], Sequence[Tensor]]:
        """Of a chunk of rows with these views, as `traced` leaves them. Running statistics are kept where they came from."""
        run, products = self._function("slopes", rows, part)
        results = run(*self._params(rows, views), *part.flat())
        if BUFFERS not in samples.extra:
            return products, results
        samples.extra[BUFFERS][start : start + live] = results[-1][:live]
        return products, results[:-1]

    def loss(self, x: Tensor, samples: Samples) -> Tensor:
        return self._forward("loss", x, samples)

    def outputs(self, x: Tensor, samples: Samples) -> Tensor:
        return self._forward("outputs", x, samples)

    def _forward(self, kind: str, x: Tensor, samples: Samples) -> Tensor:
        pieces = []
        for _, live, rows, part in self._chunks(x, samples):
            run, _ = self._function(kind, rows, part)
            pieces.append(run(*self._params(rows), *part.flat())[:live])
        return torch.cat(pieces)

    def input_gradient(self, x: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        pieces = []
        for _, live, rows, part in self._chunks(x, samples):
            run, _ = self._function("inputs", rows, part)
            pieces.append([found[:live] for found in run(*self._params(rows), *part.flat())])
        losses, slopes = (torch.cat(found) if len(found) > 1 else found[0] for found in zip(*pieces, strict=True))
        return losses, slopes

    def _params(self, rows: Tensor, views: Rows | None = None) -> Iterable[Tensor]:
        """The models' parameters, [m, *shape] each: views of the rows [m, d], but what a GPU's convolutions want elsewhere."""
        views = views or self.task.layout.views(rows)
        return (views if self.gathered is None else views | self.gathered(rows)).values()

    def _chunks(self, x: Tensor, samples: Samples) -> Iterator[tuple[int, int, Tensor, Samples]]:
        """For each chunk where it begins, how many rows count, and its rows, filled up to the next shape with copies of the last."""
        if len(x) in self.shapes:
            yield 0, len(x), x, samples
            return
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
        """Of rows of these shapes and flat arguments: `slopes` by parameter, as `traced` leaves them, `loss`, `outputs`, or `inputs`
        (each sample's loss and slope)."""
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
        args = [*self._params(rows), *part.flat()]

        def outcome(params: list[Tensor], given: list[Tensor]) -> Any:
            inputs, targets, weight, *extra = given
            samples = Samples(inputs, targets, weight, dict(zip(part.extra, extra, strict=True)))
            of = {"inputs": self.sample_losses, "outputs": self.answers}.get(kind, self.outcome)
            return of(dict(zip(names, params, strict=True)), samples)

        function = vmap(outcome)

        def flat(*given: Tensor) -> Any:
            """Rows don't touch each other, so the slopes of the sum of their losses are each row's own.

            Not by torch.func.grad, which takes a second to import.
            """
            if kind in ("loss", "outputs"):
                found = function(list(given[: len(names)]), list(given[len(names) :]))
                return found[0] if kind == "loss" else found
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

        with self._convolutions():
            graph, products = traced(flat, args, len(names) if kind == "slopes" else 0, few=self.task.init.device.type != "cpu")
        return self._ready(graph, args), products

    def _convolutions(self) -> TorchFunctionMode:
        """How they are computed: on a GPU as grouped ones, which are one launch and products three."""
        if self.places is not None or self.task.init.device.type == "cpu":
            return Convolutions(PLACES if self.places is None else self.places)
        norms = any(isinstance(part, nn.GroupNorm) for part in self.task.model.modules())  # which turn their images themselves
        return Convolutions(0) if norms or self.precision == "bfloat16" else Aside()  # there a bias is added to what is rounded

    def _ready(self, graph: GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
        """The graph as a function; its own call would only add checks."""
        run: Callable[..., Any] = graph.forward
        return run
