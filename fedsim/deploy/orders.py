"""From what nodes hear to orders: what all hear is one object, whoever and how many ask for it."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fedsim.base.rows import Rows
from fedsim.transport.messages_pb2 import Job, Object, Order, Part
from fedsim.transport.objects import Store

Memory = tuple[StorageWeakRef, int, torch.Size, torch.dtype]


class Orders:
    """Makes orders, and keeps their objects in the store for as long as a job of theirs is in flight or the next may need them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.uses: Counter[bytes] = Counter()
        self.held: dict[int, tuple[bytes, ...]] = {}  # by job
        self.last: dict[str, tuple[Memory, Object]] = {}  # of each part what all hear; it is mostly heard again

    def order(self, jobs: Sequence[Job], heard: Rows, kind: str = "train", head: bytes = b"") -> Order:
        """One for jobs that heard these parts [m, ...]. Raises RunError where the objects can't be written."""
        parts = [self._part(name, rows, len(jobs)) for name, rows in heard.items()]
        names = tuple(part.object.hash for part in parts)
        for job in jobs:
            self.uses.update(names)
            self.held[job.id] = names
        return Order(kind=kind, jobs=jobs, parts=parts, head=head)

    def done(self, jobs: Iterable[int]) -> None:
        """Nobody needs to hear anything for these jobs any more."""
        for job in jobs:
            self._released(self.held.pop(job, ()))

    def _part(self, name: str, rows: Tensor, count: int) -> Part:
        each = count > 1 and rows.stride(0) != 0
        rows = rows if each else rows[:1]
        part = Part(name=name, dtype=str(rows.dtype).removeprefix("torch."), shape=rows.shape, each=each)
        before = self.last.get(name)
        if before and not each and before[0] == _memory(rows):
            part.object.CopyFrom(before[1])
            return part
        flat = rows.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        part.object.CopyFrom(self.store.put([flat.data]))
        if not each:
            self.uses[part.object.hash] += 1
            self.last[name] = _memory(rows), part.object
            if before:
                self._released([before[1].hash])
        return part

    def _released(self, names: Iterable[bytes]) -> None:
        for name in names:
            self.uses[name] -= 1
            if not self.uses[name]:
                del self.uses[name]
                self.store.drop(name)


def _memory(rows: Tensor) -> Memory:
    """Where rows lie: equal for the same memory only, for blocks are never written again, and a name is used once while it is known."""
    return StorageWeakRef(rows.untyped_storage()), int(rows.storage_offset()), rows.shape, rows.dtype  # type: ignore[no-untyped-call]
