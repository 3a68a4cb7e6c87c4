"""Deployed runs computed again: as a simulation to which the record of decisions tells what came back when."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedsim.base.errors import FedsimError
from fedsim.deploy import own
from fedsim.deploy.decisions import RECORD
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.run.building import Tasks, assemble, build
from fedsim.run.folders import RunFolder
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded
from fedsim.task.task import Task


def recorded(run: RunFolder, loaded: Loaded, tasks: Tasks, data: Sequence[tuple[Sequence[int], Path]] = ()) -> Run:
    """The folder's run, ready to be computed again; `data` are the folders in which nodes' own data lie.

    Raises FedsimError where its record is damaged or it can't be built.
    """
    if not (run.path / RECORD).exists():
        return build(loaded, tasks)
    again = assemble(loaded, _task(run, loaded, tasks, data), Reality, Recorded)
    assert isinstance(again.fed.flight, Recorded)
    again.fed.flight.decisions.open(run.path / RECORD, write=False)
    return again


def _task(run: RunFolder, loaded: Loaded, tasks: Tasks, data: Sequence[tuple[Sequence[int], Path]]) -> Task:
    if not own.is_own(loaded):
        return tasks.get(loaded)
    there, lacking = own.known(run.path), {*own.known(run.path)} - {node for nodes, _ in data for node in nodes}
    if lacking:
        raise FedsimError(f"node {min(lacking)} had data of its own; a replay needs them: --data {min(lacking)}=FOLDER")
    server = own.of_server(loaded, {node: size for node, (size, _) in there.items()})
    task = own.of_nodes(loaded, data, own.labels(server), server.apart)
    if server.apart:
        return replace(task, elsewhere=True, apart=True)
    return replace(task, test_inputs=server.test_inputs, test_targets=server.test_targets, elsewhere=True)
