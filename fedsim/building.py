"""From scenarios to runs that can start: their tasks, and what is wrong with them."""

from dataclasses import replace
from typing import Any

import torch

from fedsim.errors import RunError, SettingError
from fedsim.runner import Run
from fedsim.scenario import Loaded
from fedsim.scenario.fault import told
from fedsim.task import Task


class Tasks:
    """Builds the tasks of runs, keeping the last one: runs of a sweep mostly share it."""

    def __init__(self) -> None:
        self.key: Any = None
        self.task: Task | None = None

    def get(self, loaded: Loaded) -> Task:
        """Raises SettingError where the task can't be built."""
        from fedsim.data.build import build_task

        settings, scenario = loaded.scenario.task, loaded.scenario
        seed = scenario.seed if settings.seed is None else settings.seed
        dtype = torch.float64 if getattr(scenario.engine, "precision", "") == "float64" else torch.float32
        key = (repr(settings), seed, repr(dict(scenario.groups)), loaded.base, dtype)
        if self.task is None or key != self.key:
            task = build_task(settings, seed, scenario.groups, loaded.base, dtype)
            self.task, self.key = replace(task, keep_buffers=settings.buffers), key
        return self.task


def build(loaded: Loaded, tasks: Tasks) -> Run:
    """A run ready to start. Raises SettingError where it can't be built, or a user's own code raises."""
    try:
        return Run(loaded, tasks.get(loaded))
    except SettingError:
        raise
    except Exception as error:
        if not (loaded.own or isinstance(error, RunError)):
            raise
        raise told(error, loaded.scenario) from error


def check(runs: list[Loaded], tasks: Tasks) -> dict[str, SettingError]:
    """Builds one run of each variant to see that it can be built; the mistakes by the run's label."""
    seen: set[tuple[str, str]] = set()
    found: dict[str, SettingError] = {}
    for loaded in runs:
        what = (loaded.variant, repr(sorted(loaded.changed.items())))
        if what in seen:
            continue
        seen.add(what)
        try:
            build(loaded, tasks)
        except SettingError as error:
            found[loaded.label] = error
    return found
