"""A server and its workers in this process, over real sockets: the network as it is, training in threads instead of processes."""

import asyncio
import functools
import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from fedsim.deploy import crew, join, replaying, serve, training
from fedsim.report.checks import check_events
from fedsim.run.building import Tasks, build
from fedsim.run.folders import RunFolder
from fedsim.run.replay import replay
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity, WorkerIdentity

ALONE = threading.Lock()
TASKS = Tasks()  # of runs in one process: the simulated one and the one computed again share theirs


class Thread(threading.Thread):
    """Training's process, but for what only a process can: it ends with its pipe."""

    exitcode = 0
    pipe: Any

    def kill(self) -> None:
        with socket.socket(fileno=os.dup(self.pipe.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


def in_a_thread(setup: dict[str, Any]) -> tuple[Thread, Any]:
    """Tasks are built one after the other: whether models draw from torch's own generator is seen by its state."""

    def prepare(**arguments: Any) -> Any:
        with ALONE:
            return setup["prepare"](**arguments)

    ours, theirs = Pipe()
    thread = Thread(target=training.main, args=(theirs, setup | {"prepare": prepare}), daemon=True)
    thread.pipe = ours
    thread.start()
    return thread, ours


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "start", in_a_thread)


LOOP = asyncio.new_event_loop()  # of all workers and strangers: gRPC's events for a loop that was closed get lost with others'


@functools.cache
def loop() -> asyncio.AbstractEventLoop:
    """The loop, in a thread of its own."""
    threading.Thread(target=LOOP.run_forever, name="workers' loop", daemon=True).start()
    return LOOP


class Worker:
    """One machine. `why`: how it ended."""

    def __init__(self, address: str, nodes: str, folder: Path, data: Path | None = None, device: str | None = None) -> None:
        self.machine = join.Machine(address, nodes, folder, folder.parent, data, device)
        self.identity, self.said, self.why = WorkerIdentity(insecure=True), list[str](), ""
        self.ended = asyncio.run_coroutine_threadsafe(self.run(), loop())

    async def run(self) -> None:
        try:
            self.why = await join.work(self.machine, self.identity, self.said.append)
        except Exception as error:
            self.why = f"{type(error).__name__}: {error}"

    def join(self, seconds: float) -> None:
        """Raises TimeoutError where it goes on."""
        self.ended.result(seconds)


def written(folder: Path, text: str) -> Path:
    file = folder / "it.yaml"
    file.write_text(text + "\ntrack: none\n")
    return file


def simulated(file: Path, folder: Path) -> dict[str, Any]:
    """run.json of the same scenario, simulated."""
    [loaded] = load(file)
    return build(loaded, TASKS).execute(folder)


def deployed(
    file: Path,
    folder: Path,
    nodes: Sequence[str],
    meanwhile: Callable[[Run, list[Worker]], None] = lambda run, workers: None,
    data: Sequence[Path] = (),
    keep: bool = False,
) -> dict[str, Any]:
    """run.json of a run with a worker for each of these nodes; `data`: where each worker's own data lie; with `keep`, replies stay."""
    [loaded] = load(file)
    said = list[str]()
    service = serve.Service(loaded, folder, ["127.0.0.1:0"], ServerIdentity.plain(), said.append, keep)
    [address] = service.start()
    run = None if data else service.build()
    homes = data or [None] * len(nodes)
    workers = [Worker(address, these, file.parent / f"worker-{these}", home) for these, home in zip(nodes, homes, strict=True)]
    run = run or service.build()
    meanwhile(run, workers)
    info = run.execute(folder)
    service.stop(info["status"], info["reason"])
    for worker in workers:
        worker.join(20)
    log = RunFolder(folder)
    assert [check for check in check_events(log.columns, log.info, log.metrics) if not check.ok] == []
    return info | {"said": said, "why": [worker.why for worker in workers]}


def replayed(folder: Path, data: Sequence[tuple[Sequence[int], Path]] = (), replies: bool = False) -> list[str]:
    """What is said of the run computed again, or out of replies that were kept."""
    lines, same = replay(RunFolder(folder), TASKS, builder=partial(replaying.recorded, data=data, replies=replies))
    assert same, lines
    return lines
