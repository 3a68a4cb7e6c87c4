"""Deployed runs computed again: as a simulation to which the record of decisions tells what came back when."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedsim.base.errors import FedsimError
from fedsim.deploy import own
from fedsim.deploy.decisions import RECORD
from fedsim.deploy.kept import Kept
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.run.building import Tasks, assemble, build
from fedsim.run.folders import RunFolder
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded
from fedsim.task.task import Task


def recorded(run: RunFolder, loaded: Loaded, tasks: Tasks, data: Sequence[tuple[Sequence[int], Path]] = (), replies: bool = False) -> Run:
    """The folder's run, ready to be computed again; `data` are the folders in which nodes' own data lie. With `replies`, those that were
    kept are read, and only what follows from them is computed.

    Raises FedsimError where its record is damaged or it can't be built.
    """
    if replies and not (run.path / "replies").is_dir():
        raise FedsimError("no replies were kept; `fedsim serve --keep-replies` keeps them")
    if not (run.path / RECORD).exists():
        return build(loaded, tasks)
    task = _of_server(run, loaded, tasks) if replies else _task(run, loaded, tasks, data)
    again = assemble(loaded, task, Reality, Kept if replies else Recorded)
    assert isinstance(again.fed.flight, Recorded)
    again.fed.flight.decisions.open(run.path / RECORD, write=False)
    if isinstance(again.fed.flight, Kept):
        again.fed.flight.open(run.path / "replies")
    return again


def _of_server(run: RunFolder, loaded: Loaded, tasks: Tasks) -> Task:
    if not own.is_own(loaded):
        return tasks.get(loaded)
    return own.of_server(loaded, {node: size for node, (size, _) in own.known(run.path).items()})


def _task(run: RunFolder, loaded: Loaded, tasks: Tasks, data: Sequence[tuple[Sequence[int], Path]]) -> Task:
    if not own.is_own(loaded):
        return tasks.get(loaded)
    lacking = {*own.known(run.path)} - {node for nodes, _ in data for node in nodes}
    if lacking:
        cure = f"--data {min(lacking)}=FOLDER" + (", or --replies" if (run.path / "replies").is_dir() else "")
        raise FedsimError(f"node {min(lacking)} had data of its own; a replay needs them: {cure}")
    server = _of_server(run, loaded, tasks)
    task = own.of_nodes(loaded, data, own.labels(server), server.apart)
    if server.apart:
        return replace(task, elsewhere=True, apart=True)
    return replace(task, test_inputs=server.test_inputs, test_targets=server.test_targets, elsewhere=True)
