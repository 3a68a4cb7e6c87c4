"""A Flower app as it lies in a folder: what its pyproject.toml says, and the hashes by which two copies are compared."""

import importlib
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from fedsim.base.errors import FedsimError, blame

T = TypeVar("T")
Config = dict[str, bool | int | float | str]
CODE = (".py", ".toml", ".yaml", ".yml")  # what of a folder is compared
OTHERS = {"__pycache__", "build", "eggs", "lib", "lib64", "env", "venv", "ENV"}  # as in Flower's bundles


@dataclass(frozen=True)
class App:
    """`server` and `client` are references `module:name` within the folder; `files` are hashes by path."""

    folder: Path
    name: str
    version: str
    server: str
    client: str
    config: Config
    files: Mapping[str, str]
    whole: bool = True  # the folder's files are all there


def is_app(folder: Path) -> bool:
    """Whether a folder's pyproject.toml declares a Flower app."""
    file = folder / "pyproject.toml"
    return file.is_file() and bool(_table(file).get("tool", {}).get("flwr", {}).get("app"))


def read(folder: Path) -> App:
    """The app in a folder. Raises FedsimError where its pyproject.toml does not tell."""
    file = folder / "pyproject.toml"
    if not file.is_file():
        raise FedsimError(f"{folder}: no Flower app: there is no pyproject.toml")
    table = _table(file)
    try:
        project, app = table["project"], table["tool"]["flwr"]["app"]
        parts = app["components"]
        name, version = f"{app.get('publisher', 'unknown')}/{project['name']}", str(project.get("version", ""))
        return App(folder, name, version, parts["serverapp"], parts["clientapp"], flat(app.get("config", {})), hashes(folder))
    except KeyError as error:
        raise FedsimError(
            f"{file}: {error.args[0]!r} is missing; a Flower app has [project] with name, and [tool.flwr.app.components] with serverapp "
            "and clientapp"
        ) from None
    except ValueError as error:
        raise FedsimError(f"{file}: {error}") from None


def only_client(reference: str, folder: Path) -> App:
    """The ClientApp `module:name` of a folder, alone. Raises FedsimError where it is not there."""
    module = folder.joinpath(*reference.partition(":")[0].split("."))
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    if not file.is_file():
        raise FedsimError(f"--app {reference}: there is no {file}")
    return App(folder, reference, "", "", reference, {}, {str(file.relative_to(folder)): _hash(file)}, whole=False)


def given(text: str, code: Path) -> App:
    """The app that `--app` names: a folder, or `module:name` in the folder `code`. Raises FedsimError where there is none."""
    return read(Path(text)) if ":" not in text or Path(text).is_dir() else only_client(text, code)


def differs(mine: Mapping[str, str], theirs: Mapping[str, str], whole: bool) -> str:
    """How another's files differ from mine, by the first that does; empty: they don't. `whole`: theirs should be all of mine."""
    for name in sorted({*theirs, *(mine if whole else ())}):
        if name not in theirs:
            return f"`{name}` is missing there"
        if mine.get(name) != theirs[name]:
            return f"`{name}` differs" if name in mine else f"`{name}` is not here"
    return ""


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of each file of code and settings, by its path."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in OTHERS and not name.startswith(".")]
        for file in (Path(place, name) for name in files):
            if file.suffix in CODE and not file.name.startswith(("test_", ".")) and not file.name.endswith("_test.py"):
                found[file.relative_to(folder).as_posix()] = _hash(file)
    return found


def flat(table: Mapping[str, Any], upper: str = "") -> Config:
    """Tables within tables by dotted keys. Raises ValueError for a value that Flower's configs don't have."""
    found: Config = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= flat(value, f"{upper}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[upper + key] = value
        else:
            raise ValueError(f"`{upper}{key}` is {value!r}; a truth value, number or text is due")
    return found


def settings(words: Iterable[str]) -> Config:
    """KEY=VALUE, where VALUE is as in TOML, or a text without quotes. Raises FedsimError."""
    found: Config = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise FedsimError(f"{word}: KEY=VALUE is due")
        try:
            found |= flat({key: tomllib.loads(f"value = {value}")["value"]})
        except tomllib.TOMLDecodeError:
            found[key] = value
        except ValueError as error:
            raise FedsimError(f"{word}: {error}") from None
    return found


def load(reference: str, folder: Path) -> Any:
    """What `module:name` means in a folder, which goes onto the import path. Raises what its code does."""
    path = str(folder.resolve())
    if path not in sys.path:
        sys.path.insert(0, path)
    module, _, name = reference.partition(":")
    return attrgetter(name)(importlib.import_module(module))


def part(reference: str, folder: Path, kind: type[T]) -> T:
    """A ServerApp or ClientApp. Raises FedsimError where it can't be loaded, or is another thing."""
    try:
        found = load(reference, folder)
    except (Exception, SystemExit) as error:
        raise FedsimError(f"the {kind.__name__} `{reference}` can't be loaded: {blame(error)}") from error
    if not isinstance(found, kind):
        raise FedsimError(f"`{reference}` is a {type(found).__name__}, no {kind.__name__}")
    return found


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FedsimError(f"{file}: {error}") from None


def _hash(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()
