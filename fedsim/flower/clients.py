"""ClientApps at work for simulated nodes: in this process, or in a pool of processes."""

import multiprocessing
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.random import mtrand

from fedsim.base.keys import fold
from fedsim.flower import private
from fedsim.flower.app import App, Config, load
from fedsim.flower.grid import node_id


class Outcome(NamedTuple):
    """What came of a message: the reply or error, the node's state after it, the host's seconds, and the traceback if it raised."""

    reply: Message
    state: RecordDict
    seconds: float
    trace: str = ""


Pending = Callable[[], Outcome]  # computes it, or waits for it


@dataclass(frozen=True)
class Cast:
    """What ClientApps of a run are told: Flower's run, the number of nodes, the run config and the seed."""

    run: int
    nodes: int
    config: Mapping[str, Any]
    seed: int


class Clients(Protocol):
    """Who runs ClientApps. `working`: one runs in this thread now."""

    working: bool

    def submit(self, node: int, turn: int, message: Message, state: RecordDict) -> Pending:
        """Work on a node's `turn`-th message, with a state of its own."""

    def back(self) -> None:
        """The ServerApp goes on: global generators and who this process is are its own again."""

    def close(self) -> None:
        """Ends its processes."""


def worked(client: ClientApp, cast: Cast, node: int, turn: int, message: Message, state: RecordDict) -> Outcome:
    """A ClientApp's answer. As in Flower's deployment what it changed in the state before it raised stays.

    The global generators of random, numpy and torch begin at a number of seed, node and turn, so that an app which does not seed them is
    repeatable too.
    """
    private.identify(cast.run, node_id(node))
    seed(int(fold(cast.seed, "flower client", node, turn)))
    config: Config = {"partition-id": node, "num-partitions": cast.nodes}
    context = Context(cast.run, node_id(node), config, state, dict(cast.config))
    began, trace = perf_counter(), ""
    try:
        reply = client(message, context)
        if not isinstance(reply, Message):
            raise TypeError(f"the ClientApp returned a {type(reply).__name__}, no Message")
    except (Exception, SystemExit) as error:
        reply, trace = Message(Error(private.RAISED, f"{type(error)}:<'{error}'>"), reply_to=message), traceback.format_exc()
    return Outcome(reply, context.state if isinstance(context.state, RecordDict) else state, perf_counter() - began, trace)


def seed(number: int) -> None:
    """The global generators of random, numpy and torch begin here."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.default_generator.manual_seed(number % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number % 2**63)


class Here:
    """In this process, at the moment when the outcome is needed, with one thread of torch as in a pool, so that sums are the same.

    What ServerApp and ClientApps draw from global generators is apart.
    """

    def __init__(self, client: ClientApp, cast: Cast, serialize: bool = False) -> None:
        """`serialize`: messages and states pass through bytes, as they would on a network."""
        self.client, self.cast, self.serialize = client, cast, serialize
        self.working, self.bits = False, np.random.MT19937(0)
        self.usual: Any = None  # what is the ServerApp's while ClientApps work

    def submit(self, node: int, turn: int, message: Message, state: RecordDict) -> Pending:
        return lambda: self._work(node, turn, message, state)

    def close(self) -> None:
        """Nothing is left."""

    def back(self) -> None:
        if self.usual:
            numbers, bits, state, threads = self.usual
            random.setstate(numbers)
            mtrand.set_bit_generator(bits)
            torch.set_rng_state(state)
            torch.set_num_threads(threads)
            private.identify(self.cast.run, private.SERVER)
            self.usual = None

    def _work(self, node: int, turn: int, message: Message, state: RecordDict) -> Outcome:
        if self.usual is None:  # once for all that work until the ServerApp goes on, which saves time
            self.usual = random.getstate(), mtrand.get_bit_generator(), torch.get_rng_state(), torch.get_num_threads()
            torch.set_num_threads(1)
            mtrand.set_bit_generator(self.bits)
        self.working = True
        try:
            if not self.serialize:
                return worked(self.client, self.cast, node, turn, message, state)
            return _unpacked(_worked_packed(self.client, self.cast, node, turn, *_packed(message, state)))
        finally:
            self.working = False


class Pool:
    """In processes of their own, each with the app once; messages go to them and back as bytes."""

    def __init__(self, app: App, cast: Cast, processes: int) -> None:
        self.app, self.cast, self.processes, self.working = app, cast, processes, False
        self.pool = self._start(processes)

    def submit(self, node: int, turn: int, message: Message, state: RecordDict) -> Pending:
        words = (node, turn, *_packed(message, state))
        try:
            future = self.pool.submit(_in_pool, *words)
        except BrokenProcessPool:
            self.pool = self._start(self.processes)
            future = self.pool.submit(_in_pool, *words)
        return lambda: self._result(future, words, message, state)

    def back(self) -> None:
        """They always were."""

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)

    def _start(self, processes: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(processes, context, _begin, (self.app.client, str(self.app.folder), self.cast, [*sys.path]))

    def _result(self, future: "Future[tuple[bytes, bytes, float, str]]", words: Any, message: Message, state: RecordDict) -> Outcome:
        """Who shared a pool with a message that ended its process is worked on again, alone; who did it gets error 8."""
        with suppress(BrokenProcessPool):
            return _unpacked(future.result())
        with self._start(1) as alone, suppress(BrokenProcessPool):
            return _unpacked(alone.submit(_in_pool, *words).result())
        return Outcome(Message(Error(private.CRASHED, "the ClientApp ended its process"), reply_to=message), state, 0.0)


_begun: tuple[ClientApp, Cast] | None = None


def _begin(client: str, folder: str, cast: Cast, path: list[str]) -> None:
    """In a process of the pool."""
    global _begun
    threading.Thread(target=_orphaned, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches it too, and the run says what it means
    sys.path[:] = path
    torch.set_num_threads(1)
    _begun = load(client, Path(folder)), cast


def _orphaned() -> None:
    """Ends this process when its parent is gone, which may have been killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _in_pool(node: int, turn: int, head: bytes, content: bytes, state: bytes) -> tuple[bytes, bytes, float, str]:
    assert _begun
    return _worked_packed(*_begun, node, turn, head, content, state)


def _packed(message: Message, state: RecordDict) -> tuple[bytes, bytes, bytes]:
    return private.head(message), private.packed(message.content), private.packed(state)


def _worked_packed(
    client: ClientApp, cast: Cast, node: int, turn: int, head: bytes, content: bytes, state: bytes
) -> tuple[bytes, bytes, float, str]:
    found = worked(client, cast, node, turn, private.message(head, content, 0.0), private.unpacked(state))
    return private.answer(found.reply), private.packed(found.state), found.seconds, found.trace


def _unpacked(told: tuple[bytes, bytes, float, str]) -> Outcome:
    return Outcome(private.told(told[0]), private.unpacked(told[1]), *told[2:])
