"""`fedsim list`: what a scenario can name, as text."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fedsim.scenario.catalog_cache import overview
from fedsim.scenario.infos import PartInfo, SettingInfo

NARROW = 10  # a column is not made narrower than this


def listing(what: str, width: int | None = None) -> str:
    """All slots for "", all keys for `keys`, scenario files here and under scenarios/ for `scenarios`, the parts of a slot, or one part
    with its settings. Raises ValueError for an unknown name.

    Lines are at most `width` long, by default the terminal's width, or 80.
    """
    width = width or shutil.get_terminal_size((80, 24)).columns
    if what == "scenarios":
        return (
            _table([(file.as_posix(), about(file)) for file in _scenarios()], width)
            or "no scenario lies here; try: fedsim new scenario NAME"
        )
    known = overview()
    if not what:
        rows = [(slot, ", ".join(part.name for part in parts)) for slot, parts in known.slots.items()]
        return _table(rows, width) + "\nmore: fedsim list SLOT|NAME|keys|scenarios"
    if what == "keys":
        return _table([(key.name, _default(key), key.help) for key in known.keys], width)
    parts = known.describe(what)
    if what in known.slots:
        return _table([_line(part) for part in parts], width)
    return "\n\n".join(_whole(part, width) for part in parts)


def _scenarios() -> list[Path]:
    files = [*Path().glob("*.yaml"), *Path("scenarios").rglob("*.yaml")]
    return sorted(file for file in files if re.search(r"^(task|extends)\s*:", _text(file), re.MULTILINE))


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def about(file: Path) -> str:
    """The first sentence of the comment at the head of a file."""
    head = re.match(r"(#[^\n]*\n)*", _text(file))
    words = " ".join(line.strip("# ") for line in (head[0] if head else "").splitlines())
    return re.split(r"(?<!al)\. ", words)[0].removesuffix(".")


def _line(part: PartInfo) -> tuple[str, ...]:
    settings = " ".join(f"{one.name}={one.default.replace(' ', '')}" if one.default is not None else one.name for one in part.settings)
    return (part.name, *([part.kind] if part.kind else []), settings, part.source or part.help)


def _whole(part: PartInfo, width: int) -> str:
    head = f"{part.name} ({part.slot})" + (f"  {part.source}" if part.source else "")
    about = textwrap.fill(part.help, width, initial_indent="  ", subsequent_indent="  ")
    rows = [(one.name, one.type + (f", {one.limits}" if one.limits else ""), _default(one), one.help) for one in part.settings]
    return "\n".join([head, about, textwrap.indent(_table(rows, width - 2), "  ") if rows else "  no settings"])


def _default(one: SettingInfo) -> str:
    return "needed" if one.default is None else one.default


def _table(rows: Sequence[tuple[str, ...]], width: int) -> str:
    """Columns two spaces apart; where a line would be too long, the widest columns give way and their cells take several lines."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)] or [0]
    while sum(widths) + 2 * len(widths) - 2 > width and max(widths) > NARROW:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, room) if room else [] for cell, room in zip(row, widths, strict=True)]
        pieces = zip_longest(*cells, fillvalue="")
        lines += ["  ".join(piece.ljust(room) for piece, room in zip(line, widths, strict=True)).rstrip() for line in pieces]
    return "\n".join(lines)
