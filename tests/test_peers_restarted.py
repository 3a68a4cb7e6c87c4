"""An introducer that dies between an evaluation and its word whether the run goes on, and is started again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import Worker, replayed, simulated, threads, written
from test_peers_deployed import STOPS

from fedsim.deploy.peers.reported import Reported
from fedsim.deploy.serve import Service
from fedsim.run.resume import reload, reopen
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.transport.identity import ServerIdentity

__all__ = ["threads"]
pytestmark = pytest.mark.usefixtures("threads")


class Killed(BaseException):
    """Nothing is done after it."""


DEATHS = {  # by what the run ends, whether the word was that it does, and whether that was noted already
    "goes on": ("accuracy", False, False),
    "goes on, noted": ("accuracy", False, True),
    "ends": ("patience", True, False),
    "ends, noted": ("accuracy", True, True),
}


@pytest.mark.parametrize(
    "death", [pytest.param(one, id=name, marks=() if name in ("goes on", "ends") else pytest.mark.slow) for name, one in DEATHS.items()]
)
def test_all_end_in_the_round_of_the_simulation(death: tuple[str, bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (stop, last, noted), died = death, list[int]()
    decide, close = Reported.decide, Run.close

    def dies(field: Reported, place: int, why: str) -> str:
        if not died and place and bool(why) == last:
            died.append(place)
            if noted:
                field.note({"verdict": place, "why": why})
            raise Killed
        return decide(field, place, why)

    def closes(run: Run, status: str) -> dict[str, Any]:
        return close(run, status) if run is not first else {}

    monkeypatch.setattr(Reported, "decide", dies)
    monkeypatch.setattr(Run, "close", closes)
    file, folder = written(tmp_path, STOPS[stop]), tmp_path / "run"
    [loaded] = load(file)
    service = Service(loaded, folder, ["127.0.0.1:0"], ServerIdentity.plain(), lambda text: None)
    first = run = service.build()
    [address] = service.start()
    workers = [Worker(address, nodes, tmp_path / f"worker-{nodes}") for nodes in ("0..2", "3..5")]
    with pytest.raises(Killed):
        run.execute(folder)
    assert run.writer
    run.writer.release()
    service.stop("stopped", "it was killed")
    again = replace(reload(folder), folder="")
    service = Service(again, folder, [address], ServerIdentity.plain(), lambda text: None)
    run = service.build()
    reopen(run, folder)
    info = run.execute(folder)
    service.stop(info["status"], info["reason"])
    plain = simulated(file, tmp_path / "plain")
    assert (info["status"], info["model"], info["reason"]) == ("finished", plain["model"], plain["reason"]), (info["reason"], died)
    for worker in workers:
        worker.join(20)
    assert len([*tmp_path.glob("worker-*/run/model.safetensors")]) == 2
    assert replayed(folder)
