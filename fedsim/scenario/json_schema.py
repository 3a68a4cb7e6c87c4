"""The JSON Schema of scenarios, for editors. It types values as an editor's YAML does; the loader's own checks go further."""

import types
from dataclasses import MISSING
from typing import Any, Literal, get_args, get_origin

from fedsim.scenario.catalog import slots
from fedsim.scenario.leaves import UNITS, adapter, options, unit
from fedsim.scenario.parts import Key, candidates, keys_of, listed, per_node, settings_of, slot_of, top_keys
from fedsim.scenario.write import inline, setting_tree
from fedsim.settings.choice import Choice
from fedsim.settings.part import Part
from fedsim.settings.values import Count, Every, PerNode, Spread

Json = dict[str, Any]
_NUMBER = r"^[+-]?[0-9._]+([eE][+-]?[0-9]+)?"
_OWN = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def schema() -> Json:
    """JSON Schema (draft 2020-12) of the whole grammar."""
    scenario = _object(top_keys(None), needed=False)
    several = [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    scenario["properties"]["extends"] = {"anyOf": several, "description": "scenario files, relative to this one, that it changes"}
    partial = {"type": ["object", "null"], "properties": {name: value for name, value in scenario["properties"].items() if name != "sweep"}}
    parts = {f"{base.slot}": _slot(base) for base in slots().values()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fedsim scenario"}
    return head | scenario | {"$defs": parts | {"partial": partial | {"additionalProperties": False}}}


def _object(keys: dict[str, Key], needed: bool = True, **more: Json) -> Json:
    properties = more | {name: _setting(key) for name, key in keys.items()}
    found: Json = {"type": "object", "properties": properties, "additionalProperties": False}
    required = [name for name, key in keys.items() if key.default is MISSING]
    return found | ({"required": required} if needed and required else {})


def _setting(key: Key) -> Json:
    found = _value(key)
    if key.default is not MISSING:
        found |= {"default": inline(setting_tree(key.default, key))}
    return found | ({"description": key.help} if key.help else {})


def _value(key: Key) -> Json:
    inner = per_node(key)
    several = [found for option in options(key.kind) if option is not types.NoneType for found in _one(option, key)]
    if inner is not None:
        value = _value(inner)
        each: list[Json] = [{"$ref": f"#/$defs/{Spread.slot}"}, {"type": "object", "additionalProperties": value}]
        several = [value, {"type": "array", "items": value}, *each] if listed(key) else [*several, *each]
        if types.NoneType not in options(key.kind):
            return {"anyOf": several}
    return {"anyOf": [*several, {"enum": [None, "none"]} if _may_be_without(key) else {"type": "null"}]}


def _may_be_without(key: Key) -> bool:
    """Whether `none` is a word of its own here: not the name of a part, and no text."""
    base, kinds = slot_of(key.kind), options(key.kind)
    return types.NoneType in kinds and str not in kinds and not (base and "none" in candidates(base))


def _one(kind: Any, key: Key) -> list[Json]:
    """Schemas of one member of a union."""
    base, plain, measure, arguments = slot_of(kind), settings_of(kind), unit(kind), get_args(kind)
    if get_origin(kind) is PerNode:  # see `_value`
        return []
    if base is not None:
        return [{"$ref": f"#/$defs/{base.slot}"}]
    if plain is not None:
        return [_object(keys_of(plain), needed=False)] + ([_value(keys_of(plain)[plain.word])] if hasattr(plain, "word") else [])
    if measure is not None:
        return _quantity(measure, bare=key.name in ("seconds", "bytes") or measure == "share")
    if get_origin(kind) is tuple:
        item = Key(kind=arguments[0], limits=key.limits)
        return [{"type": "array", "items": _value(item)}, {"type": "string", "pattern": r"^\d+\.\.\d+$"}]
    if kind is Any:
        return [{}]
    if get_origin(kind) not in (None, Literal):
        return [{"type": "object", "additionalProperties": {"$ref": "#/$defs/partial"} if key.name == "variants" else {}}]
    return _leaf(kind, key)


def _leaf(kind: Any, key: Key) -> list[Json]:
    if kind is Count:
        words = {"type": "string", "pattern": r"^all$|^at most \d+$"}
        return [{"type": "integer", "minimum": 1}, words, *_quantity("share", bare=False)]
    if kind is Choice:
        return [{"type": "string"}, {"type": "integer", "minimum": 0}, *_quantity("share", bare=True)]
    if kind is Every:
        return [{"type": "string", "pattern": r"^\d+ *rounds?$"}, *_quantity("time", bare=False)]
    if kind in (int, float):
        return [adapter(kind, key.limits).json_schema(), {"type": "string", "pattern": _NUMBER + "$|^inf$"}]
    if kind is str:
        return [{"type": ["string", "number", "boolean"]}]
    return [adapter(kind, ()).json_schema()]


def _quantity(measure: str, bare: bool) -> list[Json]:
    units = "|".join(UNITS[measure])
    return [{"type": "string", "pattern": f"{_NUMBER} *({units})$"}] + ([{"type": "number", "minimum": 0}] if bare else [])


def _slot(base: type[Part]) -> Json:
    """A part by name, by name with settings, without a name (the inherited one), or a user's own `module:Name`."""
    parts = candidates(base)
    words: list[Json] = [{"enum": [*parts]}, {"type": "string", "pattern": _OWN}]
    if base.slot == "data":
        words.append({"type": "string"})
    if base.bare[0]:
        words += [{"type": "number"}, {"type": "string", "pattern": _NUMBER + " *%?$"}]
    if base.listed:
        words.append({"type": "array"})
    named = [_named(part) for part in parts.values()]
    union: Json = {name: {} for part in parts.values() for name in keys_of(part)}
    bare = {"type": "object", "properties": union, "additionalProperties": False}
    name = {"type": "string", "pattern": "." if base.slot == "data" else _OWN}
    own = {"type": "object", "properties": {"name": name}, "required": ["name"]}
    return {"anyOf": [*words, *named, bare, own]}


def _named(part: type[Part]) -> Json:
    keys = {name: key.bound(Key(kind=Any)) for name, key in keys_of(part).items()}
    found = _object(keys, name={"const": part.name})
    about = (part.__doc__ or "").strip().split("\n")[0]
    return found | {"required": ["name", *found.get("required", [])], "description": about}
