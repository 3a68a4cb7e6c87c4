"""Lines of metrics.jsonl: a JSON object whose last entry, `check`, is a checksum of the rest and of the line's place in the file."""

import json
import re
import zlib
from collections.abc import Iterable
from math import nan
from typing import Any

MARK, END = ', "check": "', '"}'


def sealed(record: dict[str, Any], place: int) -> str:
    """The record's line, without its end; the first place is 0."""
    text = json.dumps(record)
    return f"{text[:-1]}{MARK}{_check(text, place)}{END}"


def opened(line: str, place: int, strict: bool = False) -> dict[str, Any]:
    """The record of a line. Raises ValueError for one that is damaged, or stands elsewhere; with `strict`, also for one without a checksum.

    See `checked`.
    """
    text, sealed = unsealed(line, place)
    if not sealed and strict:
        raise ValueError("it has no checksum")
    return checked(json.loads(text))


def unsealed(line: str, place: int) -> tuple[str, bool]:
    """The JSON of a line, and whether it had a checksum. Raises ValueError where that is wrong."""
    text, mark, rest = line.rstrip("\n").rpartition(MARK)
    text = text + "}" if mark else line
    if mark and rest != _check(text, place) + END:
        raise ValueError("its checksum is wrong: it was changed, or lines before it are missing")
    return text, bool(mark)


def numbers(lines: list[str], name: str) -> list[float] | None:
    """One metric of all records, NaN where one lacks it, without making records: a tenth of the time of `opened_all`.

    None where a line has no checksum, or a wrong one: only what `sealed` wrote is known to be written so.
    """
    value, found = re.compile(re.escape(json.dumps(name)) + r": ([^,}]+)"), list[float]()
    for place, line in enumerate(lines):
        if not line.endswith("\n"):
            break
        try:
            text, whole = unsealed(line, place)
        except ValueError:
            return None
        if not whole:
            return None
        there = value.search(text)
        found.append(nan if there is None or there[1] == "null" else float(there[1]))
    return found


def checked(record: Any) -> dict[str, Any]:
    """What an evaluation measured. Raises ValueError where its entries are not a round, and numbers of a float or an int64, or null."""
    if not isinstance(record, dict) or not _whole(record.get("round")):
        raise ValueError("an object with a `round` is due")
    bad = [name for name, value in record.items() if not (value is None or _number(value))]
    if bad:
        raise ValueError(f"`{bad[0]}` is no number")
    return record


def opened_all(lines: Iterable[str], strict: bool = False) -> tuple[list[dict[str, Any]], str]:
    """The records up to the first broken line, and what is wrong there, if anything. A last line without an end is left out."""
    found: list[dict[str, Any]] = []
    for place, line in enumerate(lines):
        if not line.endswith("\n"):
            break
        try:
            found.append(opened(line, place, strict))
        except (ValueError, RecursionError) as error:
            why = error if type(error) is ValueError else "it is no JSON"
            return found, f"line {place + 1} is broken: {why}"
    return found, ""


def _check(text: str, place: int) -> str:
    return f"{zlib.crc32(f'{place} {text}'.encode()):08x}"


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)
