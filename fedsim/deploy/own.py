"""Data that stay where they are: tasks of a server that has none of its nodes' data, and of whoever has some of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, permutation
from fedsim.data.arrays import Arrays
from fedsim.data.partition import Iid, Own
from fedsim.data.public import HeldOut
from fedsim.data.source import Source
from fedsim.data.sources import Npz
from fedsim.deploy.peers.introducer import without_server
from fedsim.scenario.loader import Loaded
from fedsim.settings.values import Population, blocks
from fedsim.task.build import build_task
from fedsim.task.held import held_out
from fedsim.task.task import Drawn, Task
from fedsim.task.weights import given_weights

COUNTS = "own.json"  # in the run's folder: of each node how many samples it has, and their hash


def is_own(loaded: Loaded) -> bool:
    """Has each worker its nodes' data, and nobody else?"""
    return isinstance(loaded.scenario.task.partition, Own)


@dataclass(frozen=True)
class Read(Source):
    """Arrays that were read already."""

    abstract = True
    arrays: Any = None

    def load(self, base: Path) -> Arrays:
        assert isinstance(self.arrays, Arrays)
        return self.arrays


def of_server(loaded: Loaded, counts: Mapping[int, int]) -> Task:
    """A task whose nodes have so many samples (1 where that is not known yet), which nobody here has: those of the test set stand for them,
    or, where there is none (`apart`), what else says what samples are like.

    Raises SettingError where nothing does.
    """
    partition, data = _own(loaded), loaded.scenario.task.data
    if isinstance(data, Npz) and data.test is not None:
        found = replace(data, file=data.test, test=None).load(loaded.base).ready()
        x, y, apart = found.x, found.y, False
    elif partition.shape:
        y = np.array(partition.labels) if partition.labels else np.zeros(1)
        x, apart = np.zeros((len(y), *partition.shape), dtype=np.float32), True
    else:
        try:
            found = data.load(loaded.base).ready()
        except SettingError as error:
            cure = "where the server has no data, `task.partition.shape` and `labels` say what samples are like"
            raise SettingError(error.key, f"{error.message}; {cure}") from error
        apart = found.x_test is None or found.y_test is None
        x, y = (found.x, found.y) if found.x_test is None or found.y_test is None else (found.x_test, found.y_test)
    task = _built(loaded, Arrays(x, y, x, y))
    every = np.array([counts.get(node, 1) for node in range(partition.nodes)])
    apart = apart or without_server(loaded.scenario.strategy)  # then nobody could look at the server's
    return replace(task, samples=Drawn(fold(0, "own"), len(task.inputs)), starts=_starts(every), elsewhere=True, apart=apart)


def labels(task: Task) -> list[Any]:
    """What classes are called, for those whose data lack some."""
    return list(task.given.names) if task.given and task.given.names else list(range(task.classes))


def of_nodes(loaded: Loaded, places: Sequence[tuple[Sequence[int], Path]], labels: Sequence[Any], tests: bool) -> Task:
    """A task in which the nodes named have the data that lie in a folder, dealt out by lot where several share it; all others have a
    sample that is never looked at. `labels`: what the server's classes are called. `tests`: nodes have test samples of their own, too."""
    whole, owner, judges, least = list[Arrays](), list[Any](), list[Any](), _own(loaded).least
    for nodes, folder in places:
        data = loaded.scenario.task.data
        data = replace(data, file=Path(data.file).name, test=None) if isinstance(data, Npz) else data
        found = data.load(folder)
        if tests and found.x_test is None:
            found = held_out(found, fold(loaded.scenario.seed, "own tests", min(nodes)))
        found = found.ready()
        if len(found.x) < len(nodes) * least:
            each = f" of {least} or more" if least > 1 else ""
            raise SettingError("task.data", f"{len(found.x)} samples in {folder} for {len(nodes)} nodes{each}")
        whole.append(found)
        owner.append(_dealt(len(found.x), nodes, fold(loaded.scenario.seed, "own", min(nodes))))
        if tests and found.x_test is not None:
            judges.append(_dealt(len(found.x_test), nodes, fold(loaded.scenario.seed, "own test", min(nodes))))
    x, y, home = (np.concatenate(parts) for parts in ([one.x for one in whole], [one.y for one in whole], owner))
    stand_ins = (np.repeat(x[:1], len(labels), 0), np.array(labels)) if labels else (x[:1], y[:1])  # so that no class is missing
    x_test, y_test = stand_ins
    if tests:
        x_test = np.concatenate([*(one.x_test for one in whole if one.x_test is not None), x_test])
        y_test = np.concatenate([*(one.y_test for one in whole if one.y_test is not None), y_test])
    task = _built(loaded, Arrays(x, y, x_test, y_test))
    if tests:
        task = replace(task, test_owner=torch.from_numpy(np.concatenate([*judges, np.full(len(stand_ins[0]), -1)])))
    counts = np.bincount(home, minlength=_own(loaded).nodes)
    others = np.flatnonzero(counts == 0)
    order = np.argsort(np.concatenate([home, others]), kind="stable")
    samples = np.concatenate([np.arange(len(home)), np.zeros(len(others), dtype=np.int64)])[order]
    return replace(task, samples=torch.from_numpy(samples), starts=_starts(np.maximum(counts, 1)))


def known(folder: Path) -> dict[int, tuple[int, str]]:
    """Samples and their hash of each node, as a run's folder has them."""
    file = folder / COUNTS
    return {int(node): (size, check) for node, (size, check) in json.loads(file.read_text()).items()} if file.exists() else {}


def _dealt(samples: int, nodes: Sequence[int], key: torch.Tensor) -> Any:
    """int64 [samples]: whose each is, by lot."""
    mine = np.empty(samples, dtype=np.int64)
    mine[permutation(key, samples).numpy()] = np.array(sorted(nodes))[np.arange(samples) % len(nodes)]
    return mine


def _built(loaded: Loaded, arrays: Arrays) -> Task:
    scenario = loaded.scenario
    if scenario.task.shift:
        raise SettingError("task.shift", "nodes have their `own` data, which are taken as they are")
    if isinstance(scenario.task.public, HeldOut):
        raise SettingError("task.public", "nodes have their `own` data, none of which all can have: `{name: data, data: ...}` names others")
    settings = replace(scenario.task, data=Read(arrays), partition=Iid(1))
    seed = scenario.seed if settings.seed is None else settings.seed
    dtype = torch.float64 if getattr(scenario.engine, "precision", "") == "float64" else torch.float32
    task = build_task(settings, seed, {}, loaded.base, dtype)
    nodes = _own(loaded).nodes
    people = Population(nodes, blocks(scenario.groups, nodes))
    return replace(task, keep_buffers=settings.buffers, groups=dict(people.groups), importance=given_weights(settings, people, seed))


def _own(loaded: Loaded) -> Own:
    partition = loaded.scenario.task.partition
    assert isinstance(partition, Own)
    return partition


def _starts(counts: Any) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
