"""From values back to the tree and to text: a resolved scenario, with a comment where each setting came from."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args, get_origin

import yaml

from fedsim.scenario import leaves
from fedsim.scenario.parts import Key, keys_of, part_name, part_values, root_of
from fedsim.scenario.tree import List, Map, Node, Place, Scalar
from fedsim.settings.part import Part
from fedsim.settings.values import PerNode

NOWHERE = Place()


def tree(value: Any, kind: Any) -> Node:
    """The node that is read back as the value; parts without settings are one word.

    What all parts of a slot may set (a metric's `every`) is written where it is set.
    """
    if value is None:
        return Scalar(NOWHERE, "null")
    if isinstance(value, Part) and value.brief:
        return Scalar(NOWHERE, leaves.write(getattr(value, value.brief), float))
    if isinstance(value, PerNode):
        inner = next(get_args(option)[0] for option in leaves.options(kind) if get_origin(option) is PerNode)
        return _per_node(value.value, inner, kind)
    if isinstance(value, Part):
        maker, values = part_values(value)
        common = {name: key.default for name, key in keys_of(base).items()} if vars(base := root_of(type(value))).get("abstract") else {}
        values = {name: item for name, item in values.items() if name not in common or item != common[name]}
        return _settings(values, keys_of(maker), kind, Scalar(NOWHERE, part_name(value)))
    if hasattr(value, "__dataclass_fields__") and not leaves.is_leaf(type(value)):
        return _settings(part_values(value)[1], keys_of(type(value)), kind)
    if isinstance(value, Mapping):
        entry = get_args(kind)[1] if get_args(kind) else Any
        return _map({name: tree(item, entry) for name, item in value.items()})
    if isinstance(value, tuple):
        kinds = next((get_args(option) for option in leaves.options(kind) if get_origin(option) is tuple), (str, ...))
        each = kinds if kinds[-1] is not ... else [kinds[0]] * len(value)
        return List(NOWHERE, tuple(tree(item, one) for item, one in zip(value, each, strict=True)))
    return Scalar(NOWHERE, leaves.write(value, _leaf(value, kind)))


def setting_tree(value: Any, key: Key) -> Node:
    """Of one setting: `null` is its default, `none` is without."""
    return Scalar(NOWHERE, "none") if value is None and key.default is not None else tree(value, key.kind)


def _leaf(value: Any, kind: Any) -> Any:
    """The member of a union that a plain value belongs to."""
    known = [option for option in leaves.options(kind) if leaves.is_leaf(option)]
    if len(known) == 1:
        return known[0]
    return next((option for option in known if option is type(value) or (leaves.unit(option) and not isinstance(value, str))), type(value))


def _map(entries: Mapping[str, Node]) -> Map:
    return Map(NOWHERE, entries, dict.fromkeys(entries, NOWHERE))


def _settings(values: Mapping[str, Any], keys: Mapping[str, Key], kind: Any, name: Scalar | None = None) -> Node:
    outer = Key(kind=_bound(kind))
    entries = {key: setting_tree(value, keys[key].bound(outer)) for key, value in values.items()}
    if name is None:
        return _map(entries)
    return _map({"name": name} | entries) if entries else name


def _bound(kind: Any) -> Any:
    """T of a spread that is written as `Spread[T]`."""
    arguments = get_args(kind)
    return arguments[0] if arguments else kind


def _per_node(value: Any, inner: Any, kind: Any) -> Node:
    if isinstance(value, Part):
        maker, values = part_values(value)
        outer = Key(kind=inner)
        entries = {name: tree(item, keys_of(maker)[name].bound(outer).kind) for name, item in values.items()}
        return _map({"name": Scalar(NOWHERE, part_name(value))} | entries)
    if isinstance(value, Mapping):
        return _map({name: tree(item, kind) for name, item in value.items()})
    if isinstance(value, tuple | list):
        return List(NOWHERE, tuple(tree(item, inner) for item in value))
    return tree(value, inner)


def flat(node: Node, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every leaf; a part's name stands at the part's own key, lists of plain values are one text."""
    if isinstance(node, Map):
        for name, item in node.entries.items():
            yield from flat(item, path if name == "name" and path else f"{path}.{name}" if path else name)
    elif isinstance(node, List) and not all(isinstance(item, Scalar) for item in node.items):
        for index, item in enumerate(node.items):
            yield from flat(item, f"{path}.{index}")
    else:
        yield path, inline(node)


def inline(node: Node) -> str:
    """On one line, without quotes: for labels, tables and hashes."""
    if isinstance(node, List):
        return f"[{', '.join(inline(item) for item in node.items)}]"
    if isinstance(node, Map):
        return f"{{{', '.join(f'{name}: {inline(item)}' for name, item in node.entries.items())}}}"
    return node.text if isinstance(node, Scalar) else ""


def quoted(text: str) -> str:
    """The text as YAML reads it back, in block and in flow style."""
    safe = text and text == text.strip() and text[0] not in "-?:,[]{}#&*!|>'\"%@`" and not set(text) & set(",[]{}#")
    if safe and text.isprintable() and not text.endswith(":") and ": " not in text:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=float("inf"), allow_unicode=True)).strip()


def document(node: Node, origin: Callable[[str], str], path: str = "", indent: str = "") -> Iterator[str]:
    """Lines of block YAML; `origin` gives the comment of a dotted key."""
    if not isinstance(node, Map):
        return
    for name, item in node.entries.items():
        dotted = path if name == "name" and path else f"{path}.{name}" if path else name
        head = f"{indent}{quoted(name)}:"
        if isinstance(item, Map) and item.entries:
            yield head
            yield from document(item, origin, dotted, indent + "  ")
        elif isinstance(item, List) and any(isinstance(one, Map) for one in item.items):
            yield head
            yield from _items(item, origin, dotted, indent + "  ")
        else:
            yield f"{head} {_flow(item)}  # {origin(dotted)}"


def _items(node: List, origin: Callable[[str], str], path: str, indent: str) -> Iterator[str]:
    for index, item in enumerate(node.items):
        dotted = f"{path}.{index}"
        if isinstance(item, Map) and item.entries:
            first, *rest = document(item, origin, dotted, indent + "  ")
            yield f"{indent}- {first.lstrip()}"
            yield from rest
        else:
            yield f"{indent}- {_flow(item)}  # {origin(dotted)}"


def _flow(node: Node) -> str:
    if isinstance(node, List):
        return f"[{', '.join(_flow(item) for item in node.items)}]"
    if isinstance(node, Map):
        return f"{{{', '.join(f'{quoted(name)}: {_flow(item)}' for name, item in node.entries.items())}}}"
    return quoted(node.text) if isinstance(node, Scalar) else "null"
