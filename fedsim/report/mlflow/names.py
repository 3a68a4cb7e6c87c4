"""Names that MLflow takes: letters and digits of any script, `_ - . : /` and blanks, at most 250, no part empty or of dots alone."""

import re
from collections.abc import Iterable

LONGEST = 250  # characters


def taken(names: Iterable[str]) -> dict[str, str]:
    """For each name the one it has in MLflow: every other sign becomes `_`, as does an empty part between slashes.

    Of two that would become the same, the later one gets `_2`, so the order in which names appear counts, and more of them at the end
    leave those before as they are.
    """
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in dict.fromkeys(names):
        plain = new = _plain(name)
        number = 2
        while new in used:
            new, number = f"{plain[: LONGEST - len(f'_{number}')]}_{number}", number + 1
        used.add(new)
        found[name] = new
    return found


def _plain(name: str) -> str:
    parts = re.sub(r"[^\w.\- :/]", "_", name[:LONGEST]).split("/")
    return "/".join(part if part.strip(".") else "_" * max(1, len(part)) for part in parts)[:LONGEST]


def told(names: dict[str, str]) -> str:
    """`clients/accuracy@10% is clients/accuracy_10_ there, and so on (3)`; empty where all are as they were."""
    changed = [(old, new) for old, new in names.items() if old != new]
    if not changed:
        return ""
    old, new = changed[0]
    more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
    return f"`{old}` is called `{new}` there{more}"
