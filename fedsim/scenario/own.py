"""Users' own modules: which of their files a run keeps."""

import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from fedsim.scenario.copies import file_of
from fedsim.scenario.trust import INTERNAL, roots


def files_of(modules: Iterable[str], folder: Path) -> dict[str, Path]:
    """The files of these modules and, if there are any, of all that was imported from the scenario's folder.

    By the paths below which an import finds them, such as `my_methods/fast.py`.
    """
    named = set(modules)
    places = {str(root) for root in roots(folder)} if named else set[str]()
    tops = {name.partition(".")[0] for name in sys.modules} if named else set[str]()
    mine = {top for top in tops if str(_top_root(top)) in places}
    beside = {name for name in sys.modules if name.partition(".")[0] in mine}
    files = {name: file for name in sorted(named | beside) if (file := file_of(name))}
    return {_path_of(name, file): file for name, file in files.items()}


def _top_root(module: str) -> Path | None:
    """The folder that the module, or the package that it belongs to, was imported from; None for ours."""
    top = module.partition(".")[0]
    file = None if top in INTERNAL or top.startswith("__") else file_of(top)
    return file and _root(file)


@lru_cache(maxsize=16384)
def _root(file: Path) -> Path:
    return file.parent.parent if file.stem == "__init__" else file.parent


def _path_of(module: str, file: Path) -> str:
    path = module.replace(".", "/")
    return f"{path}/{file.name}" if file.stem == "__init__" else f"{path}{file.suffix}"
