"""Stacked gradients whose traced graph is not run operation by operation: compiled, or recorded as CUDA graphs."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

from fedsim.gradients.plans import Stacked
from fedsim.gradients.samples import LossOf
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
    """Recorded once and replayed: no launch costs. Arguments are copied into the recording's own tensors, results out of them.

    Written for CUDA devices and never run on one.
    """

    name = "cuda_graphs"

    def _ready(self, graph: GraphModule, args: Sequence[Tensor]) -> Callable[..., Any]:
        fixed = [one.clone() for one in args]
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their algorithms before the recording
            for _ in range(2):
                graph.forward(*fixed)
        torch.cuda.current_stream().wait_stream(aside)
        recording = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recording):
            results = graph.forward(*fixed)

        def run(*given: Tensor) -> Any:
            for place, one in zip(fixed, given, strict=True):
                place.copy_(one)
            recording.replay()
            return results.clone() if isinstance(results, Tensor) else tuple(one.clone() for one in results)

        return run
