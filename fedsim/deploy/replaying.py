"""Deployed runs computed again: as a simulation to which the record of decisions tells what came back when."""

from fedsim.deploy.decisions import RECORD
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.run.building import Tasks, assemble, build
from fedsim.run.folders import RunFolder
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded


def recorded(run: RunFolder, loaded: Loaded, tasks: Tasks) -> Run:
    """The folder's run, ready to be computed again. Raises FedsimError where its record is damaged or it can't be built."""
    if not (run.path / RECORD).exists():
        return build(loaded, tasks)
    again = assemble(loaded, tasks.get(loaded), Reality, Recorded)
    assert isinstance(again.fed.flight, Recorded)
    again.fed.flight.decisions.open(run.path / RECORD, write=False)
    return again
