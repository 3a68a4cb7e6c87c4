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
from fedsim.scenario.loader import Loaded
from fedsim.settings.values import Population, blocks
from fedsim.task.build import build_task
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
    """A task whose nodes have so many samples (1 where that is not known yet), which nobody here has: those of the test set stand for them.

    Raises SettingError where there is no test set.
    """
    settings = loaded.scenario.task
    data = settings.data
    if isinstance(data, Npz) and data.test is not None:
        found = replace(data, file=data.test, test=None).load(loaded.base).ready()
        found = Arrays(found.x, found.y, found.x, found.y)
    else:
        found = data.load(loaded.base).ready()
    if found.x_test is None or found.y_test is None:
        raise SettingError("task.data", "nodes have their `own` data, so the server needs a test set: a second file `test`")
    task = _built(loaded, Arrays(found.x_test, found.y_test, found.x_test, found.y_test), {})
    every = np.array([counts.get(node, 1) for node in range(_nodes(loaded))])
    return replace(task, samples=Drawn(fold(0, "own"), len(task.inputs)), starts=_starts(every), elsewhere=True)


def labels(task: Task) -> list[Any]:
    """What classes are called, for those whose data lack some."""
    return list(task.given.names) if task.given and task.given.names else list(range(task.classes))


def of_nodes(loaded: Loaded, places: Sequence[tuple[Sequence[int], Path]], labels: Sequence[Any]) -> Task:
    """A task in which the nodes named have the data that lie in a folder, dealt out by lot where several share it; all others have a
    sample that is never looked at. `labels`: what the server's classes are called."""
    whole, owner, least = list[Arrays](), list[Any](), loaded.scenario.task.partition.least
    for nodes, folder in places:
        data = loaded.scenario.task.data
        data = replace(data, file=Path(data.file).name, test=None) if isinstance(data, Npz) else data
        found = data.load(folder).ready()
        if len(found.x) < len(nodes) * least:
            each = f" of {least} or more" if least > 1 else ""
            raise SettingError("task.data", f"{len(found.x)} samples in {folder} for {len(nodes)} nodes{each}")
        order = permutation(fold(loaded.scenario.seed, "own", min(nodes)), len(found.x)).numpy()
        mine = np.empty(len(order), dtype=np.int64)
        mine[order] = np.array(sorted(nodes))[np.arange(len(order)) % len(nodes)]
        whole.append(found)
        owner.append(mine)
    x, y, home = (np.concatenate(parts) for parts in ([one.x for one in whole], [one.y for one in whole], owner))
    test = (np.repeat(x[:1], len(labels), 0), np.array(labels)) if labels else (x[:1], y[:1])
    task = _built(loaded, Arrays(x, y, *test), {})
    counts = np.bincount(home, minlength=_nodes(loaded))
    others = np.flatnonzero(counts == 0)
    order = np.argsort(np.concatenate([home, others]), kind="stable")
    samples = np.concatenate([np.arange(len(home)), np.zeros(len(others), dtype=np.int64)])[order]
    return replace(task, samples=torch.from_numpy(samples), starts=_starts(np.maximum(counts, 1)))


def known(folder: Path) -> dict[int, tuple[int, str]]:
    """Samples and their hash of each node, as a run's folder has them."""
    file = folder / COUNTS
    return {int(node): (size, check) for node, (size, check) in json.loads(file.read_text()).items()} if file.exists() else {}


def _built(loaded: Loaded, arrays: Arrays, groups: Mapping[str, Any]) -> Task:
    scenario = loaded.scenario
    if scenario.task.shift:
        raise SettingError("task.shift", "nodes have their `own` data, which are taken as they are")
    if isinstance(scenario.task.public, HeldOut):
        raise SettingError("task.public", "nodes have their `own` data, none of which all can have: `{name: data, data: ...}` names others")
    settings = replace(scenario.task, data=Read(arrays), partition=Iid(1))
    seed = scenario.seed if settings.seed is None else settings.seed
    dtype = torch.float64 if getattr(scenario.engine, "precision", "") == "float64" else torch.float32
    task = build_task(settings, seed, {}, loaded.base, dtype)
    people = Population(_nodes(loaded), blocks(scenario.groups, _nodes(loaded)))
    return replace(task, keep_buffers=settings.buffers, groups=dict(people.groups), importance=given_weights(settings, people, seed))


def _nodes(loaded: Loaded) -> int:
    partition = loaded.scenario.task.partition
    assert isinstance(partition, Own)
    return partition.nodes


def _starts(counts: Any) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
