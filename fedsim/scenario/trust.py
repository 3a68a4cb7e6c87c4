"""Whose code a scenario may name: that of its own folder, of packages made for fedsim, and what the user trusts by name.

A scenario is data. `module:Name` in it runs that module, so it may name modules beside it (and in `parts/` beside the scenario.yaml of
a run), and packages that declare an entry point of the group `fedsim.parts`. Anything else on the import path needs `--trust MODULE`.
"""

import importlib.metadata
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from fedsim.scenario.copies import let_copies_import, originals, takes_new_code

GROUP = "fedsim.parts"
INTERNAL = ("fedsim", "strategies")
ROOT = 0  # a process of root is asked nothing about owners: it is mostly alone in a container

_trusted: tuple[str, ...] = ()
_folder = Path()
_opened: set[str] = set()


def trust(modules: Iterable[str]) -> None:
    """From now on scenarios may name these modules and those within them, and only these from elsewhere.

    Raises ValueError for what can't be a module's name.
    """
    global _trusted
    _trusted = tuple(modules)
    for one in _trusted:
        _spelt(one)


@contextmanager
def trusting(*modules: str) -> Iterator[None]:
    """Meanwhile scenarios may name these modules too."""
    before = _trusted
    trust((*before, *modules))
    try:
        yield
    finally:
        trust(before)


def trusted(module: str) -> bool:
    """Did the user name it, or one that it is in?"""
    return any(f"{module}.".startswith(f"{one}.") for one in _trusted)


def trust_options() -> list[str]:
    """What is trusted, as words of the command line."""
    return [word for one in _trusted for word in ("--trust", one)]


def roots(folder: Path) -> tuple[Path, ...]:
    """Beside a scenario, and the copies beside the scenario.yaml of a run, or where these were copied from."""
    if not takes_new_code(folder):
        return folder, folder / "parts"
    return folder, *dict.fromkeys(file.parents[name.count("/")] for name, file in originals(folder).items())


def reading_in(folder: Path) -> None:
    """The scenarios that are read from now on lie in this folder."""
    global _folder
    _folder = folder


def permit(module: str) -> bool:
    """Whether a module that a scenario names lies beside it. Raises ValueError where it may not be named. Of the module nothing is run.

    From then on the folder is at the end of the import path, so that a user's `random.py` shadows nothing.
    """
    _spelt(module)
    top = module.partition(".")[0]
    named = trusted(module)
    if top == "__main__" and named:  # what the running script or notebook has handed over
        return False
    if top == "__main__":
        raise ValueError(f"{refusal(module)}; what stood in a notebook or script of another process is found again only in a module")
    if mine := _beside(module, _folder):
        if not (named or _ours(mine)):
            raise ValueError(f"{mine} belongs to another user of this machine; `--trust {top}` if you trust its code")
        _open(_folder)
        if wrong := _mistaken(module, _folder):
            raise ValueError(wrong)
    elif not (named or top in INTERNAL or top in _declared(tuple(sys.path), frozenset(_opened)) or _spec(top) is None):
        raise refusal(module)
    return mine is not None


def refusal(module: str) -> ValueError:
    """What is said of a module that is there, but not for scenarios."""
    top = module.partition(".")[0]
    return ValueError(
        f"`{module}` does not lie beside the scenario and is not made for fedsim, so its code is not run; `--trust {top}` if you trust it"
    )


def _spelt(module: str) -> None:
    if not all(word.isidentifier() for word in module.split(".")):
        raise ValueError(f"`{module}` is no name of a module")


def _ours(file: Path) -> bool:
    """Does it belong to this user, or to the machine?"""
    return os.geteuid() == ROOT or file.stat().st_uid in (ROOT, os.geteuid())


def _open(folder: Path) -> None:
    let_copies_import(folder)
    new = [str(root) for root in roots(folder) if root.is_dir()]
    sys.path += [root for root in new if root not in sys.path]
    _opened.update(new)


@cache
def _declared(places: tuple[str, ...], opened: frozenset[str]) -> frozenset[str]:
    """Packages that declare themselves; not those in a scenario's folder, which could declare any module."""
    found = importlib.metadata.distributions(path=[place for place in places if place not in opened])
    return frozenset(one.module.partition(".")[0] for package in found for one in package.entry_points if one.group == GROUP)


def _first(names: Sequence[str], places: Sequence[str], done: int = 0) -> Path | None:
    """The first file that an import from these places would run, the first `done` names being found already."""
    for depth in range(done + 1, len(names) + 1):
        spec = PathFinder.find_spec(".".join(names[:depth]), places)
        if spec is None or spec.origin:
            return Path(spec.origin) if spec and spec.origin else None
        places = [*(spec.submodule_search_locations or ())]
    return None


def _beside(module: str, folder: Path) -> Path | None:
    """The file of the module, or of the package that it is in, where it lies in the scenario's folder."""
    return _first(module.split("."), [str(root) for root in roots(folder)])


def _spec(top: str) -> ModuleSpec | None:
    """Where the module was or would be imported from."""
    known = sys.modules.get(top)
    return getattr(known, "__spec__", None) or ModuleSpec(top, None) if known else find_spec(top)


def _mistaken(module: str, folder: Path) -> str:
    """What is wrong where a module of this name lies beside the scenario but another one would be imported; "" where nothing is."""
    names, mine = module.split("."), _beside(module, folder)
    spec = _spec(names[0])
    assert mine and spec
    used = Path(spec.origin) if spec.origin else _first(names, [*(spec.submodule_search_locations or ())], done=1)
    if used and used.exists() and (mine.samefile(used) or _copied(mine, used, folder)):
        return ""
    place = used or f"another place ({', '.join(spec.submodule_search_locations or ())})"
    new = "; `fedsim resume --code new` goes on with the first" if used and used.resolve() in originals(folder).values() else ""
    return f"`{names[0]}` was imported from {place}, not from {mine}; run such scenarios separately, or rename one of the files{new}"


def _copied(mine: Path, used: Path, folder: Path) -> bool:
    """Are all of a run's copies the same as the files beside the one that was imported?"""
    copies = folder / "parts"
    if not mine.is_relative_to(copies):
        return False
    depth = len(mine.relative_to(copies).parts)
    files = [(one, used.parents[depth - 1] / one.relative_to(copies)) for one in copies.rglob("*.py")]
    return all(there.is_file() and one.read_bytes() == there.read_bytes() for one, there in files)
