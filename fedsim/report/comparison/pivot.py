"""A comparison as a grid: variants down, the values of one setting across."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedsim.base.errors import FedsimError
from fedsim.report.comparison.cells import Block, blocks, costs_of, goal, title_of
from fedsim.report.comparison.records import records
from fedsim.report.comparison.rows import Comparison, Row, key_of
from fedsim.report.settings import short


@dataclass(frozen=True)
class Grid:
    """`lines` by their name: the row at each value of the key."""

    key: str
    values: tuple[str, ...]
    lines: Mapping[str, Mapping[str, Row]]


def grid_of(found: Comparison, text: str) -> Grid:
    """Rows that differ in nothing but the key stand in one line. Raises FedsimError for a key that is unknown, or the same in all."""
    key = key_of(found.rows, text)
    if key not in found.differ:
        same = next(row.settings[key] for row in found.rows if key in row.settings)
        raise FedsimError(f"`{text}` is the same in all of them: {same}; what differs: {', '.join(found.differ) or 'nothing'}")
    values = tuple(dict.fromkeys(row.settings[key] for row in found.rows if key in row.settings))
    lines: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, Row]] = {}
    for row in found.rows:
        rest = tuple((name, setting) for name, setting in row.settings.items() if name != key)
        lines.setdefault((_label(row, key), rest), {})[row.settings.get(key, "-")] = row
    uses = Counter(label for label, _ in lines)
    return Grid(key, values, {label if uses[label] == 1 else next(iter(line.values())).name: line for (label, _), line in lines.items()})


def _label(row: Row, key: str) -> str:
    """What a row is called without the key."""
    changed = dict(row.runs[0].info.get("changed") or {})
    others = [f"{short(name)} {text}" for name, text in changed.items() if name != key]
    return " ".join([*([row.variant] if row.variant else []), *others]) or "all" if key in changed else row.name


def grids(found: Comparison, grid: Grid) -> list[Block]:
    """A block each for the end and, where there is a target, for the time to it, or the rounds where nothing takes time."""
    every = blocks(found)
    asked = {title_of(found.metric): every[0]} | ({"worst 10 %": every[0]} if "worst 10 %" in every[0].titles else {})
    if target := next((block for block in every if block.title == goal(found)), None):
        cost = "time" if "seconds" in costs_of(found) else "rounds"
        asked |= {cost: target}
    shown = []
    for title, block in asked.items():
        cell = dict(block.columns)[title]
        columns = tuple((value, partial(_at, grid, cell, value)) for value in grid.values)
        shown.append(Block(f"{title} {block.title}, by {short(grid.key)}", columns, tuple(Row(line, {}) for line in grid.lines)))
    return shown


def _at(grid: Grid, cell: Callable[[Row], str], value: str, head: Row) -> str:
    row = grid.lines[head.name].get(value)
    return cell(row) if row else ""


def grid_records(found: Comparison, grid: Grid) -> list[dict[str, Any]]:
    """The records of all cells, with `line` and the key's value."""
    place = {row.name: (line, value) for line, cells in grid.lines.items() for value, row in cells.items()}
    return [
        {"line": place[one["variant"]][0], grid.key: place[one["variant"]][1]} | one for one in records(found) if one["variant"] in place
    ]
