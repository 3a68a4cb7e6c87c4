"""What there is to choose from: the parts of each slot and their settings, as data."""

from collections.abc import Iterator
from dataclasses import MISSING
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from fedsim.scenario.infos import Overview, PartInfo, SettingInfo
from fedsim.scenario.leaves import options, unit
from fedsim.scenario.parts import WITHIN, Key, candidates, keys_of, per_node, root_of, settings_of, slot_of, top_keys
from fedsim.scenario.write import inline, setting_tree
from fedsim.settings.choice import Choice
from fedsim.settings.part import Part
from fedsim.settings.values import Count, Every, PerNode, Spread

_WORDS = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Choice: "nodes",
    Count: "number, share or all",
    Every: "interval",
}
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_QUANTITIES = {"time": "time", "bytes": "size", "rate": "rate", "share": "share", "power": "power"}


def type_text(key: Key) -> str:
    """`time`, `a | b`, `rate per node`, `list of metric`: how a type is called."""
    inner = per_node(key)
    each = "" if inner is None else type_text(inner)
    rest = [_one_type(option, key) for option in options(key.kind) if option is not NoneType and get_origin(option) is not PerNode]
    return " | ".join([*(one for one in rest if one != each), *([f"{each} per node"] if each else [])])


def _one_type(kind: Any, key: Key) -> str:
    base, measure, arguments = slot_of(kind), unit(kind), get_args(kind)
    if base is not None:
        return f"{base.slot}"
    if measure is not None:
        return _QUANTITIES[measure]
    if get_origin(kind) is tuple:
        return f"list of {type_text(Key(kind=arguments[0]))}"
    if isinstance(kind, TypeVar):
        return "value"
    if get_origin(kind) is None:
        return _WORDS.get(kind, "settings" if settings_of(kind) else "mapping")
    return "mapping" if settings_of(kind) or not isinstance(arguments[0], str) else " | ".join(map(str, arguments))


def setting_info(key: Key, name: str = "") -> SettingInfo:
    default = None if key.default is MISSING else inline(setting_tree(key.default, key))
    limits = ", ".join(f"{_SIGNS[limit]} {bound:g}" for limit, bound in key.limits)
    return SettingInfo(name or key.name, type_text(key), default, key.help, limits)


def part_info(part: type[Part]) -> PartInfo:
    first = (part.__doc__ or "").strip().split("\n")[0]
    settings = tuple(info for key in keys_of(part).values() for info in (setting_info(key), *_within(key)))
    return PartInfo(part.slot, part.name, first, part.source, getattr(part, "kind", ""), settings)


def _within(key: Key) -> list[SettingInfo]:
    """Those of a setting that is a mapping with keys of its own: `adapt.rate`."""
    plain = settings_of(key.kind)
    return [setting_info(inner, f"{key.name}.{name}") for name, inner in keys_of(plain).items()] if plain else []


@cache
def slots() -> dict[str, type[Part]]:
    """Every slot that a scenario can reach, with the base class of its parts."""
    found: dict[str, type[Part]] = {}
    waiting = list(top_keys(None).values())
    while waiting:
        key = waiting.pop(0)
        plain = settings_of(key.kind)
        bases = [base for kind in (key.kind, *get_args(key.bare)) if (base := slot_of(kind))] + ([Spread] if per_node(key) else [])
        waiting += list(keys_of(plain).values()) if plain else []
        for base in bases:
            root = root_of(base)
            if root.slot not in found:
                found[root.slot] = root
                waiting += [inner for part in candidates(root).values() for inner in keys_of(part).values()]
    return found


def everything() -> Overview:
    """All of it."""
    return Overview({slot: tuple(part_info(part) for part in candidates(base).values()) for slot, base in slots().items()}, tuple(keys()))


def describe(name: str) -> tuple[PartInfo, ...]:
    """The parts of a slot, or those of that name in any slot. Raises ValueError with the nearest name where there are none."""
    return everything().describe(name)


def keys() -> list[SettingInfo]:
    """Every key of a scenario outside parts, by dotted name; the default of those that the method's paper sets is its base's."""
    return list(_keys(top_keys(None), ""))


def _keys(known: dict[str, Key], path: str) -> Iterator[SettingInfo]:
    for name, key in known.items():
        dotted, plain = f"{path}{name}", settings_of(key.kind)
        if plain is not None:
            yield from _keys(keys_of(plain), f"{dotted}.")
        else:
            info = setting_info(key, dotted)
            yield SettingInfo(dotted, info.type, "the method's" if dotted in WITHIN else info.default, info.help, info.limits)
