"""YAML as a tree of texts that remember where they stand. Types come later, from the settings."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from fedsim.base.errors import Problem, ScenarioError
from fedsim.base.visible import one_line
from fedsim.scenario.capacity import DEEPEST, MOST, PROBLEMS

COMMAND_LINE = "command line"
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Place:
    """Where something was written; line 0 is a text without line numbers, such as an argument of the command line."""

    file: str = ""
    line: int = 0
    column: int = 1
    width: int = 1
    text: str = field(default="", repr=False)


@dataclass(frozen=True)
class Node:
    place: Place


@dataclass(frozen=True)
class Scalar(Node):
    text: str


@dataclass(frozen=True)
class List(Node):
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Map(Node):
    entries: Mapping[str, Node]
    keys: Mapping[str, Place]

    def get(self, key: str) -> Node | None:
        """The entry; None where there is none or it is `null`."""
        node = self.entries.get(key)
        return None if is_null(node) else node

    def with_(self, changes: Mapping[str, Node]) -> "Map":
        """With these entries set; new keys stand where their values do."""
        return Map(self.place, {**self.entries, **changes}, {**{key: node.place for key, node in changes.items()}, **self.keys})

    def without(self, *names: str) -> "Map":
        return Map(self.place, {key: node for key, node in self.entries.items() if key not in names}, self.keys)


def is_null(node: Node | None) -> bool:
    return isinstance(node, Scalar) and node.text == "null"


class Problems(list[Problem]):
    """The mistakes found so far, each once; so many of them are the last."""

    def at(self, place: Place | None, message: str) -> None:
        """Raises ScenarioError where they are too many to go on."""
        place = place or Place()
        problem = Problem(message, place.file, place.line, place.column, place.text, place.width)
        if problem not in self:
            self.append(problem)
        if len(self) >= PROBLEMS:
            self.check()

    def check(self) -> None:
        """Raises ScenarioError where there are any."""
        if self:
            raise ScenarioError(sorted(self, key=lambda p: (p.file == COMMAND_LINE, p.file, p.line, p.column)))


class Refused(Exception):
    """A text that is not read on."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place, self.message = place, message


class _Parser:
    def __init__(self, text: str, file: str, line_numbers: bool, problems: Problems, loader: Any) -> None:
        self.lines, self.file, self.numbered, self.problems = text.split("\n"), file, line_numbers, problems
        self.anchors: dict[str, tuple[Node, int]] = {}  # and how many values it holds
        self.count = self.depth = 0
        self.events: Iterator[Any] = yaml.parse(text, Loader=loader)

    def place(self, start: Any, end: Any = None) -> Place:
        text = self.lines[start.line] if start.line < len(self.lines) else ""
        last = end.column if end is not None and end.line == start.line else len(text)
        width = max(1, last - start.column)
        return Place(self.file, start.line + 1 if self.numbered else 0, start.column + 1, width, text)

    def document(self) -> Node | None:
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        root = self.node(next(self.events))
        next(self.events)
        after = next(self.events)
        if isinstance(after, yaml.DocumentStartEvent):
            self.problems.at(self.place(after.start_mark, after.end_mark), "a second document; a file holds one scenario")
        return root

    def node(self, event: Any) -> Node:
        place = self.place(event.start_mark, event.end_mark)
        before = self.count
        if isinstance(event, yaml.AliasEvent):
            known, size = self.anchors.get(str(event.anchor), (None, 1))
            self._counted(size, place)
            if known is None:
                self.problems.at(place, f"no anchor `&{event.anchor}` above")
            return known or Scalar(place, "null")
        self._counted(1, place)
        if event.tag is not None:
            self.problems.at(place, f"tag `{event.tag}`: types come from the settings, tags are refused")
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            if _nothing(event):
                self.problems.at(place, "no value; `null` takes the default, `none` is without")
            node = Scalar(place, event.value)
        else:
            self.depth += 1
            if self.depth > DEEPEST:
                raise Refused(place, f"values within values, more than {DEEPEST} deep")
            node = self.list_(place) if isinstance(event, yaml.SequenceStartEvent) else self.map_(place)
            self.depth -= 1
        if event.anchor is not None:
            self.anchors[event.anchor] = node, self.count - before
        return node

    def _counted(self, more: int, place: Place) -> None:
        self.count += more
        if self.count > MOST:
            raise Refused(place, f"more than {MOST:,} values, counted with what `*` repeats")

    def list_(self, place: Place) -> List:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event))
        return List(place, tuple(items))

    def map_(self, place: Place) -> Map:
        entries: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key, after = self.node(event), next(self.events)
            if isinstance(key, Scalar) and ":" in key.text and _nothing(after):
                self.problems.at(key.place, f"`{key.text}`: a space is due after the colon")
                continue
            value = self.node(after)
            if not isinstance(key, Scalar) or one_line(key.text) != key.text:
                self.problems.at(key.place, "a key must be a word")
            elif key.text == "<<":
                self.problems.at(key.place, "`<<` is refused; use `extends`")
            elif key.text in entries:
                self.problems.at(key.place, f"`{key.text}` twice: lines {keys[key.text].line} and {key.place.line}")
            else:
                entries[key.text], keys[key.text] = value, key.place
        return Map(place, entries, keys)


def _nothing(event: Any) -> bool:
    """Is it a value that is not written?"""
    return isinstance(event, yaml.ScalarEvent) and not event.value and not event.style


def parse(text: str, file: str, problems: Problems, line_numbers: bool = True) -> Node | None:
    """The tree of a text, None if it holds nothing; mistakes of form are added to problems."""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        column = line.split(" #")[0].find("\t")
        if column >= 0 and not line.lstrip().startswith("#"):
            problems.at(Place(file, number if line_numbers else 0, column + 1, 1, line), "a tab; indent and separate with spaces")
    if any(problem.message.startswith("a tab;") and problem.file == file for problem in problems):
        return None
    if not set("?>|\ufeff") & set(text):  # in which readers of YAML differ
        found = Problems()
        with suppress(ScenarioError, UnicodeError):
            root = _tree(text, file, found, line_numbers, FAST)
            if not found:
                return root
    return _tree(text, file, problems, line_numbers, yaml.SafeLoader)  # which words mistakes


def _tree(text: str, file: str, problems: Problems, line_numbers: bool, loader: Any) -> Node | None:
    parser = _Parser(text, file, line_numbers, problems, loader)
    try:
        return parser.document()
    except Refused as error:
        problems.at(error.place, error.message)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" {error.context}" if error.context else ""
        problems.at(parser.place(mark, mark) if mark else Place(file), f"no YAML: {error.problem}{context}")
    except yaml.YAMLError as error:
        problems.at(Place(file), f"no YAML: {error}")
    return None


def literal(value: str, place: Place, problems: Problems) -> Node:
    """A value of the command line: YAML where it begins with a bracket or a quote, otherwise a text as it stands."""
    if value[:1] not in ("[", "{", '"', "'"):
        return Scalar(place, value)
    inner = Problems()
    node = parse(value, COMMAND_LINE, inner, line_numbers=False)
    for problem in inner:
        problems.at(place, problem.message)
    return moved(node, place) if node is not None else Scalar(place, "null")


def moved(node: Node, place: Place) -> Node:
    """The same tree, written elsewhere."""
    if isinstance(node, List):
        return List(place, tuple(moved(item, place) for item in node.items))
    if isinstance(node, Map):
        return Map(place, {key: moved(item, place) for key, item in node.entries.items()}, dict.fromkeys(node.entries, place))
    return Scalar(place, node.text if isinstance(node, Scalar) else "")
