"""Finding a scenario's data files: beside it, then under FEDSIM_DATA."""

import difflib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedsim.base.errors import SettingError
from fedsim.data.arrays import complaint
from fedsim.settings.anchored import roots

NPZ = (".npz",)


def find_file(name: str, base: Path, kinds: Sequence[str] = NPZ) -> Path:
    """The file meant by a path, stem or folder name, of the first of the kinds (suffixes) of which there is one.

    Raises SettingError with all places looked at and near names.
    """
    places, elsewhere = roots(base)
    for root in places:
        for kind in kinds:
            if found := within(root, Path(name).expanduser(), kind):
                return found
    files = [file for shelf in places[1:] for kind in kinds for file in _files(shelf, kind)]
    known = sorted({file.stem for file in files} | {file.parent.name for file in files})
    near = difflib.get_close_matches(Path(name).stem, known, n=1)
    hint = f"; is `{near[0]}` meant?" if near else f"; it has: {', '.join(known)}" if known else ""
    folder = next((root / name for root in places if (root / name).is_dir()), None)
    if folder is not None:
        held = ", ".join(sorted(one.name for one in folder.iterdir())[:5]) or "nothing"
        own = "other kinds are read by a function of your own: `data: my_module:load`"
        raise complaint(f"no data `{name}`: the folder {folder} has no {' or '.join(kinds)} file (it has: {held}); {own}")
    raise complaint(f"no data `{name}`: looked for an {kinds[0]} beside the scenario ({base}){elsewhere}{hint}")


def anchored(name: str, base: Path, kinds: Sequence[str] = NPZ) -> str:
    """The absolute path of a file beside the scenario; a name that means another file, or none, as it is."""
    for kind in kinds:
        with suppress(SettingError):  # of two files; `load` says so
            if found := within(base, Path(name).expanduser(), kind):
                folder = base / name
                return os.path.abspath(folder if folder.is_dir() else found)
    return name


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted([*folder.glob(f"*{kind}"), *folder.glob(f"*/*{kind}")])


def within(root: Path, name: Path, kind: str) -> Path | None:
    """The file of this name under a root: as it is, with its kind, the one of the kind in a folder, or a stem at most one folder down.

    Of a folder of several tables, `train.tsv` is meant.
    """
    plain = root / name
    if plain.is_file():
        return plain
    if plain.with_name(plain.name + kind).is_file():
        return plain.with_name(plain.name + kind)
    folder = sorted(plain.glob(f"*{kind}"))
    folder = [file for file in folder if file.name == "train.tsv"] or folder
    files = folder or [file for file in _files(root, kind) if file.stem == name.name] if len(name.parts) == 1 else folder
    if len(files) > 1:
        raise complaint(f"`{name}` can be {' or '.join(str(file.relative_to(root)) for file in files)}: name the file")
    return files[0] if files else None
