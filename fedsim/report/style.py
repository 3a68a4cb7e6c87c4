"""What all pictures share: variants and their colours, units of axes, the size of things."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import numpy as np

from fedsim.base.errors import FedsimError
from fedsim.report.settings import Reader, differing, only
from fedsim.run.folders import RunFolder

# Okabe and Ito's colours, safe for the colour-blind; yellow, too pale for a line on white, is left out.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
GREY = "#777777"
# Fonts for what DejaVu lacks, where they are installed.
ELSEWHERE = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Noto Sans Devanagari")
TIMES = ((86400 * 3, 86400, "d"), (3600 * 3, 3600, "h"), (180, 60, "min"), (1, 1, "s"), (0, 1e-3, "ms"))
SIZES = ((1e12, 1e12, "TB"), (1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e3, 1e3, "kB"), (0, 1, "B"))

JOULES = ((1e9, 1e9, "GJ"), (1e6, 1e6, "MJ"), (1e3, 1e3, "kJ"), (1, 1, "J"), (0, 1e-3, "mJ"))


@dataclass(frozen=True)
class Variant:
    """The runs that differ in their seed only, and how they are drawn in every picture."""

    name: str
    runs: tuple[RunFolder, ...]
    colour: str
    dash: str

    @property
    def finished(self) -> tuple[RunFolder, ...]:
        """Those whose numbers are results."""
        return tuple(run for run in self.runs if run.info.get("status") == "finished")


def variants_of(runs: Sequence[RunFolder]) -> list[Variant]:
    """Runs by variant, in order of appearance. Runs that share label and seed are repetitions, told apart by their folders."""
    several = len({run.info.get("name") for run in runs}) > 1
    keys = [(str(run.info.get("name")), _without_seed(run), str(run.info.get("seed"))) for run in runs]
    repeated = Counter(keys)
    groups: dict[str, list[RunFolder]] = {}
    for run, key in zip(runs, keys, strict=True):
        name = f"{key[0]} {key[1]}".strip() if several else key[1] or key[0]
        stamp = run.path.parent if (run.path.parent / "sweep.json").exists() else run.path
        groups.setdefault(f"{name} {stamp.name}" if repeated[key] > 1 else name, []).append(run)
    return _looking(groups)


def _looking(groups: Mapping[str, Sequence[RunFolder]]) -> list[Variant]:
    looks = [(COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]) for place in range(len(groups))]
    return [Variant(name, tuple(members), *look) for (name, members), look in zip(groups.items(), looks, strict=True)]


def _apart(variants: Sequence[Variant]) -> list[Variant]:
    """Runs of one name whose settings differ in more than the seed, as of different tasks, are no seeds of one line."""
    read, groups = Reader(), dict[str, list[RunFolder]]()
    for variant in variants:
        same: dict[tuple[tuple[str, str], ...], list[RunFolder]] = {}
        for run in variant.runs:
            same.setdefault(tuple(read(run, variant.name).items()), []).append(run)
        keys = differing([dict(settings) for settings in same])
        for settings, members in same.items():
            groups[f"{variant.name}, {only(dict(settings), keys)}" if len(same) > 1 else variant.name] = members
    return _looking(groups)


def drawn(runs: Sequence[RunFolder]) -> tuple[list[Variant], str]:
    """What pictures show of runs: the finished ones by variant, with the colours of all; and which are left out, "" for none.

    Where none has finished, each run alone, its status beside its name.
    """
    variants = _apart(variants_of(runs))
    statuses = {run.path: str(run.info.get("status", "running")) for run in runs}
    if not any(variant.finished for variant in variants):
        alone = [(f"{variant.name if len(variant.runs) == 1 else run.label}", run) for variant in variants for run in variant.runs]
        looks = [(COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]) for place in range(len(alone))]
        return [Variant(f"{name} ({statuses[run.path]})", (run,), *look) for (name, run), look in zip(alone, looks, strict=True)], ""
    missing = Counter(
        f"{variant.name} ({statuses[run.path]})" for variant in variants for run in variant.runs if run not in variant.finished
    )
    words = [f"{number}x {name}" if number > 1 else name for name, number in missing.items()]
    return [replace(variant, runs=variant.finished) for variant in variants if variant.finished], ", ".join(words)


def whole_of(runs: Sequence[RunFolder]) -> tuple[list[RunFolder], list[str]]:
    """The runs whose ends and metrics can be read, and what is wrong with the others. Raises FedsimError where there are only others."""
    whole, left = list[RunFolder](), list[FedsimError]()
    for run in runs:
        try:
            run.check_end()
            run.column("round")
            whole.append(run)
        except FedsimError as error:
            left.append(error)
    if left and not whole:
        raise left[0]
    return whole, [str(error) for error in left]


def _without_seed(run: RunFolder) -> str:
    return re.sub(r"\s*\bseed \d+$", "", str(run.info.get("label") or run.info.get("variant") or ""))


def unit_for(greatest: float, units: Sequence[tuple[float, float, str]]) -> tuple[float, str]:
    """(divisor, unit) in which the greatest value is easy to read."""
    return next((divisor, unit) for least, divisor, unit in units if greatest >= least)


@contextmanager
def figure(
    file: Path, rows: int, columns: int, size: tuple[float, float], points: int = 9, dots: int = 150, **options: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure without a screen and its axes [rows, columns], saved on leaving; `size` in inches, letters in points, dots an inch."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names
    from matplotlib.text import Text

    look: dict[str, Any] = {"font.size": points, "axes.titlesize": points + 1, "pdf.fonttype": 42, "axes.grid": True, "grid.alpha": 0.25}
    look |= {"axes.spines.top": False, "axes.spines.right": False}
    look["font.family"] = ["DejaVu Sans", *(name for name in ELSEWHERE if name in get_font_names())]
    with rc_context(cast(Any, look)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of scripts that no font here has
        picture: Any = Figure(figsize=size, dpi=dots, layout="constrained")
        FigureCanvasAgg(picture)
        yield picture, picture.subplots(rows, columns, squeeze=False, **options)
        for text in picture.findobj(Text):
            if text.get_text():  # not of ticks, which are written when drawn
                text.set_parse_math(False)  # names with a `$` are no formulas
        picture.get_layout_engine().execute(picture)
        picture.set_layout_engine("none")  # once is enough: saving would lay out, and draw, twice
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture.savefig(file, facecolor="white")
        except OSError:
            file.unlink(missing_ok=True)
            raise


def few(names: Sequence[str]) -> str:
    """`ring and 2 more`"""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return shorten(names[0], 40, placeholder="...") + more


def most_unlike(features: Sequence[Sequence[float]], most: int) -> list[int]:
    """Places of at most so many rows that show how rows differ, rising: the one farthest from the middle, then always the one farthest
    from those chosen. Each feature counts by its range; of equals the first is taken."""
    if len(features) <= most:
        return list(range(len(features)))
    rows = np.array(features, dtype=np.float64)
    rows = (rows - rows.min(0)) / np.maximum(np.ptp(rows, 0), 1e-12)
    chosen = [int(np.square(rows - rows.mean(0)).sum(1).argmax())]
    while len(chosen) < most:
        apart = np.square(rows[:, None] - rows[chosen]).sum(-1).min(1)
        apart[chosen] = -1.0
        chosen.append(int(apart.argmax()))
    return sorted(chosen)


def some_of(shown: int, all: int, what: str = "variants") -> str:
    """What to add to a label where there is no room for all."""
    return "" if shown == all else f"; {shown} of {all} {what}, the most unlike"


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many of these names stand beside each other in so many inches."""
    return max(1, min(len(names), int(width / (0.075 * max(map(len, names)) + 0.6))))


def legend_below(picture: Any, handles: Sequence[Any], width: float, title: str = "") -> None:
    """One legend under everything, in as many columns as its longest entry allows; `width` in inches."""
    if not handles:
        return
    columns = legend_columns([str(handle.get_label()) for handle in handles], width)
    picture.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=title or None, title_fontsize=9)


def mixed(colour: str, other: str, share: float) -> tuple[float, float, float]:
    """`colour` with a share of another in it."""
    from matplotlib.colors import to_rgb

    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(other), strict=True))
    return red, green, blue
