"""What is said again, to workers that are new or were started again: packed, or in full where it follows on what they have not heard."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import Worker, replayed, simulated, threads, written
from test_deployed import BASE, INNER

from fedsim.deploy.remote import Remote
from fedsim.deploy.serve import Service
from fedsim.run.resume import reload, reopen
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")
DOWN = {"shared": "{name: topk, fraction: 0.1}", "ef14": f"{{name: ef14, {INNER}}}", "ef21": f"{{name: ef21, {INNER}}}"}


class Killed(BaseException):
    """Nothing is done after it."""


def end(worker: Worker) -> None:
    """As if its process had gone."""
    worker.ended.cancel()


@pytest.mark.parametrize("name", DOWN)
def test_to_a_new_worker_after_the_server_has_died(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the third of four rounds, with all six jobs out, both die; what the new worker fetches is counted to the byte."""
    text = BASE + f"schedule: {{name: rounds, cohort: 6}}\nstop: {{rounds: 4}}\nstrategy: fedavg\ndownlink: {DOWN[name]}\n"
    file, folder, look = written(tmp_path, text), tmp_path / "run", Remote._look
    [loaded] = load(file)

    def dies(field: Remote, *arguments: Any) -> Any:
        if field.serial == 18:
            raise Killed
        return look(field, *arguments)

    service = Service(loaded, folder, ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    run: Run = service.build()
    [address] = service.start()
    old = Worker(address, "0..5", tmp_path / "old")
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "_look", dies)
        patch.setattr(Run, "close", lambda run, status: {})
        with pytest.raises(Killed):
            run.execute(folder)
    assert run.writer
    run.writer.release()
    service.stop("stopped", "it was killed")
    end(old)
    service = Service(replace(reload(folder), folder=""), folder, [address], ServerIdentity.plain(), lambda text: None)
    run = service.build()
    reopen(run, folder)
    new = Worker(address, "0..5", tmp_path / "new")
    info = run.execute(folder)
    [carried] = [one for one in service.hub.carried.values() if one.objects_down]  # type: ignore[attr-defined]
    service.stop(info["status"], info["reason"])
    new.join(20)
    assert info["status"] == "finished", info["reason"]
    assert info["model"] == simulated(file, tmp_path / "plain")["model"] and replayed(folder)
    size, full = run.fed.down_bytes, 6 * 650 * 4
    assert carried.objects_down == {"shared": 2 * size, "ef14": 2 * 6 * size, "ef21": 2 * 6 * size + full}[name]
