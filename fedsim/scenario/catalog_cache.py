"""What there is to choose from, known without importing it: read from a file in the user's cache as long as no line of code changed.

PyTorch alone takes seconds to import. Where the cache can't be written, the overview is made each time.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedsim.scenario.infos import Overview, PartInfo, SettingInfo

CODE = ("fedsim", "strategies")


def overview() -> Overview:
    """Of the code as it is."""
    digest, file = _digest(), _file()
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or not ours
        kept = json.loads(file.read_text())
        if kept["digest"] == digest:
            return _read(kept)
    from fedsim.scenario.catalog import everything  # and all that is behind it

    made = everything()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}.part")
        draft.write_text(json.dumps({"digest": digest} | asdict(made)))
        draft.replace(file)
    return made


def remembered() -> Overview | None:
    """At once, of the code as it was when `overview` was last asked for, also if it has changed since; None where that is unknown."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        return _read(json.loads(_file().read_text()))
    return None


def _read(kept: dict[str, Any]) -> Overview:
    slots = {slot: tuple(_part(**part) for part in parts) for slot, parts in kept["slots"].items()}
    return Overview(slots, tuple(SettingInfo(**key) for key in kept["keys"]))


def _part(settings: list[dict[str, Any]], **rest: str) -> PartInfo:
    return PartInfo(**rest, settings=tuple(SettingInfo(**one) for one in settings))


def _file() -> Path:
    """One for each place that the code lies in."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    place = hashlib.sha256(str(Path(__file__).parent).encode()).hexdigest()[:12]
    return Path(base) / "fedsim" / f"overview-{place}.json"


def _digest() -> str:
    """sha256, hex, of all code that parts are made of, and Python's version."""
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(_code()):
        digest.update(f"{file} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _code() -> Iterator[Path]:
    for name in CODE:
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield from Path(place).rglob("*.py")
