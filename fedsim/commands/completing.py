"""What the Tab key offers: files, keys and their values, runs, parts. `fedsim --install-completion` tells the shell.

An answer is due at once, so nothing heavy is imported: keys and parts are those that `fedsim list` last wrote down.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedsim.scenario.infos import Overview, SettingInfo

STAMP = re.compile(r"\d{8}-\d{6}-[0-9a-f]+")
WORD = re.compile(r"[a-z_]+")
PLAIN = re.compile(r"[\w.%+-]+")  # what a shell takes as it is


def words(ctx: typer.Context, incomplete: str) -> list[str]:
    """Scenario files, keys of a scenario, and after `KEY=` its values."""
    values, first = _settled(ctx, incomplete), not incomplete and not ctx.params.get("words")
    return files(incomplete) + ([] if first else _keys(incomplete)) if values is None else values


def going(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs, and keys of a scenario with their values."""
    values = _settled(ctx, incomplete)
    return runs(ctx, incomplete) + (_keys(incomplete) if incomplete else []) if values is None else values


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of runs under `--runs`, and after `NAME/` the runs of that sweep."""
    root = Path(str(ctx.params.get("runs") or "runs"))
    name, inside, _ = incomplete.partition("/")
    if inside and (root / name).is_dir():
        stamped = sorted(one for one in (root / name).iterdir() if STAMP.fullmatch(one.name))
        return [f"{name}/{run.name}" for run in sorted(stamped[-1].glob("*/")) if (run / "run.json").exists()] if stamped else []
    try:
        return [folder.name for folder in sorted(root.iterdir()) if any(STAMP.fullmatch(one.name) for one in folder.glob("*/"))]
    except OSError:
        return []


def listed(incomplete: str) -> list[str]:
    """What `fedsim list` takes: slots, parts, `keys`, `scenarios`."""
    known = _known()
    return (
        sorted({"keys", "scenarios", *known.slots, *(part.name for parts in known.slots.values() for part in parts)})
        if known
        else ["keys", "scenarios"]
    )


def files(incomplete: str) -> list[str]:
    """Scenario files, and folders on the way to them."""
    folder, _, begun = incomplete.rpartition("/")
    base = Path(folder or ("/" if incomplete.startswith("/") else "."))
    before = incomplete[: len(incomplete) - len(begun)]
    try:
        found = [one for one in sorted(base.iterdir()) if one.name.startswith(begun or ("",)) and not one.name.startswith(".")]
    except OSError:
        return []
    return [f"{before}{one.name}{'/' if one.is_dir() else ''}" for one in found if one.is_dir() or one.suffix in (".yaml", ".yml")]


def _settled(ctx: typer.Context, incomplete: str) -> list[str] | None:
    """Values, where the word is `KEY=` or `KEY=VALUE`; bash takes it apart at the sign, and completes what comes after. Else None."""
    before = [*map(str, ctx.params.get("words") or ())]
    if os.environ.get("COMP_WORDS", "").endswith("\n=") and before:
        return _values(before[-1])
    if before[1:] and before[-1] == "=":
        return _values(before[-2])
    key, sign, _ = incomplete.partition("=")
    return [f"{key}={value}" for value in _values(key)] if sign else None


def _known() -> "Overview | None":
    from fedsim.scenario.catalog_cache import remembered

    known = remembered()
    if known is None:  # it is there for the next time
        import subprocess

        quiet = subprocess.DEVNULL
        subprocess.Popen([sys.executable, "-P", "-m", "fedsim", "list"], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    return known


def _keys(incomplete: str) -> list[str]:
    known = _known()
    found: dict[str, set[str]] = {}
    for name, one in _settings(known, incomplete) if known else ():
        if name.startswith(incomplete):
            found.setdefault(name, set()).add(one.default or "")
    if len(found) != 1:
        return [f"{name}=" for name in found]
    [(name, defaults)] = found.items()
    [default] = defaults if len(defaults) == 1 else ["null"]  # parts may have the same key
    return [f"{name}=", f"{name}={default if PLAIN.fullmatch(default) else 'null'}"]  # beside another, bash adds no space after `=`


def _settings(known: "Overview", begun: str) -> Iterator[tuple[str, "SettingInfo"]]:
    """Keys by dotted name; within parts as far as what is typed goes."""
    waiting = [(key.name, key) for key in reversed(known.keys)]
    while waiting:
        name, one = waiting.pop()
        yield name, one
        if begun.startswith(f"{name}."):
            waiting += [
                (f"{name}.{inner.name}", inner) for slot in _slots(known, one) for part in known.slots[slot] for inner in part.settings
            ]


def _slots(known: "Overview", one: "SettingInfo") -> list[str]:
    """The slots that a setting takes parts of: `rate per node` takes a spread."""
    words = [] if " | " in one.type else re.findall(r"\w+", one.type.replace("per node", "spread"))
    return [word for word in words if word in known.slots]


def _values(key: str) -> list[str]:
    known = _known()
    found: dict[str, None] = {}  # in order, each once
    for name, one in _settings(known, key) if known else ():
        if known and name == key:
            found |= dict.fromkeys(part.name for slot in _slots(known, one) for part in known.slots[slot])
            found |= dict.fromkeys(word for word in one.type.split(" | ") if " | " in one.type and WORD.fullmatch(word))
            found |= dict.fromkeys(["true", "false"] if one.type == "true or false" else [])
            found |= dict.fromkeys([one.default] if one.default and PLAIN.fullmatch(one.default) else [])
    return [*found]
