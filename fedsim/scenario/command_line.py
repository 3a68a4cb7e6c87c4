"""`key=value` arguments as settings."""

from collections.abc import Sequence
from typing import get_origin

from fedsim.method.strategy import Strategy
from fedsim.scenario.leaves import is_leaf, options, steps
from fedsim.scenario.merge import ANY, Put, as_part, element, inner_keys
from fedsim.scenario.parts import Key, listed, slot_of, top_keys
from fedsim.scenario.sweep import Axis
from fedsim.scenario.tree import COMMAND_LINE, List, Map, Place, Problems, Scalar, literal


def overrides_of(texts: Sequence[str], problems: Problems) -> list[Put]:
    """The settings of `key=value` and `key+=value` texts, left to right."""
    puts = []
    for text in texts:
        key, equals, value = text.partition("=")
        append, name = key.endswith("+"), key.removesuffix("+").strip()
        place = Place(COMMAND_LINE, 0, 1, max(1, len(name)), text)
        if not equals or not all(name.split(".")):
            problems.at(place, f"`{text}` is no setting; one is `strategy.beta=0.3`")
        elif name == "extends":
            problems.at(place, "`extends` belongs into a file")
        elif not value.strip():
            problems.at(place, f"`{name}` has no value; `null` takes the default, `none` is without")
        else:
            where = Place(COMMAND_LINE, 0, len(key) + 2, max(1, len(value)), text)
            puts.append(Put(tuple(name.split(".")), literal(value.strip(), where, problems), place, append))
    return puts


def axes_of(puts: Sequence[Put], assembled: tuple[Map, type[Strategy] | None]) -> tuple[list[Axis], list[Put]]:
    """Lists given to settings of one value are axes of a sweep; the other settings stay as they are."""
    axes, rest = [], []
    for one in puts:
        items = None if one.append else _several(one, key_at(one.path, *assembled))
        if items is None:
            rest.append(one)
        else:
            axes.append([[Put(one.path, item, one.place)] for item in items])
    return axes, rest


def _several(one: Put, key: Key) -> list[Scalar] | None:
    single = slot_of(key.kind) is not None or any(is_leaf(option) for option in options(key.kind))
    if not single or get_origin(key.bare) is tuple or listed(key):
        return None
    if isinstance(one.node, List) and any(get_origin(option) is tuple for option in options(key.kind)):
        return None
    if isinstance(one.node, List):
        items = [item for item in one.node.items if isinstance(item, Scalar)]
        return items if items and len(items) == len(one.node.items) else None
    if not isinstance(one.node, Scalar) or str in options(key.kind):
        return None
    text, place = one.node.text, one.node.place
    if "," in text:
        return [Scalar(place, part.strip()) for part in text.split(",")]
    try:
        found = steps(text) if int in options(key.kind) else None
    except ValueError:  # the reader says what is wrong with it
        return None
    return None if found is None else [Scalar(place, str(value)) for value in found]


def key_at(path: Sequence[str], whole: Map, strategy: type[Strategy] | None) -> Key:
    """The type of a dotted key, `ANY` where it is unknown."""
    also = (strategy.__module__,) if strategy else ()
    key, node = top_keys(strategy).get(path[0], ANY), whole.get(path[0])
    for step in path[1:]:
        base = slot_of(key.kind)
        node = as_part(node, base) if node is not None and base is not None else node
        keys = inner_keys(node, key, also)
        key = (keys or {}).get(step, element(key) if keys is None and get_origin(key.bare) is not None else ANY)
        node = node.get(step) if isinstance(node, Map) else None
    return key
