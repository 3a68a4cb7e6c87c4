"""Stacked gradients whose traced graph is not run operation by operation: compiled, or recorded as CUDA graphs."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from fedsim.base.devices import api, current
from fedsim.gradients.samples import LossOf, Samples
from fedsim.gradients.stacked import Function, Stacked
from fedsim.task.task import Task


class OneShape(Stacked):
    """Every chunk has the one shape."""

    def __init__(self, task: Task, loss: LossOf, chunk: int, precision: str = "float32") -> None:
        super().__init__(task, loss, chunk, exact=False, precision=precision)


class Compiled(OneShape):
    """By TorchInductor, which needs a C++ compiler on a CPU (Triton on a GPU) and some seconds a shape: for long runs."""

    name = "compiled"

    def _ready(self, graph: GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchInductor imports torch.jit, which warns
            from torch._inductor.compile_fx import compile_fx

            return cast(Callable[..., Any], compile_fx(graph, list(args)))


class CudaGraphs(OneShape):
    """Recorded once a shape and replayed, on one device: a replay costs one launch, whatever it does. All recordings share their memory.

    `bare` is the same without recordings, for whole local steps that are recorded (`fedsim.method.recorded`). Verified on an emulated
    device, never run on a GPU.
    """

    name = "cuda_graphs"

    def __init__(self, task: Task, loss: LossOf, chunk: int, precision: str = "float32") -> None:
        super().__init__(task, loss, chunk, precision)
        self.shapes = sizes(chunk)
        self.bare = Stacked(task, loss, chunk, exact=False, precision=precision)
        self.bare.shapes = self.shapes
        self.recorder = Recorder(task.init.device)
        self.steps: Any = None  # recorded local steps, once there are some

    def _function(self, kind: str, rows: Tensor, part: Samples) -> Function:
        """Of this plan alone: other runs have their own memory."""
        key = (kind, rows.shape, part.inputs.shape, part.targets.shape, *part.extra)
        if key not in self.traced:
            run, products = self.bare._function(kind, rows, part)
            self.traced[key] = self._recorded(run, [*self._params(rows), *part.flat()]), products
        return self.traced[key]

    def _recorded(self, run: Callable[..., Any], args: Sequence[Tensor]) -> Callable[..., Any]:
        """Arguments are copied into the recording's own tensors, results out of them. It holds the function, whose constants it reads."""
        fixed = [one.clone(memory_format=torch.contiguous_format) for one in args]
        replay, results = self.recorder.record(lambda: run(*fixed))

        def replayed(*given: Tensor) -> Any:
            for place, one in zip(fixed, given, strict=True):
                place.copy_(one)
            replay()
            return results.clone() if isinstance(results, Tensor) else tuple(one.clone() for one in results)

        return replayed


def sizes(chunk: int) -> list[int]:
    """Shapes for so many rows: all, a half, a quarter, an eighth; few rows at work don't cost what all do."""
    return sorted({-(-chunk // part) for part in (1, 2, 4, 8)})


class Recorder:
    """Records work on one device, on a stream of it; recordings share one pool, so what one leaves there lasts until the next replay."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def record(
        self, work: Callable[[], Any], warm: Callable[[], Any] | None = None, restore: Callable[[], None] = lambda: None
    ) -> tuple[Callable[[], None], Any]:
        """A function that does the work again, on the same memory, and the results, which lie in the pool.

        The work, or a part of it that does all there is to do once, is done twice before, so that libraries choose their algorithms;
        `restore` puts back what that changed.
        """
        there = api(self.device)
        with current(self.device), torch.no_grad():  # recorded work asks for gradients by itself
            self.pool = self.pool or there.graph_pool_handle()
            aside, recording = there.Stream(device=self.device), there.CUDAGraph()
            aside.wait_stream(there.current_stream(self.device))
            with there.stream(aside):
                for _ in range(2):
                    (warm or work)()
                restore()
            there.current_stream(self.device).wait_stream(aside)
            with there.graph(recording, pool=self.pool, stream=aside):
                results = work()

        def replay(held: Any = work) -> None:
            recording.replay()

        return replay, results
