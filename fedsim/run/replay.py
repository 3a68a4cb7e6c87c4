"""Recomputing a run from its folder, and comparing: model, events and metrics."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import __version__
from fedsim.base.clock import FOREVER
from fedsim.base.errors import FedsimError
from fedsim.base.rows import model_hash
from fedsim.base.text import counted, size
from fedsim.federation.buffers import statistics_of
from fedsim.federation.ledger import KINDS
from fedsim.federation.messages import BrokenLog
from fedsim.federation.rebuild import rebuild
from fedsim.federation.replicas import Replicas
from fedsim.run.building import Tasks, build
from fedsim.run.facts import differences, identity, log_facts
from fedsim.run.folders import Columns, RunFolder
from fedsim.run.resume import keep_grid, reload
from fedsim.run.runfolder import versions
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded

WALL = ("time/wall_seconds",)
ENGINE = ("device", "plan", "threads", "chunk", "precision")  # how it was computed is part of what is replayed


Builder = Callable[[RunFolder, Loaded, Tasks], Run]  # a folder's run, ready to be computed again


def simulated(run: RunFolder, loaded: Loaded, tasks: Tasks) -> Run:
    """That of a run that was a simulation."""
    return build(loaded, tasks)


def replay(
    run: RunFolder, tasks: Tasks, report: Callable[[Run], None] | None = None, builder: Builder = simulated
) -> tuple[list[str], bool]:
    """What is said of a run computed again in a folder of its own that is then thrown away, and whether everything is the same.

    A run that did not come to its end, or to one by the host's clock, is compared as far as it came. Raises FedsimError where it
    can't be computed.
    """
    run.check_end()
    again = builder(run, _loaded(run), tasks)
    again.report = report
    keep_grid(again, run.info)
    if run.info.get("status") != "finished" or again.stop.wall:
        again.until, again.stop = int(run.columns["version"].max()), replace(again.stop, wall=Fraction(FOREVER))
    found = differences(identity(run.info), identity(again.facts | {"version": __version__, "versions": versions()}))
    with tempfile.TemporaryDirectory(prefix="fedsim-replay-") as place:
        info = again.execute(Path(place) / "run")
        if info["status"] == "stopped":
            raise KeyboardInterrupt
        new = RunFolder(Path(place) / "run")
        lines = _compared(run, new)
    same = not lines
    if same:
        model = str(info["model"])[:8] if _whole(run) else "none recorded"
        lines = [f"same: model {model}, {len(run.columns['time']):,} events, {len(run.metrics):,} evaluations"]
    found += [f"its own code was changed after round {at.get('round')}" for at in run.info.get("resumed", []) if "code" in at]
    return lines + [f"  {word}" for word in found], same


def rebuilt(run: RunFolder, tasks: Tasks) -> list[str]:
    """What is said of a run's model, rebuilt from the first one and the log of messages, as who joins does; nothing is trained.

    Raises FedsimError where the run keeps no such log, or it is not whole, of another run, or leads to another model.
    """
    file, again = run.path / "messages.log", build(_loaded(run), tasks)
    if not again.fed.companion(Replicas):
        raise FedsimError(f"`{again.fed.strategy.name}` has no replicas, so there is no log of messages to rebuild them from")
    try:
        raw = file.read_bytes()
        count = rebuild(again.fed, raw, log_facts(again.facts))
    except OSError as error:
        raise FedsimError(f"{file.name} can't be read: {error.strerror}") from error
    except BrokenLog as error:
        raise FedsimError(f"{file.name}: {error}") from error
    model = model_hash(again.fed.strategy.model(again.fed.state), statistics_of(again.fed))
    if _whole(run) and model != run.info["model"]:
        raise FedsimError(f"{file.name}: it ends after round {count}, with another model than the run did")
    return [f"rebuilt: model {model[:8]} from {counted(count, 'round')} of messages, {size(len(raw))}"]


def _loaded(run: RunFolder) -> Loaded:
    """As it was computed; `auto` is what it was then."""
    known = run.parameters
    chosen = [f"engine.{name}={run.info[name]}" for name in ENGINE if f"engine.{name}" in known and run.info.get(name) is not None]
    return reload(run.path, [*chosen, "track=none", "checkpoint=none"])


def _whole(run: RunFolder) -> bool:
    """Whether its model is one of the top of a round."""
    return run.info.get("status") == "finished" or run.info.get("reason") == "by hand"


def _compared(old: RunFolder, new: RunFolder) -> list[str]:
    """What differs, the first of each; nothing where all is the same."""
    lines = []
    if _whole(old) and old.info["model"] != new.info.get("model"):
        lines.append(f"different: model {old.info['model'][:8]} was computed, {str(new.info.get('model'))[:8]} is now")
    whole = old.info.get("status") == "finished" and not old.info.get("reason", "").endswith("of wall time")
    at = first_difference(old.columns, new.columns, whole)
    if at is not None:
        lines += [f"different: event {at + 1:,}", f"  was {_event(old, at)}", f"  is  {_event(new, at)}"]
    for place, (was, now) in enumerate(zip(old.metrics, new.metrics, strict=False)):
        if not whole and was["version"] == new.metrics[-1]["version"]:
            break  # where the other one was measured within a round
        if names := [name for name in was if name not in WALL and was[name] != now.get(name)]:
            lines.append(
                f"different: evaluation {place + 1} (round {was['round']}): {names[0]} was {was[names[0]]}, is {now.get(names[0])}"
            )
            break
    return lines


def first_difference(old: Columns, new: Columns, whole: bool) -> int | None:
    """The first row in which events differ; with `whole`, also in their number, otherwise up to the last merge of the new ones."""
    count = min(len(old["time"]), len(new["time"]))
    if not whole:
        count = min(count, int(np.flatnonzero(new["kind"] == KINDS.index("merge")).max(initial=-1)) + 1)
    differ = np.zeros(count, dtype=bool)
    for name in old:
        differ |= old[name][:count] != new[name][:count]
    if differ.any():
        return int(differ.argmax())
    return count if whole and len(new["time"]) != len(old["time"]) else None


def _event(run: RunFolder, at: int) -> str:
    columns = run.columns
    if at >= len(columns["time"]):
        return "none"
    row: dict[str, Any] = {name: int(column[at]) for name, column in columns.items()}
    kind, time = KINDS[row.pop("kind")], row.pop("time") / run.ticks_per_second
    return f"{kind} at {time:g} s: " + ", ".join(f"{name} {value}" for name, value in row.items())


def replay_all(
    runs: list[RunFolder],
    report: Callable[[Run], None] | None,
    say: Callable[[str], None],
    log: bool = False,
    builder: Builder = simulated,
) -> bool:
    """Replays runs one after the other, or their logs of messages, and says what came out; whether all are the same.

    Raises FedsimError as `replay` and `rebuilt` do.
    """
    tasks, good = Tasks(), True
    for run in runs:
        try:
            lines, same = (rebuilt(run, tasks), True) if log else replay(run, tasks, report, builder)
        except FedsimError as error:
            raise FedsimError(str(error) if str(error).startswith(str(run.path)) else f"{run.path}: {error}") from error
        good &= same
        for line in (f"{run.path}", *(f"  {line}" for line in lines)):
            say(line)
    return good
