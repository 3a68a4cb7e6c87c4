"""Several processes of this machine compute chunks of jobs; results don't depend on how many, nor on who computes what."""

import ctypes
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import Tensor

from fedsim.base.crashes import ending
from fedsim.base.errors import HostError

Compute = Callable[[Any], Any]


class Pool:
    """Forked processes that each apply one function to what they are sent: they share the parent's memory and keep no state.

    They end with `close`, or when the parent does. Not started before the first use. `title` says what a piece is, for errors.
    """

    def __init__(self, compute: Compute, processes: int, title: Callable[[Any], str] = repr) -> None:
        self.compute, self.processes, self.title = compute, processes, title
        self.children: list[Any] = []
        self.pipes: list[Connection] = []

    def map(self, pieces: Sequence[Any], keep: Callable[[int, Any], None]) -> None:
        """Gives each piece's number and result to `keep` as they come; whoever is free takes the next piece.

        Raises what a piece raised, of several the first in their order, and RunError where a process died.
        """
        if not self.pipes:
            self._start()
        failed: dict[int, BaseException] = {}
        waiting = iter(enumerate(pieces))
        busy = {pipe: at for pipe in self.pipes if (at := self._send(pipe, waiting)) is not None}
        while busy:
            for ready in wait(list(busy)):
                pipe: Any = ready
                done = busy.pop(pipe)
                result = self._receive(pipe, pieces[done])
                if isinstance(result, BaseException):
                    failed[done] = result
                else:
                    keep(done, result)
                at = self._send(pipe, waiting)
                if at is not None:
                    busy[pipe] = at
        if failed:
            raise failed[min(failed)]

    def close(self) -> None:
        """Ends the processes. Each is told so: of its pipe another pool's processes, forked later, have an end, too."""
        for pipe in self.pipes:
            with suppress(OSError):
                pipe.send_bytes(packed(None))
            pipe.close()
        for child in self.children:
            child.join(5)
            if child.is_alive():
                child.kill()
        self.pipes, self.children = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        for _ in range(self.processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=_serve, args=(theirs, [*self.pipes, ours], self.compute, os.getpid()), daemon=True)
            child.start()
            theirs.close()
            self.pipes.append(ours)
            self.children.append(child)

    def _send(self, pipe: Connection, waiting: Any) -> int | None:
        at, piece = next(waiting, (None, None))
        if at is not None:
            try:
                pipe.send_bytes(packed(piece))
            except OSError as error:
                raise self._died(pipe, piece) from error
        return at

    def _receive(self, pipe: Connection, piece: Any) -> Any:
        try:
            return pickle.loads(pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._died(pipe, piece) from error

    def _died(self, pipe: Connection, piece: Any) -> HostError:
        child = self.children[self.pipes.index(pipe)]
        child.join(5)
        cure = "; `engine.processes: 1` needs least" if child.exitcode == -signal.SIGKILL else ""
        return HostError(f"{self.title(piece)}: a worker process {ending(child.exitcode)}{cure}")


def _serve(pipe: Connection, others: Sequence[Connection], compute: Compute, parent: int) -> None:
    """The life of a process: signals are the parent's affair, and it ends when the pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the parent may be killed
    if os.getppid() != parent:
        return
    for one in others:
        one.close()
    torch.set_num_threads(1)
    while True:
        try:
            piece = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        if piece is None:
            return
        try:
            result = compute(piece)
        except Exception as error:
            result = error
        try:
            pipe.send_bytes(packed(result))
        except OSError:  # the parent was interrupted and wants nothing any more
            return


class _Packer(pickle.Pickler):
    """Tensors as NumPy arrays: no shared storages behind them; one row expanded to many travels once."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:  # a Parameter is more than its numbers
            return NotImplemented
        if value.dim() and len(value) > 1 and value.stride(0) == 0:
            return _expanded, (value[0].numpy(), len(value))
        return torch.from_numpy, (value.contiguous().numpy(),)


def _expanded(row: Any, count: int) -> Tensor:
    one = torch.from_numpy(row)
    return one[None].expand(count, *one.shape)


def packed(value: Any, apart: Callable[[pickle.PickleBuffer], object] | None = None) -> bytes:
    """The value as bytes; `apart` is given the numbers of large arrays instead, where they lie."""
    from io import BytesIO

    stream = BytesIO()
    _Packer(stream, protocol=5, buffer_callback=apart).dump(value)
    return stream.getvalue()
