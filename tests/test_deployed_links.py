"""Deployed runs over links that cut, delay and damage: the model of the simulation; and a trainer that is deaf for a while."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployed import Worker, deployed, loop, replayed, simulated, threads, written
from machines import Machines
from proxy import Proxy

from fedsim.base.errors import HostError
from fedsim.deploy import trainer
from fedsim.deploy.serve import Service
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]

TASK = "task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: %s}\n"
ROUNDS = "schedule: {name: rounds, cohort: 4}\ntrain: {epochs: 1, batch: 32, lr: 0.1}\n"


def test_cuts_and_damage_change_nothing(threads: None, tmp_path: Path) -> None:
    """Jobs are sent again and answered again, in another order, and some bytes are not what they were: each is merged once."""
    text = TASK % "{name: mlp, hidden: [512]}" + ROUNDS + "strategy: scaffold\nstop: {rounds: 8}\ndeploy: {silence: 20 s}\n"
    [loaded] = load(file := written(tmp_path, text))
    service = Service(loaded, tmp_path / "run", ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    [address] = service.start()
    run, over, lot = service.build(), threading.Event(), random.Random(0)
    proxies = [asyncio.run_coroutine_threadsafe(Proxy(int(address.rpartition(":")[2])).start(), loop()).result(10) for _ in range(2)]
    workers = [Worker(f"127.0.0.1:{proxy.port}", nodes, tmp_path / nodes) for proxy, nodes in zip(proxies, ("0..2", "3..5"), strict=True)]

    def mistreat() -> None:
        while not over.wait(0.3 + 0.3 * lot.random()):
            proxy = lot.choice(proxies)
            proxy.delay = 0.02 * lot.random()
            if lot.random() < 0.3:
                proxy.damage_at = proxy.up + lot.randrange(200_000)
            else:
                proxy.cut()

    bad = threading.Thread(target=mistreat)
    bad.start()
    info = run.execute(tmp_path / "run")
    over.set()
    bad.join()
    service.stop(info["status"], info["reason"])
    for worker in workers:
        worker.join(20)
    for proxy in proxies:
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop()).result(10)
    assert sum(proxy.connections for proxy in proxies) > 6
    assert info["status"] == "finished" and info["final"]["work/dropped"] == 0
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]
    replayed(tmp_path / "run")


DEAF = """
import ctypes
import multiprocessing
import pathlib
from dataclasses import dataclass
from strategies.fedavg import FedAvg

def deaf() -> None:
    slow = pathlib.Path("slow")
    if multiprocessing.current_process().name == "fedsim trainer" and slow.exists():
        slow.unlink()
        ctypes.PyDLL(None).sleep(SECONDS)  # one call into C that gives the interpreter to nobody

@dataclass(frozen=True)
class Deaf(FedAvg):
    def local_update(self, received, memory, local):
        deaf()
        return super().local_update(received, memory, local)
"""


def deaf(folder: Path, silence: int, seconds: int) -> None:
    """A worker that for so long does not come out of one call."""
    (folder / "mine.py").write_text(DEAF.replace("SECONDS", str(seconds)))
    text = TASK % "logistic" + ROUNDS + f"strategy: mine:Deaf\nstop: {{rounds: 100}}\ndeploy: {{silence: {silence} s}}\n"
    with Machines(folder) as machines:
        machines.serve(written(folder, text))
        machines.join("0..5")
        machines.until(lambda: machines.decisions >= 4, 180)
        (folder / "slow").touch()
        assert machines.ends("server", 180 + seconds) == 0, machines.said("server")
        run = machines.run
        assert run and not (folder / "slow").exists() and "lost" not in machines.said("server")
        assert run.info["final"]["work/dropped"] == 0 and run.columns["work"].max() >= seconds * 1_000_000_000
        replayed(run.path)


@pytest.mark.kill
def test_a_worker_in_one_long_call_is_alive(tmp_path: Path) -> None:
    deaf(tmp_path, 2, 6)


@pytest.mark.network
def test_a_worker_in_a_call_of_two_minutes_is_alive(tmp_path: Path) -> None:
    deaf(tmp_path, 60, 120)


def test_a_workers_full_disk_is_waited_out(threads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies, memories and what is kept find no room, now and then."""
    failures = Counter[str]()

    def full(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def write(*arguments: Any, **more: Any) -> Any:
            failures[name] += 1
            if failures[name] % 3 == 2:
                raise HostError(f"{name} can't be written: No space left on device")
            return real(*arguments, **more)

        return write

    monkeypatch.setattr(trainer, "PAUSE", 0.01)
    monkeypatch.setattr(trainer, "write_json", full(trainer.write_json, "replies"))
    monkeypatch.setattr(trainer.checkpoint, "write", full(trainer.checkpoint.write, "memories"))
    monkeypatch.setattr(trainer.Trainer, "_note", full(trainer.Trainer._note, "kept"))
    text = TASK % "logistic" + ROUNDS + "strategy: scaffold\nstop: {rounds: 4}\ncheckpoint: none\ndeploy: {silence: 20 s}\n"
    file = written(tmp_path, text)
    info = deployed(file, tmp_path / "run", ["0..2", "3..5"])
    assert info["status"] == "finished" and info["final"]["work/dropped"] == 0 and min(failures.values()) > 2
    assert info["model"] == simulated(file, tmp_path / "plain")["model"]


def test_a_line_that_was_cut_short_is_taken_away(tmp_path: Path) -> None:
    """Else the next one would be joined to it, and a worker could not begin again."""
    book = trainer.Trainer.__new__(trainer.Trainer)
    book.open = {}
    book.folder, log = tmp_path, tmp_path / "kept.jsonl"
    log.write_bytes(b"[0, 3]\n[1, ")
    monkey = {"_read": lambda batch: ([0], {}), "_hold": lambda nodes, rows: None}
    for name, stub in monkey.items():
        setattr(book, name, stub)
    book._recall()
    book._note(b"[1, 4]\n")
    book._recall()
    assert book.holds == {0: 3, 1: 4} and log.read_bytes() == b"[0, 3]\n[1, 4]\n"
