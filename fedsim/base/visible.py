"""Texts that others wrote, for the screen: no sign in them moves the cursor, changes colours, or turns the direction of reading."""

from typing import Any

LONGEST = 200  # bytes of a folder's name
_LINE = "\n"
_HIDDEN = [
    *range(32),
    *range(127, 160),
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]  # C0, C1, ends of lines, directions
_SHOWN = dict.fromkeys(_HIDDEN, "\ufffd")
_LINES = {sign: shown for sign, shown in _SHOWN.items() if sign != ord(_LINE)}


def visible(text: str) -> str:
    """The text with its lines, a sign for each that a screen would obey."""
    return text if text.isprintable() else text.translate(_LINES)


def one_line(content: Any) -> Any:
    """Of values read from JSON, however deep: every text on one line and visible."""
    if isinstance(content, str):  # what is printable has no hidden sign, and is told thirty times as fast
        return content if content.isprintable() else content.translate(_SHOWN)
    if isinstance(content, list):
        return [one_line(item) for item in content]
    if isinstance(content, dict):
        return {str(one_line(name)): one_line(item) for name, item in content.items()}
    return content


def is_folder_name(name: str) -> bool:
    """Can a run's folder be called so, and only a folder beside the others?"""
    plain = visible(name) == name and not set(name) & set("/\\\n")
    return plain and bool(name.strip()) and not name.startswith(".") and len(name.encode()) <= LONGEST
