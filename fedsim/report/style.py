"""What all pictures share: variants and their colours, units of axes, the size of things."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fedsim.report.folders import RunFolder

# Okabe and Ito's colours, safe for the colour-blind; yellow, too pale for a line on white, is left out.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
GREY = "#777777"
TIMES = ((86400 * 3, 86400, "d"), (3600 * 3, 3600, "h"), (180, 60, "min"), (1, 1, "s"), (0, 1e-3, "ms"))
SIZES = ((1e12, 1e12, "TB"), (1e9, 1e9, "GB"), (1e6, 1e6, "MB"), (1e3, 1e3, "kB"), (0, 1, "B"))


@dataclass(frozen=True)
class Variant:
    """The runs that differ in their seed only, and how they are drawn in every picture."""

    name: str
    runs: tuple[RunFolder, ...]
    colour: str
    dash: str


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
    return [
        Variant(name, tuple(members), COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)])
        for place, (name, members) in enumerate(groups.items())
    ]


def _without_seed(run: RunFolder) -> str:
    return re.sub(r"\s*\bseed \d+$", "", str(run.info.get("label") or run.info.get("variant") or ""))


def unit_for(greatest: float, units: Sequence[tuple[float, float, str]]) -> tuple[float, str]:
    """(divisor, unit) in which the greatest value is easy to read."""
    return next((divisor, unit) for least, divisor, unit in units if greatest >= least)


@contextmanager
def figure(file: Path, rows: int, columns: int, size: tuple[float, float], **options: Any) -> Iterator[tuple[Any, Any]]:
    """A figure without a screen and its axes [rows, columns], saved on leaving."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    look: dict[str, Any] = {"font.size": 9, "axes.titlesize": 10, "axes.grid": True, "grid.alpha": 0.25}
    look |= {"axes.spines.top": False, "axes.spines.right": False}
    with rc_context(cast(Any, look)):
        picture = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(picture)
        yield picture, picture.subplots(rows, columns, squeeze=False, **options)
        for text in picture.findobj(Text):
            if text.get_text():  # not of ticks, which are written when drawn
                text.set_parse_math(False)  # names with a `$` are no formulas
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture.savefig(file, facecolor="white")
        except OSError:
            file.unlink(missing_ok=True)
            raise


def first_of(shown: Sequence[Any], all: Sequence[Any]) -> str:
    """What to add to a label where not all variants have room."""
    return "" if len(shown) == len(all) else f"; the first {len(shown)} of {len(all)} variants"


def legend_below(picture: Any, handles: Sequence[Any], width: float, title: str = "") -> None:
    """One legend under everything, in as many columns as its longest entry allows; `width` in inches."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(width / (0.075 * longest + 0.6))))
    picture.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, title=title or None, title_fontsize=9)


def mixed(colour: str, other: str, share: float) -> tuple[float, float, float]:
    """`colour` with a share of another in it."""
    from matplotlib.colors import to_rgb

    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(other), strict=True))
    return red, green, blue
