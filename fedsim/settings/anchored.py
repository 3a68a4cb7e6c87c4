"""Files that settings name: where they are looked for, and settings that mean the same wherever their scenario lies."""

import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast


def roots(base: Path) -> tuple[list[Path], str]:
    """The folders in which a file is looked for, `base` (the scenario's) and then FEDSIM_DATA; and the second in words, for messages."""
    if not (shelf := os.environ.get("FEDSIM_DATA", "")):
        return [base], "; FEDSIM_DATA is not set"
    return [base, Path(shelf).expanduser()], f" and under FEDSIM_DATA ({shelf})"


def anchored_file(name: str, base: Path) -> str:
    """The absolute path of a file beside the scenario; any other name as it is."""
    found = base / Path(name).expanduser()
    return os.path.abspath(found) if found.is_file() else name


def anchored(value: Any, base: Path) -> Any:
    """Settings with the files that they name anchored, however deep."""
    if hasattr(value, "anchored"):
        return value.anchored(base)
    if isinstance(value, Mapping):
        return {name: anchored(item, base) for name, item in value.items()}
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(anchored(item, base) for item in value) if any(is_dataclass(item) for item in value) else value
    if is_dataclass(value) and not isinstance(value, type):
        before = {one.name: getattr(value, one.name) for one in fields(value) if one.init}
        after = {name: anchored(item, base) for name, item in before.items()}
        return replace(cast(Any, value), **after) if any(after[name] is not before[name] for name in before) else value
    return value
