"""Hostile bytes while training goes on: they end their own stream, and the run ends with the model of its replay."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest
from deployed import Worker, loop, replayed, threads, written
from hostile import Stranger, dripping
from outposts import until

from fedsim.deploy.serve import Service
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")

SCENARIO = """
task: {data: digits, partition: {name: dirichlet, nodes: 6, alpha: 0.5}, model: logistic}
schedule: {name: buffered, size: 2, concurrency: 6}
strategy: fedbuff
train: {epochs: 1, batch: 32, lr: 0.1}
deploy: {silence: 20 s, start_with: 5}
stop: {rounds: 1000000}
"""


def besieged(folder: Path, frames: int, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """A run with two workers, and a third that is none."""
    [loaded] = load(written(folder, SCENARIO))
    said = list[str]()
    service = Service(loaded, folder / "run", ["127.0.0.1:0"], ServerIdentity.plain(), said.append)
    [address] = service.start()
    workers = [Worker(address, nodes, folder / f"worker-{nodes}") for nodes in ("0..2", "3..4")]
    run = service.build()
    stranger = Stranger(int(address.rpartition(":")[2]), "5", seed)
    drips = dripping(stranger.port, 20)

    def attack() -> None:
        until(lambda: {*service.hub.desk.hosts} == {0, 1, 2, 3, 4}, 60)
        stranger.facts = next(iter(service.hub.desk.sessions.values())).facts
        until(lambda: len([*(folder / "run" / "replies").glob("*")]) > 3, 60)
        stranger.samples = [file.read_bytes() for file in (folder / "run" / "replies").iterdir()]
        try:
            asyncio.run_coroutine_threadsafe(stranger.attack(frames), loop()).result()
        finally:
            run.guard.asked = True

    threading.Thread(target=attack, daemon=True).start()
    with caplog.at_level(logging.WARNING):
        run.execute(folder / "run")
    service.stop("finished", "the siege is over")
    for worker in workers:
        worker.join(20)
    for one in drips:
        one.close()
    assert stranger.sent >= frames
    assert not [record for record in caplog.records if record.exc_info or "Traceback" in record.getMessage()]
    assert [worker.why for worker in workers] == ["the siege is over"] * 2
    replayed(folder / "run")


def test_hostile_frames_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    besieged(tmp_path, 400, 0, caplog)


@pytest.mark.network
@pytest.mark.parametrize("seed", range(1, 6))
def test_ten_thousand_hostile_frames_change_nothing(seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    besieged(tmp_path, 2000, seed, caplog)
