"""`fedsim tune`: measures the engine's plans on a scenario's own rounds, and writes the fastest into the scenario."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml

from fedsim.base.clock import FOREVER
from fedsim.base.devices import cores, listed
from fedsim.base.errors import FedsimError, SettingError, placed
from fedsim.engines.local import LocalEngine
from fedsim.gradients.choose import convolutional
from fedsim.run.building import Tasks, assemble
from fedsim.run.runner import Run
from fedsim.scenario import load
from fedsim.scenario.loader import Loaded
from fedsim.scenario.settings import Stop

TUNED = ("plan", "chunk", "processes")
CHUNKS = (10, 25, 50, 100, 200)


@dataclass(frozen=True)
class Trial:
    """One way to compute: the engine's settings, and client-steps a second; 0 and why where it can't be."""

    engine: LocalEngine
    rate: float
    why: str = ""

    @property
    def words(self) -> str:
        """`stacked, chunk 50, 2 processes`"""
        plan, chunk, processes = self.engine.plan, self.engine.chunk, self.engine.processes
        parts = [plan, *([f"chunk {chunk}"] if chunk != "auto" else []), f"{processes} process{'es' if processes != 1 else ''}"]
        return ", ".join(map(str, parts))


def candidates(engine: LocalEngine, at_work: int, convolutions: bool = False) -> Iterator[LocalEngine]:
    """Plans, chunks and numbers of processes worth a trial; device, threads, memory and precision are as the scenario has them.

    Models with `convolutions` have two plans more.
    """
    with placed("engine.device"):
        cuda = any(device.type != "cpu" for device in listed(engine.device))
    several = (1,) if cuda or cores() == 1 else (1, cores())
    chunks = [chunk for chunk in CHUNKS if chunk < at_work] + ([at_work] if at_work <= CHUNKS[-1] else [])
    for count in several:
        yield replace(engine, plan="looped", chunk="auto", processes=count)
    for chunk in chunks:
        for count in several if chunk < at_work else (1,):
            yield replace(engine, plan="stacked", chunk=chunk, processes=count)
    for plan in ("grouped", "unfolded") if convolutions else ():
        yield replace(engine, plan=plan, chunk=min(at_work, 25), processes=1)
    if cuda or any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield replace(engine, plan="compiled", chunk=min(at_work, 100), processes=1)
    if cuda:
        yield replace(engine, plan="cuda_graphs", chunk=min(at_work, 100), processes=1)


def tune(loaded: Loaded, tasks: Tasks, seconds: float, said: Callable[[Trial], None]) -> list[Trial]:
    """All trials, the fastest first, each of about so many seconds; `said` hears of each. Raises SettingError for another engine."""
    engine = loaded.scenario.engine
    if not isinstance(engine, LocalEngine):
        raise SettingError("engine", f"`{engine.name}` has no plans to choose from; `local` has")
    task = tasks.get(loaded)
    found = []
    at_work = loaded.scenario.strategy.schedule.concurrency_limit(task.nodes)
    for candidate in candidates(engine, at_work, convolutional(task)):
        found.append(_measured(replace(loaded, scenario=replace(loaded.scenario, engine=candidate)), task, candidate, seconds))
        said(found[-1])
    return sorted(found, key=lambda trial: -trial.rate)


def _measured(loaded: Loaded, task: Any, engine: LocalEngine, seconds: float) -> Trial:
    try:
        run = assemble(loaded, task)
    except FedsimError as error:
        return Trial(engine, 0.0, str(error))
    worker, run.stop, run.end = run.fed.worker, Stop(rounds=1), FOREVER
    try:
        _warm_up(run)
        began, before = perf_counter(), worker.steps_done
        while True:  # one round at least
            advance(run, 1)
            if (spent := perf_counter() - began) >= seconds:
                return Trial(engine, (worker.steps_done - before) / spent)
    except FedsimError as error:
        return Trial(engine, 0.0, str(error))
    finally:
        worker.close()


def _warm_up(run: Run, most: int = 30) -> None:
    """Rounds until nothing new is traced or compiled in three of them."""
    traced: dict[Any, Any] = getattr(run.fed.worker.plan, "traced", {})
    quiet, before = 0, -1
    for _ in range(most):
        advance(run, 1)
        quiet, before = (quiet + 1 if len(traced) == before else 0), len(traced)
        if quiet == 3:
            break


def advance(run: Run, rounds: int) -> None:
    """So many rounds more."""
    run.stop, run.reason = replace(run.stop, rounds=run.fed.round + rounds), ""
    run.fed.run()


def written(file: Path, engine: LocalEngine) -> str:
    """Puts the tuned settings into the scenario's `engine`, and leaves all else as it is; the line written.

    Raises FedsimError where the file can't be written, or would mean another scenario then.
    """
    text, hashes = file.read_text(), [run.hash for run in load(file)]
    line, new = _edited(text, {name: str(getattr(engine, name)) for name in TUNED if getattr(engine, name) != "auto"})
    try:
        file.write_text(new)
        if [run.hash for run in load(file)] != hashes:
            raise FedsimError(f"{file}: `{line}` would change the question; it was left as it was")
    except OSError as error:
        raise FedsimError(f"{file} can't be written: {error.strerror}") from error
    except FedsimError:
        file.write_text(text)
        raise
    return line


def _edited(text: str, settings: dict[str, str]) -> tuple[str, str]:
    """The line, and the text with it in the place of `engine`, or at its end."""
    root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in root.value:
        if key.value == "engine":
            old = value.value if isinstance(value, yaml.MappingNode) else []
            kept = {one.value: text[inner.start_mark.index : inner.end_mark.index].strip() for one, inner in old}
            line = _line(kept | settings)
            rest = text[value.end_mark.index :]
            return line, text[: key.start_mark.index] + line + ("" if not rest or rest[0] in "\n #" else "\n") + rest
    line = _line(settings)
    return line, text + ("" if text.endswith("\n") else "\n") + line + "\n"


def _line(settings: dict[str, str]) -> str:
    return f"engine: {{{', '.join(f'{name}: {value}' for name, value in settings.items())}}}"
