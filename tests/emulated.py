"""An accelerator that isn't there: a device `emulated` whose tensors hold CPU values, strict where a GPU is, and counted.

    with emulated(devices=2) as machine:
        task.move("emulated:1")  # or `engine.device: emulated:1`
    machine.total("train").launches

It is torch's PrivateUse1 device: everything that reaches a kernel comes here, after autograd, vmap and decompositions. Mixing devices
raises as on CUDA; what makes the host wait is a sync (a blocking copy too); what is copied to the host without waiting is poison until
somebody waits. Graphs are in `emulated_graphs`. Not seen: the arithmetic of a GPU, real times, races between streams.
"""

import sys
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NAME = "emulated"
OWN = ("/fedsim/", "/strategies/")
aten = torch.ops.aten
WAITS = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive", "is_nonzero"),
    *("argwhere", "linalg_eigh", "_linalg_eigh", "linalg_cholesky_ex", "linalg_solve_ex", "_linalg_svd", "linalg_lstsq", "histc"),
}
FREE = {  # launch nothing
    *("_unsafe_view", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_reshape_alias", "lift", "lift_fresh"),
    *("detach", "alias", "set_", "_local_scalar_dense", "device"),
}
KERNELS = {"baddbmm": 2, "scatter_add": 20, "scatter_add_": 20}  # a copy first; sums by index that are the same each time sort first
MADE = ("arange", "arange.start", "arange.start_step", "linspace", "eye", "eye.m")  # by resizing what is empty, which wrappers can't follow


class MixedDevices(RuntimeError):
    """Tensors of several devices in one operation."""


class CaptureError(RuntimeError):
    """What a capturing stream does not allow, or a replay that reads foreign memory."""


@dataclass
class Counts:
    """What happened in one stretch of work; `launches` are calls that the host makes, `kernels` what these and replays start at least."""

    launches: int = 0
    kernels: int = 0
    syncs: int = 0
    h2d: int = 0
    d2h: int = 0
    h2d_bytes: int = 0
    d2h_bytes: int = 0
    pageable: int = 0  # bytes of copies from memory that is not pinned
    replays: int = 0
    bytes: int = 0

    def _with(self, other: "Counts", sign: int) -> "Counts":
        return Counts(*(getattr(self, one.name) + sign * getattr(other, one.name) for one in fields(self)))

    def __add__(self, other: "Counts") -> "Counts":
        return self._with(other, 1)

    def __sub__(self, other: "Counts") -> "Counts":
        return self._with(other, -1)


class Block:
    """Memory of one storage, in use as long as a tensor has it."""

    def __init__(self, machine: "Machine", inner: Tensor, device: int) -> None:
        self.machine, self.device, self.nbytes = machine, device, inner.untyped_storage().nbytes()
        machine.alive[device] += self.nbytes
        machine.peak[device] = max(machine.peak[device], machine.alive[device])

    def __del__(self) -> None:
        self.machine.alive[self.device] -= self.nbytes


class Emulated(Tensor):
    """A tensor that says it lies on `emulated:k`; its numbers are `inner`'s, on the CPU."""

    inner: Tensor
    block: Block | None

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> "Emulated":
        about: dict[str, Any] = {"dtype": inner.dtype, "device": device}
        if inner.layout is torch.strided:
            about |= {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        self: Emulated = Tensor._make_wrapper_subclass(cls, inner.shape, **about)  # type: ignore[attr-defined]
        self.inner, self.block = inner, Machine.now.block(inner, device.index or 0) if inner.layout is torch.strided else None
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Machine.now.execute(func, args, kwargs or {})

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"Emulated({self.inner!r}, device='{self.device}')"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> Any:
        return torch.as_tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Emulated, (self.inner, self.device)

    def __deepcopy__(self, memo: Any) -> Any:
        return Emulated(self.inner.clone(), self.device).requires_grad_(self.requires_grad)


class Machine:
    """So many emulated devices with so much memory each, and all that is counted on them, by phase."""

    now: "Machine"
    blocks: ClassVar[Any] = weakref.WeakValueDictionary()  # what tasks keep outlives a machine

    def __init__(self, devices: int, memory: int) -> None:
        self.devices, self.memory, self.on, self.forbidden = devices, memory, True, False
        self.counts: dict[str, Counts] = defaultdict(Counts)
        self.sites: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # (phase, kind) -> place -> times
        self.alive, self.peak = Counter[int](), Counter[int]()
        self.rounds: list[Counts] = []
        self.phase = "other"
        self.pinned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
        self.late: list[tuple[Tensor, Tensor]] = []  # copies to the host that nobody has waited for
        self.lock = threading.RLock()
        self.local = threading.local()  # device, stream and capture are each thread's own
        self.undo: list[Callable[[], None]] = []

    # What is told

    def total(self, *phases: str) -> Counts:
        return sum((one for name, one in self.counts.items() if not phases or name in phases), Counts())

    def steady(self) -> Counts:
        """The median of the later half of the rounds, each count by itself."""
        late = self.rounds[len(self.rounds) // 2 :]
        return Counts(*(sorted(getattr(one, part.name) for one in late)[len(late) // 2] for part in fields(Counts)))

    def top(self, kind: str, *phases: str) -> list[tuple[str, int]]:
        found: Counter[str] = Counter()
        for (phase, what), places in self.sites.items():
            if what == kind and (not phases or phase in phases):
                found.update(places)
        return found.most_common(15)

    @contextmanager
    def phased(self, name: str) -> Iterator[None]:
        before, self.phase = self.phase, name
        try:
            yield
        finally:
            self.phase = before

    # Memory

    def block(self, inner: Tensor, device: int) -> Block:
        key = inner.untyped_storage()._cdata
        with self.lock:
            found = self.blocks.get(key)
            if found is None:
                if self.alive[device] + inner.untyped_storage().nbytes() > self.memory:
                    raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {inner.untyped_storage().nbytes()} bytes.")
                found = self.blocks[key] = Block(self, inner, device)
                if (capture := self.capture) is not None:
                    capture.made[id(found)] = found, inner
            return found

    @property
    def capture(self) -> Any:
        """The recording that this thread is in, or None."""
        return getattr(self.local, "capture", None)

    # Operations

    def execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        flat = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        ours = [one for one in flat if isinstance(one, Emulated)]
        plain = [one for one in flat if not isinstance(one, Emulated)]
        name = func._schema.name.split("::")[-1]
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        if name == "_to_copy" and target is not None and target.type == "cpu":
            return self._down(func, args[0], kwargs)
        if name in ("copy_", "_copy_from") and (plain or ours[0].device != ours[-1].device):
            return self._across(args)
        if name == "_to_copy" and target is not None and ours and _indexed(target) != ours[0].device:
            return Emulated(args[0].inner.to(kwargs.get("dtype") or args[0].dtype).clone(), _indexed(target))
        device = _indexed(target) if target is not None else ours[0].device
        self._check(func, name, args, ours, plain)
        if self.capture is not None:
            self.capture.before(func, args, kwargs, device)
        inner_args, inner_kwargs = tree_map(_inner, args), tree_map(_inner, kwargs)
        if target is not None:
            inner_kwargs["device"] = "cpu"
        inner_kwargs.pop("pin_memory", None)
        run = func
        if name in ("convolution", "convolution_backward"):  # oneDNN's for channels last writes past its memory (`gradients.images`)
            run = partial(_contiguous, func)
        result = run(*inner_args, **inner_kwargs)
        known = {id(one.inner): one for one in ours}

        def outer(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            return known[id(one)] if id(one) in known else Emulated(one, device)

        wrapped = tree_map(outer, result)
        launches = not _is_view(func) and name not in FREE
        if launches:
            self.launched(flat, result, KERNELS.get(name, 1))
        if name in WAITS or (name in ("index", "index_put_", "_index_put_impl_") and _masked(args)):
            self.waits(name)
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            self.waits(name)
        if self.capture is not None and launches:
            self.capture.note(run, inner_args, inner_kwargs, result, KERNELS.get(name, 1))
        if torch.Tag.inplace_view in func.tags:
            from torch.utils._mode_utils import no_dispatch

            with no_dispatch():  # the wrapper's own shape too
                func(*args, **kwargs)
        assert all(one.inner.shape == one.shape for one in ours), f"{func}: a shape changed in place, which is not followed here"
        return wrapped

    def _check(self, func: Any, name: str, args: Any, ours: list[Emulated], plain: list[Tensor]) -> None:
        if len({one.device for one in ours}) > 1 and not all(one.dim() == 0 for one in ours[1:]):
            raise MixedDevices(f"Expected all tensors to be on the same device: {func} at {place(True)}")
        if not plain or not ours:
            return
        if name in ("index", "index_put_", "_index_put_impl_", "index_put") and isinstance(args[0], Emulated):
            values = [one for one in args[2:3] if isinstance(one, Tensor)]
            if all(isinstance(one, Emulated) or one.dim() == 0 for one in values):
                for one in plain:
                    self.copied("h2d", one, waits=True)
                return
        pointwise = torch.Tag.pointwise in func.tags or name in ("where", "fill_", "masked_fill", "masked_fill_", "lerp")
        in_place = name.endswith("_") and isinstance(args[0], Tensor) and not isinstance(args[0], Emulated)
        if pointwise and not in_place and all(one.dim() == 0 for one in plain):
            return
        shapes = ", ".join(f"{one.device}{list(one.shape)}" for one in (*ours, *plain))
        raise MixedDevices(f"Expected all tensors to be on the same device: {func}({shapes}) at {place(True)}")

    def _down(self, func: Any, tensor: Emulated, kwargs: Any) -> Tensor:
        found: Tensor = func(
            tensor.inner, **{name: value for name, value in kwargs.items() if name not in ("device", "non_blocking")}
        ).clone()
        late = bool(kwargs.get("non_blocking"))
        self.copied("d2h", found, waits=not late)
        if not late:
            return found
        self.late.append((there := torch.full_like(found, _poison(found)), found))
        return there

    def _across(self, args: Any) -> Tensor:
        to, come, late = args[0], args[1], bool(args[2]) if len(args) > 2 else False
        assert not (isinstance(to, Emulated) and to.is_conj()), "complex numbers are not followed here"
        if isinstance(to, Emulated) and isinstance(come, Emulated):
            if self.capture is not None:
                raise CaptureError(f"a copy from device to device while capturing, at {place(True)}")
            self.launched([to, come], None)
        else:
            self.copied("h2d" if isinstance(to, Emulated) else "d2h", come, waits=not late)
        if isinstance(to, Emulated) or not late:
            _inner(to).copy_(_inner(come))
        else:
            to.fill_(_poison(to))
            self.late.append((to, _inner(come).clone()))
        return to  # type: ignore[no-any-return]

    # Counting

    def launched(self, given: list[Tensor], result: Any, kernels: int = 1) -> None:
        with self.lock:
            count = self.counts[self.phase]
            count.launches += 1
            count.kernels += kernels
            count.bytes += sum(one.numel() * one.element_size() for one in [*given, *tree_leaves(result)] if isinstance(one, Tensor))
            self.sites[self.phase, "launches"][place()] += 1

    def waits(self, why: str) -> None:
        """The host waits for the device."""
        if self.capture is not None:
            raise CaptureError(f"{why} while a stream is capturing, at {place(True)}")
        if self.forbidden:
            raise RuntimeError(f"called a synchronizing CUDA operation: {why}, at {place(True)}")
        with self.lock:
            for there, value in self.late:
                there.copy_(value)
            self.late.clear()
            self.counts[self.phase].syncs += 1
            self.sites[self.phase, "syncs"][f"{place()} {why}"] += 1

    def copied(self, way: str, what: Tensor, waits: bool) -> None:
        size = what.numel() * what.element_size()
        pinned = way == "d2h" or what.untyped_storage()._cdata in self.pinned
        if self.capture is not None and not pinned:
            raise CaptureError(f"a copy of pageable memory ({way}) while a stream is capturing, at {place(True)}")
        with self.lock:
            count = self.counts[self.phase]
            setattr(count, way, getattr(count, way) + 1)
            setattr(count, f"{way}_bytes", getattr(count, f"{way}_bytes") + size)
            count.pageable += 0 if pinned else size
            self.sites[self.phase, way][place()] += 1
        if waits:
            self.waits(way)


def _contiguous(func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*tree_map(lambda one: one.contiguous() if isinstance(one, Tensor) else one, args), **kwargs)


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, Emulated) else one


def _indexed(device: torch.device) -> torch.device:
    index = device.index if device.index is not None else getattr(Machine.now.local, "device", 0)
    if index >= Machine.now.devices:
        raise RuntimeError(f"{NAME} error: invalid device ordinal {index}")
    return torch.device(NAME, index)


def _poison(like: Tensor) -> Any:
    return float("nan") if like.is_floating_point() else like.dtype == torch.bool or torch.iinfo(like.dtype).max


def _masked(args: Any) -> bool:
    return any(isinstance(one, Emulated) and one.dtype in (torch.bool, torch.uint8) for one in (args[1] if len(args) > 1 else []))


@cache
def _is_view(func: Any) -> bool:
    """Results that alias what is given, and nothing written."""
    found = [one.alias_info for one in func._schema.returns]
    return bool(found) and all(one is not None and not one.is_write for one in found)


def place(whole: bool = False) -> str:
    """The line of the project that is at work."""
    frame, lines = sys._getframe(1), []
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in OWN):
            lines.append(f"{frame.f_code.co_filename.rsplit('/', 2)[-2]}/{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}")
            if not whole or len(lines) == 4:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)


# Switching it on


PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "conv1d", "conv2d", "conv3d")  # in low precision under autocast


def _lowered(func: Any, *args: Any, **kwargs: Any) -> Any:
    """A product as autocast has it: of what is float32, in bfloat16."""
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
        low = [one.bfloat16() if isinstance(one, Tensor) and one.dtype == torch.float32 else one for one in args]
        return func(*low, **kwargs)


@cache
def _registered() -> Any:
    """The backend, once a process; the library must live as long."""
    from emulated_graphs import Backend
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    one = torch.ones(1, requires_grad=True)
    torch.autograd.grad(one.sum(), one)  # the engine starts, and counts its devices, once: none, so that processes may still be forked
    _setup_privateuseone_for_python_backend(NAME, Backend())
    library = torch.library.Library("_", "IMPL")
    library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library.fallback(lambda func, *args, **kwargs: Machine.now.execute(func, args, kwargs), "PrivateUse1")
    makers = torch.library.Library("aten", "IMPL")
    for name in MADE:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(aten, packet), overload or "default")
        makers.impl(name, lambda *args, func=func, **kwargs: Machine.now.execute(func, args, kwargs), "PrivateUse1")
    for name in PRODUCTS:
        for overload in getattr(aten, name).overloads():
            if overload in ("default", "padding"):
                func = getattr(getattr(aten, name), overload)
                makers.impl(name if overload == "default" else f"{name}.{overload}", partial(_lowered, func), "AutocastPrivateUse1")
    return library, makers


@contextmanager
def without_onednn() -> Iterator[None]:
    """Its kernels write past what may lie on a GPU as it does: `fedsim.gradients.images.channels_last`."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def emulated(devices: int = 1, memory: int = 8 << 30) -> Iterator[Machine]:
    """The devices are there, and new; fedsim's phases are told apart."""
    machine = Machine.now = Machine(devices, memory)
    _registered()

    def put(owner: Any, name: str, value: Any) -> None:
        old = getattr(owner, name)
        setattr(owner, name, value)
        machine.undo.append(lambda: setattr(owner, name, old))

    def moved(make: Any) -> Any:
        def made(*data: Any, device: Any = None, **more: Any) -> Any:
            here = device is None or torch.device(device).type != NAME
            return make(*data, **({"device": device} if here and device is not None else {}), **more).to(None if here else device)

        return made

    for name in ("tensor", "as_tensor"):  # which make theirs without asking the device
        put(torch, name, moved(getattr(torch, name)))
    sparse = torch.sparse_csr_tensor

    def csr(*parts: Any, device: Any = None, **more: Any) -> Any:
        if device is None or torch.device(device).type != NAME:
            return sparse(*parts, device=device, **more)
        return Emulated(sparse(*map(_inner, parts), **more), _indexed(torch.device(device)))

    put(torch, "sparse_csr_tensor", csr)

    def pinned(self: Tensor, *_: Any) -> Tensor:
        there = self.clone()
        there._keeps_pinned = storage = there.untyped_storage()  # type: ignore[attr-defined]
        machine.pinned[storage._cdata] = storage
        return there

    put(Tensor, "pin_memory", pinned)

    def alone(work: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(False):  # the engine has no threads for devices that aren't there
            return work(*args, **kwargs)

    for name in ("grad", "backward"):
        put(torch.autograd, name, partial(alone, getattr(torch.autograd, name)))
    _watched(machine, put)
    for owner in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        put(owner, "fp32_precision", owner.fp32_precision)
    for name in ("benchmark", "deterministic"):
        put(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    put(torch.utils.deterministic, "fill_uninitialized_memory", True)
    machine.undo.append(lambda: torch.use_deterministic_algorithms(False))
    try:
        with without_onednn():
            yield machine
    finally:
        machine.on = False
        for undo in reversed(machine.undo):
            undo()


def _watched(machine: Machine, put: Callable[[Any, str, Any], None]) -> None:
    """Counts are put down to training, merging, evaluation and the rest, and to rounds."""
    from fedsim.engines.local import Worker
    from fedsim.federation.federation import Federation
    from fedsim.run.measured import Measured

    def phased(owner: Any, name: str, phase: str) -> None:
        old = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with machine.phased(phase):
                return old(*args, **kwargs)

        put(owner, name, call)

    phased(Worker, "compute", "train")
    phased(Measured, "_measure", "evaluate")
    phased(Federation, "mix", "mix")
    phased(Federation, "run", "schedule")
    last = Counts()
    merge = Federation.merge

    def merged(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal last
        with machine.phased("merge"):
            found = merge(self, *args, **kwargs)
        now = machine.total("train", "merge", "schedule", "mix")
        machine.rounds.append(now - last)
        last = now
        return found

    put(Federation, "merge", merged)
