"""A server and its workers in this process, over real sockets: the network as it is, training in threads instead of processes."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from fedsim.deploy import join, replaying, serve, training
from fedsim.run.building import Tasks, build
from fedsim.run.folders import RunFolder
from fedsim.run.replay import replay
from fedsim.run.resume import reload, reopen
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity, WorkerIdentity


class Thread(threading.Thread):
    """Training's process, but for what only a process can: it ends with its pipe."""

    exitcode = 0
    pipe: Any

    def kill(self) -> None:
        with socket.socket(fileno=os.dup(self.pipe.fileno())) as same:
            same.shutdown(socket.SHUT_RDWR)


def in_a_thread(setup: dict[str, Any]) -> tuple[Thread, Any]:
    ours, theirs = Pipe()
    thread = Thread(target=training.main, args=(theirs, setup), daemon=True)
    thread.pipe = ours
    thread.start()
    return thread, ours


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "start", in_a_thread)


class Worker(threading.Thread):
    """One machine. `why`: how it ended."""

    def __init__(self, address: str, nodes: str, folder: Path, identity: WorkerIdentity | None = None) -> None:
        super().__init__(daemon=True)
        self.machine = join.Machine(address, nodes, folder, folder.parent)
        self.identity, self.said, self.why = identity or WorkerIdentity(insecure=True), list[str](), ""
        self.start()

    def run(self) -> None:
        try:
            self.why = asyncio.run(join.work(self.machine, self.identity, self.said.append))
        except Exception as error:
            self.why = f"{type(error).__name__}: {error}"


def written(folder: Path, text: str) -> Path:
    file = folder / "it.yaml"
    file.write_text(text + "\ntrack: none\n")
    return file


def simulated(file: Path, folder: Path) -> dict[str, Any]:
    """run.json of the same scenario, simulated."""
    [loaded] = load(file)
    return build(loaded, Tasks()).execute(folder)


def deployed(
    file: Path, folder: Path, nodes: Sequence[str], meanwhile: Callable[[Run, list[Worker]], None] = lambda run, workers: None
) -> dict[str, Any]:
    """run.json of a run with a worker for each of these nodes; in a folder that holds a run already, that one goes on."""
    again = (folder / "run.json").exists()
    [loaded] = [reload(folder)] if again else load(file)
    run, said = serve.build(loaded, Tasks()), list[str]()
    if again:
        reopen(run, folder)
    service = serve.Service(run, folder, ["127.0.0.1:0"], ServerIdentity.plain(), said.append)
    [address] = service.start()
    workers = [Worker(address, these, file.parent / f"worker-{these}") for these in nodes]
    meanwhile(run, workers)
    info = run.execute(folder)
    service.stop(info["status"], info["reason"])
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    return info | {"said": said, "why": [worker.why for worker in workers]}


def replayed(folder: Path) -> list[str]:
    """What is said of the run computed again."""
    lines, same = replay(RunFolder(folder), Tasks(), builder=replaying.recorded)
    assert same, lines
    return lines
