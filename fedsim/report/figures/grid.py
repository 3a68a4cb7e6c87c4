"""grid.png: how a sweep's runs end, against the settings that it sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fedsim.report.columns import accuracy_of, final
from fedsim.report.style import COLOURS, DASHES, figure, legend_below
from fedsim.run.folders import RunFolder

PANELS = 6  # side by side
ROOM, TITLE = 12, 9  # letters side by side under an inch of a panel, more are written aslant; above it, more take a line each


@dataclass(frozen=True)
class Place:
    """Where a run stands: panel, line and horizontal value, as texts."""

    panel: str
    line: str
    value: str


def axes_of(runs: Sequence[RunFolder]) -> tuple[str, str] | None:
    """The swept settings that make the horizontal axis and the panels ("" for one panel); None where nothing has several values.

    The one with most values is the axis (of equals the last that the sweep names), the last of the others the panels; all others, and
    the variants, are lines. Of those that change together the first counts.
    """
    values, first = _values(runs), _together(runs)
    several = [key for key, found in values.items() if len(found) > 1 and first[key] == key]
    several = [key for key in several if all(key in (run.info.get("changed") or {}) for run in runs)]
    if not several:
        return None
    axis = max(reversed(several), key=lambda key: len(values[key]))
    panel = next((key for key in reversed(several) if key != axis), "")
    return axis, panel if panel and len(values[panel]) <= PANELS else ""


def _values(runs: Sequence[RunFolder]) -> dict[str, set[str]]:
    """The values of each setting that the sweep names."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in (run.info.get("changed") or {}).items():
            values.setdefault(key, set()).add(str(value))
    return values


def _together(runs: Sequence[RunFolder]) -> dict[str, str]:
    """Each setting's first one that has a new value in the same runs, as those of `zip` do; one with a single value is its own."""
    found: dict[tuple[int, ...], str] = {}
    first = {}
    for key, values in _values(runs).items():
        number: dict[Any, int] = {}
        pattern = tuple(number.setdefault((run.info.get("changed") or {}).get(key), len(number)) for run in runs)
        first[key] = found.setdefault(pattern, key) if len(values) > 1 else key
    return first


def places(runs: Sequence[RunFolder], axis: str, panel: str) -> dict[Place, list[float]]:
    """Final accuracy of runs, or loss where none has one, of all seeds by place, in order of appearance."""
    metric = accuracy_of(runs) or "test/loss"
    found: dict[Place, list[float]] = {}
    first = _together(runs)
    for run in runs:
        changed = {key: str(value) for key, value in (run.info.get("changed") or {}).items()}
        others = [f"{_short(key)} {value}" for key, value in changed.items() if first[key] == key and key not in (axis, panel)]
        line = " ".join([*([str(run.info["variant"])] if run.info.get("variant") else []), *others])
        where = f"{_short(panel)} {changed[panel]}" if panel in changed else ""
        found.setdefault(Place(where, line, changed[axis]), []).extend(final(run, metric))
    return {place: ends for place, ends in found.items() if ends}


def filled(found: dict[Place, list[float]]) -> bool:
    """Whether half of the grid's places have runs: those of an uneven `zip` stand apart, and lines through them would tell nothing."""
    panels, lines, values = (len({getattr(place, name) for place in found}) for name in ("panel", "line", "value"))
    return 2 * len(found) >= panels * lines * values


def settings(runs: Sequence[RunFolder]) -> dict[Place, list[float]]:
    """The same with one horizontal value for each combination of settings, a line for each."""
    found: dict[Place, list[float]] = {}
    values, first, metric = _values(runs), _together(runs), accuracy_of(runs) or "test/loss"
    several = [key for key, of in values.items() if len(of) > 1 and first[key] == key]
    for run in runs:
        changed = run.info.get("changed") or {}
        value = "\n".join(f"{_short(key)} {in_lines(str(changed[key]))}" for key in several if key in changed)
        found.setdefault(Place("", str(run.info.get("variant") or ""), value), []).extend(final(run, metric))
    return {place: ends for place, ends in found.items() if ends}


def _alike(found: dict[Place, list[float]]) -> bool:
    """Whether the panels' values overlap: one scale for all then, for far ones would hide what differs within each."""
    ends: dict[str, list[float]] = {}
    for place, values in found.items():
        ends.setdefault(place.panel, []).extend(values)
    return max(map(min, ends.values())) <= min(map(max, ends.values()))


def _short(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def in_lines(value: str) -> str:
    """A swept part, `{name: dirichlet, alpha: 0.2}`, as one line for its name and one for each setting; anything else as it is."""
    return value[1:-1].removeprefix("name: ").replace(", ", "\n") if value.startswith("{name: ") and "{" not in value[1:] else value


def draw_grid(file: Path, runs: Sequence[RunFolder], note: str = "") -> bool:
    """Writes the picture, with a note below; False where no setting was swept, or nothing has ended."""
    axes = axes_of(runs)
    found = places(runs, *axes) if axes else {}
    if not axes or not found:
        return False
    joined, label = filled(found), _short(axes[0])
    if not joined:
        found, label = settings(runs), ""
    panels, lines, values = (list(dict.fromkeys(getattr(place, name) for place in found)) for name in ("panel", "line", "value"))
    accuracy = accuracy_of(runs) is not None
    handles: dict[str, Any] = {}
    letters = len(values) * max(len(line) for value in values for line in in_lines(value).split("\n"))
    width = max(4.5, min(12.0, 3.2 * len(panels) if joined else letters / ROOM))
    wide = width / len(panels)
    slant: dict[str, Any] = {"rotation": 25, "ha": "right"} if letters > ROOM * wide else {}
    with figure(file, 1, len(panels), (width, 3.6), sharey=_alike(found)) as (picture, drawn):
        for panel, title in zip(drawn[0], panels, strict=True):
            for at, line in enumerate(lines):
                ends = {value: found[place] for value in values if (place := Place(title, line, value)) in found}
                if ends:
                    handles.setdefault(line, _line(panel, values, ends, at, line or label, 100.0 if accuracy else 1.0, joined))
            panel.set_title(title if len(title) <= TITLE * wide else title.replace(" ", "\n"))
            panel.set_xticks(range(len(values)), [in_lines(value) for value in values], **slant)
            panel.set_xlabel(label)
            panel.margins(x=0.12)
        drawn[0, 0].set_ylabel("final accuracy (%)" if accuracy else "final test loss")
        seeds = max(map(len, found.values()))
        several = [f"mean of {seeds} seeds, bar: one deviation to each side"] if seeds > 1 else []
        legend_below(
            picture,
            [handle for name, handle in handles.items() if name or label],
            picture.get_figwidth(),
            "\n".join([*several, *([note] if note else [])]),
        )
    return True


def _line(panel: Any, values: Sequence[str], ends: dict[str, list[float]], at: int, name: str, factor: float, joined: bool) -> Any:
    """One line through its means, or points alone; lines stand a little beside each other, so that bars can be told apart."""
    x = [values.index(value) + 0.03 * (at % 7 - 3) for value in ends]
    y = [factor * fmean(each) for each in ends.values()]
    bars = [factor * stdev(each) if len(each) > 1 else nan for each in ends.values()]  # one seed has no deviation
    look = {"color": COLOURS[at % len(COLOURS)], "linestyle": DASHES[at // len(COLOURS) % len(DASHES)] if joined else "none"}
    return panel.errorbar(x, y, yerr=bars, marker="o", markersize=3, linewidth=1.2, capsize=2, label=name, **look)
