"""Reading scenario files and those they extend."""

import os
from collections.abc import Sequence
from pathlib import Path

from fedsim.base.errors import Problem, ScenarioError
from fedsim.scenario.capacity import FILES, text_of
from fedsim.scenario.tree import List, Map, Node, Place, Problems, Scalar, is_null, parse

_REASONS: dict[type[Exception], str] = {
    FileNotFoundError: "no such file",
    IsADirectoryError: "it is a folder",
    PermissionError: "its permissions forbid it",
}


def layers_of(
    file: Path, problems: Problems, place: Place | None = None, below: Sequence[Path] = (), seen: list[Path] | None = None
) -> list[Map]:
    """The file's tree after those of all it extends, later ones last; none where a file can't be read. `seen` are those read so far."""
    seen = [] if seen is None else seen
    try:
        real = file.resolve()
        if real in below:
            problems.at(place, f"`extends` goes round in a circle: {' -> '.join(path.name for path in (*below, real))}")
            return []
        if len(seen) >= FILES:
            problems.at(place, f"`extends` leads to more than {FILES} files")
            return []
        seen.append(real)
        text = text_of(file)
    except (OSError, ValueError, RuntimeError) as error:
        reason = next(
            (words for kind, words in _REASONS.items() if isinstance(error, kind)), getattr(error, "strerror", None) or str(error)
        )
        if place is None:
            problems.append(Problem(f"can't be read: {reason}", str(file)))
        else:
            problems.at(place, f"`{file}` can't be read: {reason}")
        return []
    found = len(problems)
    root = parse(text, str(file), problems)
    if not isinstance(root, Map):
        if len(problems) == found:
            problems.at(root.place if root else Place(str(file), 1), "a scenario is a mapping; `task` and `strategy` are needed")
        return []
    layers = []
    for one in _parents(root.entries.get("extends"), problems):
        inner = layers_of(Path(os.path.normpath(file.parent / one.text)), problems, one.place, (*below, real), seen)
        if not inner:
            return []
        layers += inner
    return [*layers, root.without("extends")]


def unreadable(files: Sequence[str]) -> ScenarioError | None:
    """What is wrong with files of which none can be read, as `load` tells it, but without importing any part; None where some can."""
    found = ScenarioError()
    for file in files:
        problems = Problems()
        try:
            if layers_of(Path(file), problems):
                return None
            problems.check()
        except ScenarioError as error:
            found.problems += error.problems
    return found if found.problems else None


def layers_given(root: Map, problems: Problems) -> list[Map]:
    """Like `layers_of`, of a tree that stands in no file; it extends files below the working folder."""
    layers = list[Map]()
    for one in _parents(root.entries.get("extends"), problems):
        layers += layers_of(Path(one.text), problems, one.place)
    return [] if problems else [*layers, root.without("extends")]


def _parents(node: Node | None, problems: Problems) -> list[Scalar]:
    if node is None or is_null(node):
        return []
    found = []
    for one in node.items if isinstance(node, List) else (node,):
        if isinstance(one, Scalar):
            found.append(one)
        else:
            problems.at(one.place, "extends: a path or a list of paths is due")
    return found
