"""The devices that compute: which there are, what they have free, how they do arithmetic, and what goes to one without waiting for it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RESERVE = 8  # one part in so many of a device's memory is left to libraries, graphs and what is kept between jobs


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def api(device: torch.device) -> Any:
    """The module of torch for this kind of device, as `torch.cuda`."""
    return torch.get_device_module(device)


def listed(setting: str) -> list[torch.device]:
    """`cpu`, `cuda`, `cuda:1`, `cuda:0,cuda:1`; auto: a GPU where there is one; all: every one of them.

    Raises ValueError, which says what there is, for others.
    """
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    if setting == "all":
        return [torch.device(kind, at) for at in range(torch.cuda.device_count())] if kind == "cuda" else [torch.device("cpu")]
    found = [_one(kind if word == "auto" else word) for word in map(str.strip, setting.split(","))]
    if len({device.type for device in found}) > 1:
        raise ValueError(f"`{setting}` are of several kinds; devices that share a round are of one")
    return found


def _one(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`{name}` names no device; `cpu`, `cuda` and `cuda:1` do") from error
    if device.type == "cpu":
        return torch.device("cpu")
    try:
        there = api(device).device_count() if api(device).is_available() else 0
    except RuntimeError as error:
        raise ValueError(f"`{name}` can't be used here: {str(error).splitlines()[0]}") from error
    if (device.index or 0) >= there:
        first = f"{device.type}:0"
        has = f"this machine has `{first}`" if there == 1 else f"this machine has `{first}` to `{device.type}:{there - 1}`"
        raise ValueError(f"`{name}` can't be used here: {has if there else f'torch {torch.__version__} finds no {device.type} device'}")
    return torch.device(device.type, device.index or 0)


def forks() -> bool:
    """May processes that take gradients be forked from this one? Not where torch has GPUs, which its gradients have threads for."""
    return torch.cuda.device_count() == 0


def current(device: torch.device) -> Any:
    """A context in which it is the current device: streams and recordings are made on that one."""
    return nullcontext() if device.type == "cpu" else api(device).device(device)


def room_on(device: torch.device) -> int:
    """Bytes that a run may take on a GPU: what is free, without the reserve."""
    free, total = api(device).mem_get_info(device)
    return max(0, min(int(free), int(total) * (RESERVE - 1) // RESERVE))


def sent(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Values of the host on the device. To a GPU they go from pinned memory, and nobody waits for them; a CPU has them already."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == tensor.device.type == "cpu":
        return tensor
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=device.type != "cpu")
    return tensor.pin_memory().to(device, non_blocking=True)


def fetched(values: Sequence[Any]) -> list[Any]:
    """Tensors on the host, a GPU's with one wait for all of them; what is there already, or no tensor, as it is."""
    away = {value.device for value in values if isinstance(value, Tensor) and value.device.type != "cpu"}
    found = [value.to("cpu", non_blocking=True) if isinstance(value, Tensor) and value.device in away else value for value in values]
    for device in away:
        api(device).synchronize(device)
    return found


def counted(places: Tensor, size: int) -> Tensor:
    """int64 [size]: how often each number below `size` is among the places; without waiting for the device."""
    if places.device.type == "cpu":
        return places.bincount(minlength=size)
    return torch.zeros(size, dtype=torch.int64, device=places.device).index_add_(0, places, torch.ones_like(places))


def set_arithmetic(device: torch.device, precision: str) -> dict[str, Any]:
    """Tells a GPU's libraries how to multiply, and to choose nothing by a clock or by who comes first; what is recorded of it.

    torch's own default lets convolutions round to TF32. Nothing is said, and nothing recorded, on a CPU.
    """
    if device.type == "cpu":
        return {}
    products = "tf32" if precision == "tf32" else "ieee"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = products  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return {"products": products, "deterministic": True}


@contextmanager
def enough(what: str) -> Iterator[None]:
    """A device without room for `what` is told of by its text, not by an allocator's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{what} does not fit: {str(error).splitlines()[0].split('. ')[0]}") from error
