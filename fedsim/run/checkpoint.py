"""Checkpoints: the state of a run in one file, complete and checked, or not there at all.

Every class with state says in `keeps` which of its attributes are state: numbers, texts, None, tensors, arrays, lists, tuples and
dicts of these, or objects that keep something themselves. An attribute may be a property that can be set. A file is MAGIC, the
length of the head, the head (JSON), the numbers of all tensors and arrays, and the CRC-32 of all that.
"""

import json
import math
import os
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.devices import fetched
from fedsim.base.errors import FedsimError, RunError
from fedsim.base.files import whole
from fedsim.base.store import room

MAGIC = b"fedsim c"
PLAIN = (bool, int, float, str)


class BrokenError(FedsimError):
    """A checkpoint that is not whole, or does not fit."""


@dataclass
class State:
    """A value as JSON, and its tensors and arrays apart; one that stands in several places is kept once."""

    tree: Any = None
    arrays: list[Any] = field(default_factory=list)


def copied(state: State) -> State:
    """One that later changes of the object leave as it is."""
    return State(state.tree, [one.copy() if isinstance(one, np.ndarray) else one.clone() for one in state.arrays])


# Between objects and their state


def collect(value: Any) -> State:
    """The state of an object that keeps something; not copied. Raises TypeError, naming the attribute, for what can't be kept."""
    state = State()
    state.tree = _collected(value, state.arrays, {}, type(value).__name__)
    return state


def _collected(value: Any, arrays: list[Any], seen: dict[Any, int], path: str) -> Any:
    if value is None or type(value) in PLAIN:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor | np.ndarray):
        where = (value.data_ptr(), value.stride()) if isinstance(value, Tensor) else (value.ctypes.data, value.strides)
        place = seen.setdefault((type(value), *where, tuple(value.shape), str(value.dtype), str(value.device)), len(arrays))
        if place == len(arrays):
            arrays.append(value)
        return {"array": place, "elsewhere": isinstance(value, Tensor) and value.device.type != "cpu"}
    if hasattr(value, "keeps"):
        return {"object": {name: _collected(getattr(value, name), arrays, seen, f"{path}.{name}") for name in value.keeps}}
    if isinstance(value, dict) and all(type(key) in PLAIN for key in value):
        return {"dict": [[key, _collected(item, arrays, seen, f"{path}[{key!r}]")] for key, item in value.items()]}
    if type(value) in (list, tuple) or hasattr(value, "_fields"):
        kind = type(value).__name__ if type(value) in (list, tuple) else f"{type(value).__module__}:{type(value).__qualname__}"
        return {"items": [_collected(item, arrays, seen, f"{path}[{at}]") for at, item in enumerate(value)], "kind": kind}
    raise TypeError(f"{path}: a {type(value).__name__} can't be kept in a checkpoint")


def restore(target: Any, state: State, device: torch.device | str = "cpu") -> None:
    """Puts a state into an object that was built as the one it was collected from; tensors that were on no CPU go to the device.

    Raises BrokenError where the object keeps other things than the state has.
    """
    _restored(state.tree, target, state.arrays, device, type(target).__name__)


def _restored(tree: Any, old: Any, arrays: list[Any], device: torch.device | str, path: str) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "array" in tree:
        return arrays[tree["array"]].to(device) if tree["elsewhere"] else arrays[tree["array"]]
    if "object" in tree:
        if list(tree["object"]) != list(getattr(old, "keeps", ())):
            raise BrokenError(f"{path} keeps other things than it has")
        for name, inner in tree["object"].items():
            before = getattr(old, name)
            after = _restored(inner, before, arrays, device, f"{path}.{name}")
            if after is not before:
                setattr(old, name, after)
        return old
    if "dict" in tree:
        return {key: _restored(inner, (old or {}).get(key), arrays, device, f"{path}[{key!r}]") for key, inner in tree["dict"]}
    return _sequence(tree["kind"], [_restored(inner, None, arrays, device, path) for inner in tree["items"]], path)


def _sequence(kind: str, items: list[Any], path: str) -> Any:
    if kind in ("list", "tuple"):
        return items if kind == "list" else tuple(items)
    module, _, name = kind.partition(":")
    named = getattr(sys.modules.get(module), name, None)  # known already where the run is built
    if not hasattr(named, "_fields"):
        raise BrokenError(f"{path}: there is no {kind}")
    return named(*items)  # type: ignore[misc]


# Files


def _raw(value: Any) -> memoryview:
    """Its numbers as bytes, copied only where they don't lie together."""
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    flat: NDArray[np.uint8] = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.data


def _like(value: Any) -> list[Any]:
    kind, dtype = ("numpy", value.dtype.str) if isinstance(value, np.ndarray) else ("torch", str(value.dtype).removeprefix("torch."))
    return [kind, dtype, list(value.shape)]


def write(file: Path, about: dict[str, Any], state: State) -> None:
    """One checkpoint, on the disk when this returns. Raises RunError where it can't be written; what was there before stays."""
    head = json.dumps({"about": about, "tree": state.tree, "arrays": [_like(value) for value in state.arrays]}).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole(file) as draft, draft.open("wb", buffering=0) as out:
        check = 0
        for part in chain([memoryview(MAGIC + len(head).to_bytes(8, "little") + head)], map(_raw, fetched(state.arrays))):
            check = zlib.crc32(part, check)
            _all(out, part)
        _all(out, memoryview(check.to_bytes(4, "little")))
        os.fsync(out.fileno())


def _all(out: IO[bytes], rest: memoryview) -> None:
    """The operating system writes at most 2 GiB at once."""
    while len(rest):
        rest = rest[out.write(rest) :]


def read(file: Path) -> tuple[dict[str, Any], State]:
    """What `write` wrote. Raises BrokenError, saying what is wrong, where it is not whole."""
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            start = source.read(16)
            length = int.from_bytes(start[8:], "little")
            if start[:8] != MAGIC or length > size:
                raise BrokenError("it does not begin as a checkpoint")
            raw = source.read(length)
            head = json.loads(raw)
            check = zlib.crc32(raw, zlib.crc32(start))
            arrays = []
            for kind, dtype, shape in head["arrays"]:
                if kind == "torch" and math.prod(shape) * getattr(torch, dtype).itemsize > size:
                    raise BrokenError("its end is missing")
                value, numbers = _empty(kind, dtype, shape)
                if source.readinto(numbers) < len(numbers):
                    raise BrokenError("its end is missing")
                check = zlib.crc32(numbers, check)
                arrays.append(value)
            end = source.read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, RuntimeError, OverflowError) as error:
        raise BrokenError(f"it can't be read ({type(error).__name__})") from error
    if end != check.to_bytes(4, "little"):
        raise BrokenError("its checksum is wrong" if len(end) == 4 else "its end is missing")
    return head["about"], State(head["tree"], arrays)


def _empty(kind: str, dtype: str, shape: Sequence[int]) -> tuple[Any, memoryview]:
    """Room for an array, a large one in a file, and the same as bytes."""
    if kind == "numpy":
        array = np.empty(shape, dtype=np.dtype(dtype))
        return array, array.reshape(-1).view(np.uint8).data
    one = torch.empty(1, *shape[1:], dtype=getattr(torch, dtype))
    tensor = room(one, shape[0]) if shape and shape[0] else one.new_empty(tuple(shape))
    return tensor, tensor.reshape(-1).view(torch.uint8).numpy().data


# The checkpoints of a run


def files(folder: Path) -> list[Path]:
    """A run folder's checkpoints, the oldest first."""
    return sorted((folder / "checkpoints").glob("*.checkpoint"))


def add(folder: Path, version: int, about: dict[str, Any], state: State, keep: int) -> None:
    """Writes one more and keeps the last ones; where the disk has no room for it, all but the last one make room first.

    Raises RunError where it can't be written; the last one stays.
    """
    old, new = files(folder), folder / "checkpoints" / f"{version:09d}.checkpoint"
    try:
        write(new, about, state)
    except RunError:
        if len(old) < 2:
            raise
        for file in old[:-1]:
            file.unlink()
        write(new, about, state)
    for file in files(folder)[:-keep]:
        file.unlink()
