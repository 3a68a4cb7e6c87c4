"""Users' own modules: where they are imported from, and which of their files a run keeps."""

import sys
from collections.abc import Iterable
from pathlib import Path

from fedsim.scenario.copies import file_of, let_copies_import, originals, takes_new_code

INTERNAL = ("fedsim", "strategies")


def _roots(folder: Path) -> tuple[Path, ...]:
    """Beside a scenario, and the copies beside the scenario.yaml of a run, or where these were copied from."""
    if not takes_new_code(folder):
        return folder, folder / "parts"
    return folder, *dict.fromkeys(file.parents[name.count("/")] for name, file in originals(folder).items())


def let_import(folder: Path) -> None:
    """Puts a scenario's folder at the end of the import path, so that a user's `random.py` shadows nothing."""
    let_copies_import(folder)
    sys.path += [str(root) for root in _roots(folder) if root.is_dir() and str(root) not in sys.path]


def mistaken(module: str, folder: Path) -> str:
    """What is wrong where a module of this name lies beside the scenario but another one was imported; "" where nothing is."""
    top = module.partition(".")[0]
    used, forms = file_of(top), (f"{top}.py", f"{top}/__init__.py")
    mine = next((root / form for root in _roots(folder) for form in forms if (root / form).is_file()), None)
    if mine is None or used is None or mine.samefile(used) or _copied(mine, used):
        return ""
    return f"`{top}` was imported from {used}, not from {mine}; run such scenarios separately, or rename one of the files"


def _copied(mine: Path, used: Path) -> bool:
    """Are all of a run's copies the same as the files beside the one that was imported?"""
    copies, beside = ((one.parent.parent if one.stem == "__init__" else one.parent) for one in (mine, used))
    files = [(one, beside / one.relative_to(copies)) for one in copies.rglob("*.py")]
    return copies.name == "parts" and all(there.is_file() and one.read_bytes() == there.read_bytes() for one, there in files)


def files_of(modules: Iterable[str], folder: Path) -> dict[str, Path]:
    """The files of these modules and, if there are any, of all that was imported from the scenario's folder.

    By the paths below which an import finds them, such as `my_methods/fast.py`.
    """
    named = set(modules)
    beside = {name for name in sys.modules if named and _top_root(name) in _roots(folder)}
    files = {name: file for name in sorted(named | beside) if (file := file_of(name))}
    return {_path_of(name, file): file for name, file in files.items()}


def _top_root(module: str) -> Path | None:
    """The folder that the module, or the package that it belongs to, was imported from; None for ours."""
    top = module.partition(".")[0]
    file = None if top in INTERNAL or top.startswith("__") else file_of(top)
    return file and (file.parent.parent if file.stem == "__init__" else file.parent)


def _path_of(module: str, file: Path) -> str:
    path = module.replace(".", "/")
    return f"{path}/{file.name}" if file.stem == "__init__" else f"{path}{file.suffix}"
