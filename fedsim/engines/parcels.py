"""Rows on their way between a driver and its actors: as arrays, which lie once on each machine and are read there in place."""

import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.rows import Rows
from fedsim.engines.processes import packed

Arrays = dict[str, NDArray[Any]]
FEW = 16  # rows of model versions that are kept at hand


@dataclass(frozen=True)
class Heard:
    """What jobs [m] heard, as a number of arrays beside it: by name of the part which arrays have its rows, and each job's row."""

    parts: dict[str, tuple[int, ...]]
    at: Ints | None  # int64 [m]; None: the one array has a row for each job
    count: int

    def rows(self, arrays: Sequence[NDArray[Any]]) -> Rows:
        """Parts [m, ...], copied but where one row is expanded to all: what lies in shared memory must never be written to."""
        return {name: self._part([tensor(arrays[one]) for one in which]) for name, which in self.parts.items()}

    def _part(self, ones: Sequence[Tensor]) -> Tensor:
        if len(ones) == 1:
            return ones[0].clone() if len(ones[0]) == self.count else ones[0].expand(self.count, *ones[0].shape[1:])
        assert self.at is not None
        return torch.cat(list(ones)).index_select(0, torch.from_numpy(self.at))


class Shelf:
    """Puts arrays where all actors find them, and the last rows of model versions only once. `put` says how one is put there."""

    def __init__(self, put: Callable[[NDArray[Any]], Any]) -> None:
        self.put = put
        self.known: OrderedDict[tuple[int, int], tuple[Tensor, Any]] = OrderedDict()  # a row that is held stays where it lies

    def pack(self, rows: Sequence[Rows], at: Ints | None, count: int) -> tuple[Heard, list[Any], int]:
        """What jobs hear: `rows` are some single ones, of which job i has row `at[i]`; or, without `at`, one block with a row for each.

        What it is, where its arrays are, and how many bytes those have that nobody else heard.
        """
        parts, where, own = dict[str, tuple[int, ...]](), list[Any](), 0
        for name in rows[0]:
            found = []
            for one in rows:
                part, single = one[name], at is not None or shared(one[name])
                found.append(len(where))
                own += 0 if single else part.nbytes
                where.append(self._row(part[:1]) if single else self.put(array(part)))
            parts[name] = tuple(found)
        return Heard(parts, at, count), where, own

    def _row(self, row: Tensor) -> Any:
        key = (row.data_ptr(), row.nbytes)
        if key not in self.known:
            self.known[key] = (row, self.put(array(row)))
            while len(self.known) > FEW:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key][1]


def shared(part: Tensor) -> bool:
    """Is it one row, expanded to many?"""
    return len(part) > 1 and part.stride(0) == 0


def array(part: Tensor) -> NDArray[Any]:
    """The same numbers where they lie, or together."""
    found: NDArray[Any] = part.detach().cpu().contiguous().numpy()
    return found


def arrays(rows: Mapping[str, Tensor]) -> Arrays:
    """Parts [m, ...] as arrays."""
    return {name: array(part) for name, part in rows.items()}


def tensor(numbers: NDArray[Any]) -> Tensor:
    """The same numbers where they lie. Where those are shared with others, they must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(numbers)


def tensors(found: Mapping[str, NDArray[Any]]) -> Rows:
    """The reverse of `arrays`."""
    return {name: tensor(numbers) for name, numbers in found.items()}


def bundled(value: Any) -> tuple[bytes, list[NDArray[Any]], list[str]]:
    """Anything, as bytes, the numbers of its arrays, and where its classes are imported from."""
    buffers: list[pickle.PickleBuffer] = []
    content = packed(value, buffers.append)
    return content, [np.frombuffer(one.raw(), dtype=np.uint8) for one in buffers], [*sys.path]


def unbundled(content: bytes, buffers: Sequence[NDArray[Any]], path: Sequence[str]) -> Any:
    """What was bundled; its numbers stay where they lie, and must not be written to."""
    sys.path += [place for place in path if place not in sys.path]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return pickle.loads(content, buffers=buffers)
