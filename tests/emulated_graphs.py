"""What torch asks of the emulated device's module: streams, memory, and graphs that are recorded and replayed.

As on CUDA nothing is done while a stream is capturing: what was written is put back, and what was made holds poison. A replay first
poisons what lies in its pool, then does the recorded operations on the same memory, and raises where somebody else may have that.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from emulated import CaptureError, Emulated, Machine, _poison, place
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _DummyBackendModule


class Stream:
    """In order with everything else here; it knows its device."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        index = None if device is None else torch.device(device).index
        self.device = torch.device("emulated", _current() if index is None else index)

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: "Event") -> None: ...

    def record_event(self, event: "Event | None" = None) -> "Event":
        return event or Event()

    def synchronize(self) -> None:
        Machine.now.waits("stream")


class Event:
    """Of which everything before has happened once somebody waits."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def query(self) -> bool:
        return not Machine.now.late

    def synchronize(self) -> None:
        Machine.now.waits("event")


def _current() -> int:
    return int(getattr(Machine.now.local, "device", 0))


class Capture:
    """What one recording does, and whose memory it uses."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.kernels = device, 0
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: dict[int, tuple[Any, Tensor]] = {}  # which the pool keeps
        self.outside: dict[int, tuple[Any, str]] = {}
        self.written: dict[int, tuple[Tensor, Tensor]] = {}

    def before(self, func: Any, args: Any, kwargs: Any, device: torch.device) -> None:
        if device != self.device:
            raise CaptureError(f"{func} on {device} while a stream of {self.device} is capturing, at {place(True)}")
        for one in tree_leaves((args, kwargs)):
            if isinstance(one, Emulated) and one.block is not None and id(one.block) not in self.made:
                self.outside.setdefault(id(one.block), (weakref.ref(one.block), f"{func} at {place(True)}"))
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        for argument in func._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for one in tree_leaves(given.get(argument.name)):
                    if isinstance(one, Emulated) and id(one.block) not in self.made:
                        whole = torch.empty(0, dtype=torch.uint8).set_(one.inner.untyped_storage())
                        self.written.setdefault(id(one.block), (whole, whole.clone()))

    def note(self, func: Any, args: Any, kwargs: Any, result: Any, kernels: int) -> None:
        self.kernels += kernels
        given = {id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        fresh = [one for one in tree_leaves(result) if isinstance(one, Tensor) and id(one) not in given]
        self.steps.append((func, args, kwargs, fresh))

    def poison(self) -> None:
        for _, inner in self.made.values():
            inner.fill_(_poison(inner))

    def end(self) -> None:
        for whole, before in self.written.values():
            whole.copy_(before)
        self.written.clear()
        self.poison()


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.capture: Capture | None = None
        self.mates: Any = None

    def pool(self) -> Any:
        return self.mates

    def replay(self) -> None:
        machine, capture = Machine.now, self.capture
        assert capture is not None, "nothing was recorded"
        if machine.capture is not None:
            raise CaptureError("a replay while a stream is capturing")
        for block, where in capture.outside.values():
            if block() is None:
                raise CaptureError(f"a graph reads memory that nobody holds any more: an argument of {where}")
        for mate in self.mates:
            mate.poison()
        for func, args, kwargs, fresh in capture.steps:
            found = [one for one in tree_leaves(func(*args, **kwargs)) if isinstance(one, Tensor)]
            given = {id(one) for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
            for there, one in zip(fresh, [one for one in found if id(one) not in given], strict=True):
                there.copy_(one)
        with machine.lock:
            machine.counts[machine.phase].launches += 1
            machine.counts[machine.phase].replays += 1
            machine.counts[machine.phase].kernels += capture.kernels


class Backend(_DummyBackendModule):
    """`torch.emulated`, with what `torch.cuda` has."""

    CUDAGraph, Stream, Event = Graph, Stream, Event
    OutOfMemoryError = torch.OutOfMemoryError
    captures = 0
    _usual: Stream | None = None  # as in `torch.cuda.graph`: one stream for all, of the device that was the current one first

    def is_available(self) -> bool:
        return Machine.now.on

    def device_count(self) -> int:
        return Machine.now.devices if Machine.now.on else 0

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)  # nothing here draws from a generator

    def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...

    def current_device(self) -> int:
        return _current()

    def set_device(self, device: Any) -> None:
        Machine.now.local.device = torch.device(device).index if not isinstance(device, int) else device

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = _current()
        self.set_device(device)
        try:
            yield
        finally:
            self.set_device(before)

    def current_stream(self, device: Any = None) -> Stream:
        return getattr(Machine.now.local, "stream", None) or Stream(device)

    @contextmanager
    def stream(self, stream: Stream | None) -> Iterator[None]:
        if stream is None:
            yield
            return
        local, before = Machine.now.local, getattr(Machine.now.local, "stream", None)
        local.stream = stream
        try:
            with self.device(stream.device):
                yield
        finally:
            local.stream = before

    def synchronize(self, device: Any = None) -> None:
        Machine.now.waits("synchronize")

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        index = _current() if device is None or torch.device(device).index is None else torch.device(device).index
        return Machine.now.memory - Machine.now.alive[index], Machine.now.memory

    def set_sync_debug_mode(self, mode: str) -> None:
        Machine.now.forbidden = mode == "error"

    def empty_cache(self) -> None: ...

    def get_device_name(self, device: Any = None) -> str:
        return "emulated"

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def graph_pool_handle(self) -> list[Capture]:
        return []

    @contextmanager
    def graph(self, graph: Graph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
        machine = Machine.now
        if machine.capture is not None:
            raise CaptureError("a capture within a capture")
        if stream is None:
            Backend._usual = Backend._usual or Stream()
            stream = Backend._usual
        machine.waits("capture")  # as torch.cuda.graph does before it begins
        machine.local.capture = capture = Capture(stream.device)
        try:
            with self.stream(stream):
                yield
        finally:
            machine.local.capture = None
            capture.end()
        graph.capture, graph.mates = capture, [] if pool is None else pool
        graph.mates.append(capture)
        Backend.captures += 1
