"""Which of a user's own parts raised an error, and so at which key of the scenario it is told."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from fedsim.base.errors import RunError, SettingError, blame
from fedsim.models.own import OwnModel
from fedsim.scenario.parts import WITHIN, part_name
from fedsim.scenario.settings import Scenario
from fedsim.settings.part import Part


def told(error: BaseException, scenario: Scenario) -> SettingError:
    """The error of somebody's code as one of the setting that names the code."""
    cause = error.__cause__ if isinstance(error, RunError) and error.__cause__ is not None else error
    key, part = _at_fault(cause, scenario)
    return SettingError(key, str(error) if isinstance(cause, RunError) else f"{part_name(part)} raised {blame(cause)}")


def _at_fault(error: BaseException, scenario: Scenario) -> tuple[str, Part]:
    """The innermost own part that was at work, by the `self` of its methods; the strategy where none was."""
    owners, frames, trace = [*_own(scenario, "")], [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        actor = frame.f_locals.get("self")
        for key, part in owners:
            if type(actor) is type(part) or (isinstance(part, OwnModel) and actor.__class__.__module__ == part.make.__module__):
                return key, part
    return "strategy", scenario.strategy


def _own(value: Any, path: str) -> Iterator[tuple[str, Part]]:
    """Dotted keys of the parts that are no part of fedsim itself; those within the strategy stand at the top."""
    if isinstance(value, Part) and ":" in part_name(value):
        yield path, value
    if isinstance(value, tuple):
        for place, item in enumerate(value):
            yield from _own(item, f"{path}.{place}")
    elif isinstance(value, Mapping) or not is_dataclass(value):
        return
    else:
        for one in fields(value):
            top = path == "strategy" and one.name in WITHIN
            yield from _own(getattr(value, one.name), one.name.rstrip("_") if top or not path else f"{path}.{one.name.rstrip('_')}")
