"""A comparison written: text for a terminal, Markdown, LaTeX (booktabs), CSV and JSON."""

import csv
import io
import json
import re
import textwrap
from collections.abc import Callable, Sequence

from fedsim.base.errors import FedsimError
from fedsim.report.comparison import pivot, words
from fedsim.report.comparison.cells import SPREAD, Block, blocks
from fedsim.report.comparison.records import records, whole
from fedsim.report.comparison.rows import Comparison
from fedsim.scenario.leaves import nearest

NAME = 30  # letters of a row's name in text; longer ones are cut in their middle
GAP = 2
LEAST = 20  # room for numbers beside names that are long alike


def written(found: Comparison, format: str = "text", by: str | None = None, width: int = 80) -> str:
    """The comparison in one of FORMATS; `by` is a key whose values stand across. Raises FedsimError for an unknown format or key."""
    known_format(format)
    grid = pivot.grid_of(found, by) if by else None
    if format == "csv":
        return _csv(pivot.grid_records(found, grid) if grid else records(found))
    if format == "json":
        content = whole(found) | ({"by": grid.key} if grid else {})
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    shown = pivot.grids(found, grid) if grid else blocks(found)
    below = [*words.cheapest(found), *words.notes(found, grid is None)]
    return FORMATS[format](found, shown, below, [] if grid else words.sentences(found), width)


def known_format(format: str) -> None:
    """Raises FedsimError, with the nearest one, for another."""
    if format not in NAMES:
        raise FedsimError(f"unknown format `{format}`{nearest(format, NAMES)}")


def _text(found: Comparison, shown: Sequence[Block], below: Sequence[str], ready: Sequence[str], width: int) -> str:
    lines = [*_wrapped(words.heading(found), width, ""), *(line for one in words.differences(found) for line in _wrapped(one, width, "  "))]
    for block in shown:
        lines += ["", *_table(block, width)]
    more = [f"(and {len(ready) - words.SENTENCES} more such sentences with --format markdown)"] * (len(ready) > words.SENTENCES)
    for told in (below, [*ready[: words.SENTENCES], *more]):
        lines += ["", *(line for one in told for line in _wrapped(one, width, "  "))] if told else []
    return "\n".join(lines)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Lines by the room that signs take on a screen."""
    from rich.cells import cell_len

    spare = max(0, cell_len(text) - len(text))  # wide signs are counted twice: lines may end early, never late
    room = max(20, width - min(spare, width // 2)) if spare else width
    return textwrap.wrap(text, room, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False)


def _table(block: Block, width: int) -> list[str]:
    """Columns that have no room go below, with the names again. Numbers are never cut."""
    from rich.cells import cell_len

    names = _cut_apart([row.name for row in block.rows], min(NAME, width // 2), width - LEAST)
    cells = block.cells()
    widths = [max(map(cell_len, column)) for column in zip(block.titles, *cells, strict=True)]
    title = _cut(block.title, max(NAME, max(map(cell_len, names), default=0)))
    room = max(map(cell_len, [title, *names]))
    lines, start = list[str](), 0
    while start < len(widths):
        stop = start + 1
        while stop < len(widths) and GAP + room + sum(widths[start : stop + 1]) + GAP * (stop + 1 - start) <= width:
            stop += 1
        for name, row in zip([title, *names], [block.titles, *cells], strict=True):
            texts = [_right(cell, one) for cell, one in zip(row[start:stop], widths[start:stop], strict=True)]
            lines.append(f"  {'  '.join([_left(name, room), *texts])}".rstrip())
        start = stop
    return lines


def _cut_apart(names: Sequence[str], room: int, most: int) -> list[str]:
    """Names of at most so much room, or of as little more as tells them apart, up to the most."""
    for enough in range(room, max(room, most) + 1):
        cut = [_cut(name, enough) for name in names]
        if len({*cut}) == len({*names}):
            return cut
    return [_cut(name, room) for name in names]


def _left(text: str, room: int) -> str:
    from rich.cells import cell_len

    return text + " " * (room - cell_len(text))


def _right(text: str, room: int) -> str:
    from rich.cells import cell_len

    return " " * (room - cell_len(text)) + text


def _cut(text: str, room: int) -> str:
    """Both ends: names of a sweep often differ in the last one."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= room:
        return text
    tail = text
    while cell_len(tail) > (room - 2) // 2:
        tail = tail[1:]
    return f"{set_cell_size(text, room - 2 - cell_len(tail)).rstrip()}..{tail}"


def _markdown(found: Comparison, shown: Sequence[Block], below: Sequence[str], ready: Sequence[str], width: int) -> str:
    def safe(text: str) -> str:
        for sign in "\\|*_<`":
            text = text.replace(sign, f"\\{sign}")
        return text.replace(SPREAD, " ± ")

    lines = [safe(words.heading(found)), "", *(f"- {safe(one)}" for one in words.differences(found))]
    for block in shown:
        rows = [[row.name, *cells] for row, cells in zip(block.rows, block.cells(), strict=True)]
        table = [[block.title, *block.titles], *rows]
        texts = [f"| {' | '.join(map(safe, row))} |" for row in table]
        lines += ["", texts[0], "|".join(["", " --- ", *[" ---: "] * len(block.columns), ""]), *texts[1:]]
    return "\n".join([*lines, "", *(f"- {safe(one)}" for one in [*below, *ready])])


ESCAPED = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPED |= {"<": "$<$", ">": "$>$", "|": r"\textbar{}", "[": "{[}"}  # a row's end takes a bracket after it for its own
NUMBER = re.compile(r"[\d.]+")
MINUS = re.compile(r"(?<![\w.-])-(?=[\d.])")


def _latex(found: Comparison, shown: Sequence[Block], below: Sequence[str], ready: Sequence[str], width: int) -> str:
    """A tabular a block, what is to know of it as comments, and sentences ready for the text."""

    def safe(text: str) -> str:
        text = "".join(ESCAPED.get(sign, sign) for sign in text)
        return MINUS.sub("$-$", text).replace(SPREAD, r" $\pm$ ")

    lines = ["% needs \\usepackage{booktabs}", *(f"% {one}" for one in [words.heading(found), *words.differences(found)])]
    for block in shown:
        columns = [_aligned([safe(cell) for cell in column]) for column in zip(*block.cells(), strict=True)]
        rows = [" & ".join([safe(row.name), *cells]) for row, *cells in zip(block.rows, *columns, strict=True)]
        head = " & ".join(map(safe, [block.title, *block.titles]))
        body = [r"\toprule", rf"{head} \\", r"\midrule", *(rf"{row} \\" for row in rows), r"\bottomrule"]
        lines += ["", rf"\begin{{tabular}}{{l{'r' * len(block.columns)}}}", *body, r"\end{tabular}"]
    return "\n".join([*lines, "", *(f"% {one}" for one in below), *map(safe, ready)])


def _aligned(cells: Sequence[str]) -> list[str]:
    """A column with room where plain numbers have no deviation, or a shorter one, so that what belongs together stands below each other."""
    parts = [cell.partition(r" $\pm$ ") for cell in cells]
    plain = [after for *_, after in parts if NUMBER.fullmatch(after)]
    widest = max(plain, key=len, default="")
    aligned = []
    for before, sign, after in parts:
        if after in plain and len(after) < len(widest):
            sign += rf"\phantom{{{'0' * (len(widest) - len(after))}}}"
        elif plain and not sign and NUMBER.fullmatch(before):
            after = rf"\phantom{{ $\pm$ {widest}}}"
        aligned.append(f"{before}{sign}{after}")
    return aligned


def _csv(rows: Sequence[dict[str, object]]) -> str:
    file = io.StringIO()
    table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)
    return file.getvalue().rstrip("\n")


Writer = Callable[[Comparison, Sequence[Block], Sequence[str], Sequence[str], int], str]
FORMATS: dict[str, Writer] = {"text": _text, "markdown": _markdown, "latex": _latex}
NAMES = (*FORMATS, "csv", "json")
