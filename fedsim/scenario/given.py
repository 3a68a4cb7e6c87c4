"""Scenarios and settings given as Python values: dicts, lists, numbers, and own classes and parts as objects."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedsim.base.errors import Problem, ScenarioError
from fedsim.method.strategy import Strategy
from fedsim.scenario.merge import Put
from fedsim.scenario.parts import WITHIN, root_of
from fedsim.scenario.tree import List, Map, Node, Place, Scalar, moved
from fedsim.scenario.trust import INTERNAL
from fedsim.scenario.write import tree
from fedsim.settings.part import Part

SCENARIO, CHANGES = "scenario", "load"  # what stands in the place of a file's name


class Given:
    """Turns values into what a file would hold. `modules` are those of all objects that were handed over: their code is meant."""

    def __init__(self) -> None:
        self.modules: list[str] = []

    def scenario(self, content: Mapping[str, Any]) -> Map:
        """Raises ScenarioError for a value that can't stand in a scenario."""
        node = self._node(content, Place(SCENARIO), "")
        assert isinstance(node, Map)
        return node

    def changes(self, content: Mapping[str, Any]) -> list[Put]:
        """Settings by their dotted keys. Raises ScenarioError likewise."""
        place = Place(CHANGES)
        return [Put(tuple(key.split(".")), self._node(value, place, key), place) for key, value in content.items()]

    def _node(self, value: Any, place: Place, path: str) -> Node:
        if isinstance(value, Mapping):
            entries = {str(key): self._node(item, place, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
            return Map(place, entries, dict.fromkeys(entries, place))
        if isinstance(value, list | tuple | range):
            return List(place, tuple(self._node(item, place, f"{path}.{at}") for at, item in enumerate(value)))
        if isinstance(value, Part):
            return self._part(value, place, path)
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            return Scalar(place, self._name(value, path))
        return Scalar(place, self._text(value, path))

    def _text(self, value: Any, path: str) -> str:
        if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
            value = value.item()
        if value is None or isinstance(value, bool):
            return "null" if value is None else str(value).lower()
        if isinstance(value, int | float | str | Path):
            return str(value)
        kind = type(value)
        raise _refused(path, f"a {kind.__module__}.{kind.__qualname__} can't stand in a scenario; hand over its class, settings beside it")

    def _name(self, value: Any, path: str) -> str:
        """How a scenario names a class or function."""
        module, name = value.__module__, value.__qualname__
        if module.partition(".")[0] in INTERNAL and isinstance(value, type) and issubclass(value, Part):
            return value.name
        if "<" in name or "." in name:
            raise _refused(path, f"`{name}` is defined within something else; at the top of a module or notebook it can be found again")
        self.modules.append(module)
        return f"{module}:{name}"

    def _part(self, part: Part, place: Place, path: str) -> Node:
        """A part with its settings. What stands beside a strategy in a scenario, but is set within it, is refused."""
        if isinstance(part, Strategy):
            plain = {one.name: getattr(type(part)(), one.name) for one in fields(part) if one.name in WITHIN}
            for name, default in plain.items():
                if getattr(part, name) != default:
                    raise _refused(f"{path}.{name}", f"`{name}` stands beside `strategy`, not in it")
        self.modules += [type(one).__module__ for one in _parts(part) if type(one).__module__.partition(".")[0] not in INTERNAL]
        return moved(tree(part, root_of(type(part))), place)


def _parts(part: Any) -> Iterator[Part]:
    """A part and those that it is made of."""
    if isinstance(part, Part):
        yield part
        for one in fields(part):  # type: ignore[arg-type]  # all parts are dataclasses
            value = getattr(part, one.name)
            for inner in value if isinstance(value, tuple) else (value,):
                yield from _parts(inner)


def _refused(path: str, message: str) -> ScenarioError:
    return ScenarioError([Problem(f"{path}: {message}")])
