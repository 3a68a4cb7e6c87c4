"""Putting files, variants and single settings together, before anything is read."""

from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, is_dataclass
from types import NoneType
from typing import Any, get_args, get_origin

from fedsim.method.strategy import Strategy
from fedsim.scenario.leaves import nearest, options
from fedsim.scenario.parts import WITHIN, Key, Maker, find, keys_of, part_name, per_node, settings_of, shorthand, slot_of, top_keys
from fedsim.scenario.tree import List, Map, Node, Place, Problems, Scalar, is_null
from fedsim.scenario.write import tree
from fedsim.settings.part import Part
from fedsim.settings.values import PerNode, Spread

ANY = Key()


class Refusal(Exception):
    """A setting that can't be put where it should go."""

    def __init__(self, place: Place, message: str) -> None:
        self.place, self.message = place, message


@dataclass(frozen=True)
class Put:
    """One setting given by its dotted key, in a grid or on the command line."""

    path: tuple[str, ...]
    node: Node
    place: Place
    append: bool = False


def as_part(node: Node, base: type[Part]) -> Node:
    """A part as a mapping with its name: `ring` is `{name: ring}`."""
    if isinstance(node, Scalar) and not is_null(node):
        words = shorthand(base, node.text)
        return Map(node.place, {key: Scalar(node.place, text) for key, text in words.items()}, dict.fromkeys(words, node.place))
    if isinstance(node, List) and base.listed:
        return Map(node.place, {base.listed: node}, {base.listed: node.place})
    named = node.get("name") if isinstance(node, Map) else None
    if isinstance(node, Map) and isinstance(named, Scalar):
        words = {key: text for key, text in shorthand(base, named.text).items() if key == "name" or key not in node.entries}
        if words == {"name": named.text}:  # as it is, so that the runs of a sweep share the node
            return node
        return node.with_({key: Scalar(named.place, text) for key, text in words.items()})
    return node


def as_settings(node: Node, key: Key) -> Node:
    """Settings as a mapping: a plain value is that of their `word`, where they have one; `none` is no settings where there may be none."""
    word = getattr(settings_of(key.kind), "word", None)
    if word is None or not isinstance(node, Scalar) or is_null(node) or (node.text == "none" and NoneType in options(key.kind)):
        return node
    return Map(node.place, {word: node}, {word: node.place})


def default_maker(key: Key, base: type[Part]) -> str | None:
    """Name of the part that a mapping without a name means."""
    if isinstance(key.default, Part):
        return part_name(key.default)
    return base.default or None


def maker(node: Node, key: Key, base: type[Part], also: Sequence[str] = ()) -> Maker | None:
    """What a part's mapping names, None where that is unknown."""
    named = node.get("name") if isinstance(node, Map) else None
    name = named.text if isinstance(named, Scalar) else default_maker(key, base)
    try:
        return find(base, name, also) if name else None
    except ValueError:
        return None


def inner_keys(node: Node | None, key: Key, also: Sequence[str]) -> dict[str, Key] | None:
    """The keys that may stand below a setting, None where any may, {} where none."""
    base, plain = slot_of(key.kind), settings_of(key.kind)
    if base is not None:
        return _keys_below(node, key, base, also)
    if plain is not None:
        return keys_of(plain)
    if per_node(key) is not None:
        spread = isinstance(node, Map) and "name" in node.entries
        return _keys_below(node, key, Spread, also) if spread else None
    return None if key.kind is Any or get_origin(key.bare) is not None else {}


def _keys_below(node: Node | None, key: Key, base: type[Part], also: Sequence[str]) -> dict[str, Key] | None:
    found = maker(node or Map(Place(), {}, {}), key, base, also)
    try:
        return None if found is None else {"name": Key("name", str)} | keys_of(found)
    except ValueError:
        return None


def merge(old: Node | None, new: Node, key: Key = ANY, also: Sequence[str] = ()) -> Node:
    """The new value over the old: mappings key by key, a part with another name and all else whole."""
    base, plain = slot_of(key.kind), settings_of(key.kind)
    if base is not None:
        new, old = as_part(new, base), old and as_part(old, base)
    elif plain is not None:
        new, old = as_settings(new, key), old and as_settings(old, key)
    if old is None or not isinstance(old, Map) or not isinstance(new, Map) or _replaces(old, new, key, base):
        return new
    keys = inner_keys(new if "name" in new.entries else old, key, also)
    if keys is None and get_origin(key.bare) is not None:
        keys = dict.fromkeys(new.entries, element(key))
    below = {name: merge(old.entries.get(name), node, (keys or {}).get(name, ANY), also) for name, node in new.entries.items()}
    return Map(new.place if "name" in new.entries else old.place, {**old.entries, **below}, {**old.keys, **new.keys})


def _replaces(old: Map, new: Map, key: Key, base: type[Part] | None) -> bool:
    before, after = old.get("name"), new.get("name")
    if per_node(key) is not None and before is not None and after is None:
        made = [found for slot in (base, Spread) if slot and (found := maker(old, key, slot))]
        return bool(made) and not any(set(new.entries) <= set(keys_of(one)) for one in made)
    if base is None and key.kind is not Any and per_node(key) is None:
        return False
    name = before.text if isinstance(before, Scalar) else default_maker(key, base) if base else None
    return isinstance(after, Scalar) and after.text != name


def element(key: Key) -> Key:
    """The type of the items of a list or mapping."""
    arguments = get_args(key.bare)
    if per_node(key) is not None:
        return Key(key.name, next(option for option in options(key.kind) if get_origin(option) is PerNode), limits=key.limits)
    is_map = get_origin(key.bare) is not tuple
    return Key(key.name, arguments[1 if is_map and len(arguments) > 1 else 0], limits=key.limits) if arguments else ANY


def put(old: Node | None, key: Key, one: Put, depth: int = 0, also: Sequence[str] = ()) -> Node:
    """The tree with one setting put where its path says. Raises Refusal where there is no such setting."""
    if depth == len(one.path):
        return _append(old, key, one) if one.append else merge(old, one.node, key, also)
    step, done = one.path[depth], ".".join(one.path[:depth])
    base = slot_of(key.kind)
    if old is not None:
        old = as_settings(old, key) if base is None else as_part(old, base)
    if get_origin(key.bare) is tuple or isinstance(old, List):
        return _put_item(old, key, one, depth, also)
    keys = inner_keys(old, key, also)
    if keys is not None and step not in keys:
        raise Refusal(one.place, unknown_key(step, done, keys))
    below = keys[step] if keys is not None else element(key) if get_origin(key.bare) is not None else ANY
    start = old if isinstance(old, Map) else Map(one.place, {}, {})
    return start.with_({step: put(start.get(step), below, one, depth + 1, also)})


def _listed(old: Node | None, key: Key, one: Put) -> List:
    """The list as it stands, its default where it is not written."""
    if old is None or is_null(old):
        old = tree(key.default, key.kind) if key.default is not MISSING and key.default is not None else List(one.place, ())
    if not isinstance(old, List):
        raise Refusal(one.place, f"`{'.'.join(one.path)}` is no list")
    return old


def _append(old: Node | None, key: Key, one: Put) -> List:
    listed = _listed(old, key, one)
    return List(listed.place, (*listed.items, *(one.node.items if isinstance(one.node, List) else (one.node,))))


def _put_item(old: Node | None, key: Key, one: Put, depth: int, also: Sequence[str]) -> List:
    listed, step = _listed(old, key, one), one.path[depth]
    if not step.isdigit() or int(step) >= len(listed.items):
        done = ".".join(one.path[:depth])
        raise Refusal(one.place, f"`{done}` is a list of {len(listed.items)}; `{step}` is no item of it, counted from 0")
    items = list(listed.items)
    items[int(step)] = put(items[int(step)], element(key), one, depth + 1, also)
    return List(listed.place, tuple(items))


def unknown_key(name: str, within: str, keys: Iterable[str]) -> str:
    """The message for a key that nobody reads, with the nearest one that exists."""
    if within == "strategy" and name in WITHIN:
        return f"unknown key `strategy.{name}`; `{name}` stands beside `strategy`, not in it"
    dot = f"{within}." if within else ""
    if outer := _outer(name, within):
        return f"unknown key `{dot}{name}`; `{name}` stands beside `{outer}`, as `{'.'.join([*outer.split('.')[:-1], name])}`"
    return f"unknown key `{dot}{name}`{nearest(name, keys).replace('mean `', f'mean `{dot}')}"


def _outer(name: str, within: str) -> str:
    """The nearest mapping around, or what a key lies in, beside which a key of this name may stand; "" where there is none."""
    path = within.split(".")
    for depth in range(len(path) - 1, 0, -1):
        keys = top_keys(None)
        for step in path[:depth]:
            kind = keys[step].kind if step in keys else None
            keys = keys_of(kind) if isinstance(kind, type) and is_dataclass(kind) else {}
        if name in keys:
            return ".".join(path[: depth + 1])
    return ""


def strategy_class(layers: Sequence[Map], puts: Sequence[Put]) -> type[Strategy] | None:
    """The strategy in the end, None where it is unknown: it has the defaults of other keys."""
    key, node = top_keys(None)["strategy"], None
    for layer in layers:
        if "strategy" in layer.entries:
            node = merge(node, layer.entries["strategy"], key)
    for one in puts:
        if one.path[0] == "strategy":
            try:
                node = put(node, key, one, 1)
            except Refusal:
                continue
    found = maker(node, key, Strategy) if node is not None else None
    return found if isinstance(found, type) and is_dataclass(found) and issubclass(found, Strategy) else None


def assemble(layers: Sequence[Map], puts: Sequence[Put], problems: Problems) -> tuple[Map, type[Strategy] | None]:
    """All layers and settings in their order, and the strategy. A setting that does not exist is left out and is a problem."""
    strategy = strategy_class(layers, puts)
    return put_all(merged(layers, strategy), puts, strategy, problems), strategy


def merged(layers: Sequence[Map], strategy: type[Strategy] | None) -> Map:
    """All layers, later ones over earlier ones."""
    also = (strategy.__module__,) if strategy else ()
    keys, whole = top_keys(strategy), Map(layers[0].place, {}, {})
    for layer in layers:
        below = {name: merge(whole.entries.get(name), node, keys.get(name, ANY), also) for name, node in layer.entries.items()}
        whole = Map(whole.place, {**whole.entries, **below}, {**whole.keys, **layer.keys})
    return whole


def put_all(whole: Map, puts: Sequence[Put], strategy: type[Strategy] | None, problems: Problems) -> Map:
    """With single settings put into it. One that does not exist is left out and is a problem."""
    also, keys = (strategy.__module__,) if strategy else (), top_keys(strategy)
    for one in puts:
        name = one.path[0]
        try:
            if name not in keys:
                raise Refusal(one.place, unknown_key(name, "", keys))
            whole = whole.with_({name: put(whole.get(name), keys[name], one, 1, also)})
        except Refusal as refusal:
            problems.at(refusal.place, refusal.message)
    return whole
