"""Servers that end, or die, before all workers know that the run is over; and workers whose server never comes back."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import Worker, replayed, simulated, threads, written
from launch import call
from machines import free_port
from test_deployed import BASE, ROUNDS

from fedsim.commands import serving
from fedsim.deploy.serve import Service, silent_end
from fedsim.run.resume import reload, reopen
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")
TEXT = BASE + ROUNDS + "strategy: fedavg\n"


class Killed(BaseException):
    """Nothing is done after it."""


def dead(file: Path, root: Path, monkeypatch: pytest.MonkeyPatch, at_close: bool) -> tuple[list[Worker], Path, str]:
    """Two workers whose server has died after its last decision: before the run was closed, or when it was; its folder and address."""
    [loaded] = load(file)
    folder = root / loaded.scenario.name / f"20260101-000000-{loaded.hash}"
    service = Service(loaded, folder, ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    run = service.build()
    [address] = service.start()
    workers = [Worker(address, nodes, root / f"worker-{nodes}") for nodes in ("0..2", "3..5")]

    def dies(run: Run, status: str) -> dict[str, Any]:
        raise Killed

    with monkeypatch.context() as patch:
        if at_close:
            patch.setattr(Run, "close", dies)
            with pytest.raises(Killed):
                run.execute(folder)
            assert run.writer
            run.writer.release()
        else:
            assert run.execute(folder)["status"] == "finished"
    service.board.stop()
    service.hub.stop("it was killed", drained=False)
    assert service.field
    service.field.decisions.close()
    return workers, folder, address


def over(workers: list[Worker]) -> list[str]:
    for worker in workers:
        worker.join(20)
    return [worker.why for worker in workers]


def test_who_died_after_the_last_decision_finishes_at_once_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, TEXT)
    workers, folder, address = dead(file, tmp_path, monkeypatch, True)
    service = Service(replace(reload(folder), folder=""), folder, [address], ServerIdentity.plain(), lambda text: None)
    run = service.build()
    reopen(run, folder)
    info = run.execute(folder)
    assert not service.addresses, "nothing was left to ask of workers"
    service.stop(info["status"], "the run is over: finished: 3 rounds")
    assert over(workers) == ["the run is over: finished: 3 rounds"] * 2
    assert info["model"] == simulated(file, tmp_path / "plain")["model"] and replayed(folder)


def test_who_died_when_it_had_finished_says_so_and_then_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, TEXT)
    workers, folder, address = dead(file, tmp_path, monkeypatch, False)
    [loaded] = load(file)
    assert serving.execute(loaded, tmp_path, [address], ServerIdentity.plain(), False, "") == 0
    assert over(workers) == ["the run is over: finished: 3 rounds"] * 2
    assert f"{folder}: has finished; its workers are told so" in capsys.readouterr().out
    assert silent_end(tmp_path, loaded) is None and [*folder.parent.glob("2*")] == [folder]


def test_a_worker_of_a_run_that_is_over_never_works_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, TEXT)
    workers, folder, address = dead(file, tmp_path, monkeypatch, False)
    [loaded] = load(file)
    service = Service(loaded, folder.parent / "next", [address], ServerIdentity.plain(), lambda text: None)
    service.start()
    assert over(workers) == ["the run is over: finished: 3 rounds"] * 2
    service.stop("finished", "the test is over")


def test_a_worker_gives_up_when_no_server_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, target = time.monotonic(), f"127.0.0.1:{free_port()}"
    result = call("join", target, "--insecure", "--wait", "0.3 s")
    assert result.exit_code == 1 and f"{target}: no connection for 300 ms, the last time because tcp: nothing listens" in result.stderr
    assert "start it again" in result.stderr and "Traceback" not in result.output and time.monotonic() - began < 10
    assert "--wait: `soon` is not a time" in call("join", target, "--insecure", "--wait", "soon").stderr
