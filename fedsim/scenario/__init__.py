"""From a scenario file to checked settings: `load` for runs, `schema`, `describe` and `keys` for what may be written."""

from typing import Any

from fedsim.base.errors import Problem, ScenarioError

_LAZY = {
    "load": "loader",
    "Loaded": "loader",
    "schema": "json_schema",
    "describe": "catalog",
    "keys": "catalog",
    "slots": "catalog",
}


LONGEST = 2000  # characters of a message


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'fedsim.scenario' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedsim.scenario.{_LAZY[name]}"), name)


def render(error: ScenarioError, most: int = 20, width: int = 78) -> str:
    """The first problems with their source lines and carets, and how many there are."""
    shown = [line for problem in error.problems[:most] for line in _lines(problem, width)]
    count = len(error.problems)
    more = f", the first {most} shown" if count > most else ""
    hint = "All keys: fedsim list keys; completion in editors: fedsim schema"
    return "\n".join([*shown, f"{count} error{'s' if count > 1 else ''}{more}. {hint}"])


def _lines(problem: Problem, width: int) -> list[str]:
    where = f"{problem.file}:{problem.line}:{problem.column}" if problem.line else problem.file
    message = problem.message if len(problem.message) <= LONGEST else f"{problem.message[:LONGEST]}..."
    lines = [f"{where}: {message}" if where else message]
    if problem.text.strip():
        number = f"  {problem.line or ''} |"
        room = width - len(number) - 1
        start = max(0, min(problem.column - 1 - room // 3, len(problem.text) - room))
        carets = min(problem.width, room - (problem.column - 1 - start))
        lines.append(f"{number} {problem.text[start : start + room]}")
        lines.append(f"{' ' * (len(number) - 1)}| {' ' * (problem.column - 1 - start)}{'^' * max(1, carets)}")
    return lines


__all__ = ["Loaded", "describe", "keys", "load", "render", "schema", "slots"]
