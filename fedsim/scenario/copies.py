"""A run's copies of the user's own modules: they see the files beside the original, and say whether that has changed since.

`parts/` of a run folder holds the copies, and in origins.json where each was copied from. A copy is imported with the original's path as
its `__file__`, so that data, weights and other files that lie beside it are found; `__spec__.origin` is the copy's own path.
"""

import json
import sys
import sysconfig
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path, PurePosixPath
from types import ModuleType

from fedsim.base.errors import FedsimError
from fedsim.scenario.capacity import text_of

ORIGINS = "origins.json"
_found: dict[Path, dict[str, Path]] = {}  # parts/ of run folders, and what their modules were copied from
_new: set[Path] = set()  # run folders whose modules are imported as they are now


def originals(folder: Path) -> dict[str, Path]:
    """Where a run folder's own modules were copied from, by their paths within parts/. Raises FedsimError where that is broken."""
    file = folder / "parts" / ORIGINS
    if not file.exists():
        return {}
    try:
        found = {str(name): Path(origin) for name, origin in dict(json.loads(text_of(file))).items()}
        if not all(_fits(name, origin) for name, origin in found.items()):
            raise ValueError
        return found
    except (OSError, ValueError, TypeError, KeyError, IndexError, RecursionError):
        raise FedsimError(f"{file}: broken (the original path of each module is due)") from None


def _fits(name: str, origin: Path) -> bool:
    """Is that a path below a folder, and can the other be the same path below another folder?"""
    path = PurePosixPath(name)
    plain = str(path) == name and not path.is_absolute() and ".." not in path.parts and "\0" not in str(origin)
    return plain and origin.is_absolute() and len(origin.parts) > len(path.parts)


def original_of(name: str, file: Path) -> Path:
    """Of a module's file that may be a copy itself; `name` is its path below the folder that it was imported from."""
    root = file.resolve().parents[name.count("/")]
    return (originals(root.parent) if root.name == "parts" else {}).get(name, file.resolve())


def changed(folder: Path) -> list[str]:
    """The modules whose originals are there and differ from the copies."""
    return [name for name, file in originals(folder).items() if file.is_file() and not _alike(file, folder / "parts" / name)]


def _alike(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def take_new_code(folder: Path) -> None:
    """From now on a run folder's modules are imported from where they were copied from. Raises FedsimError where one is not there."""
    installed = {Path(place).resolve() for place in sysconfig.get_paths().values()}
    for name, file in originals(folder).items():
        if not file.is_file():
            raise FedsimError(f"{folder}: there is no new code, {file} is gone; the run has its copy parts/{name}")
        if file.resolve().parents[name.count("/")] in installed:  # a folder from elsewhere may say anything of where its code came from
            raise FedsimError(f"{folder}: {file} is an installed module, no new code of the run; the run has its copy parts/{name}")
    _new.add(folder.resolve())


def takes_new_code(folder: Path) -> bool:
    """See `take_new_code`."""
    return folder.resolve() in _new


def let_copies_import(folder: Path) -> None:
    """A run folder's copies are imported as if they stood where the originals do."""
    if found := originals(folder):
        parts = (folder / "parts").resolve()
        _found[parts] = found
        sys.path_importer_cache.pop(str(parts), None)
        if _finder not in sys.path_hooks:
            sys.path_hooks.insert(0, _finder)


def file_of(module: str) -> Path | None:
    """The file that a module was imported from; None for modules without one."""
    return _file(sys.modules.get(module))


def _file(module: ModuleType | None) -> Path | None:
    spec = getattr(module, "__spec__", None)
    name = spec.origin if spec is not None and isinstance(spec.loader, _Copy) else getattr(module, "__file__", None)
    return _path(name) if name else None


@lru_cache(maxsize=16384)  # all modules are looked at for each run of a sweep
def _path(name: str) -> Path:
    return Path(name)


def _parts_around(path: Path) -> Path | None:
    return next((root for root in (path, *path.parents) if root in _found), None)


class _Copy(SourceFileLoader):
    """Of one module of a run's parts/."""

    def exec_module(self, module: ModuleType) -> None:
        path = Path(self.path).resolve()
        root = _parts_around(path)
        if root is not None:
            module.__file__ = str(_found[root].get(path.relative_to(root).as_posix(), path))
        super().exec_module(module)


def _finder(path: str) -> FileFinder:
    if _parts_around(Path(path).resolve()) is None:
        raise ImportError("no copies of a run")
    return FileFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (_Copy, [".py"]))
