"""From the tree to values: every setting is read by the type of its field, and every mistake keeps its place."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, replace
from typing import Any, Literal, get_args, get_origin

from fedsim.base.errors import SettingError
from fedsim.scenario import leaves
from fedsim.scenario.capacity import MOST
from fedsim.scenario.limits import within
from fedsim.scenario.merge import as_part, as_settings, default_maker, element, unknown_key
from fedsim.scenario.parts import Key, Maker, Own, field_name, find, keys_of, part_values, per_node, settings_of, slot_of
from fedsim.scenario.tree import COMMAND_LINE, List, Map, Node, Place, Problems, Scalar, is_null
from fedsim.settings.part import Part
from fedsim.settings.spans import span
from fedsim.settings.values import PerNode, Spread

BAD: Any = object()  # stands for a value that could not be read; its problem is noted


class Shared:
    """Top-level settings that several runs of one file have in common: each is read once, and its mistakes are noted once."""

    def __init__(self) -> None:
        self.found: dict[Any, tuple[Node, Key, Any, dict[str, Place], set[str]]] = {}  # node and key are kept alive for their ids

    def value(self, reader: "Reader", node: Node, key: Key, path: str) -> Any:
        known = id(node), id(key), path, reader.groups, reader.also
        if known not in self.found:
            inner = Reader(reader.problems, reader.groups, reader.also)
            self.found[known] = node, key, inner.value(node, key, path), inner.places, inner.own
        _, _, value, places, own = self.found[known]
        reader.places.update(places)
        reader.own.update(own)
        return value


def blamed(key: str, places: Mapping[str, Place]) -> Place | None:
    """Where a setting was written; of one that several make up, what the command line changed of it."""
    changed = (place for name, place in places.items() if place.file == COMMAND_LINE and name.rpartition(".")[0] == key)
    return next(changed, places.get(key)) if key in places else None


class Reader:
    """Reads nodes into values. Mistakes go to `problems`; `places` remembers where each dotted key was written."""

    def __init__(
        self,
        problems: Problems,
        groups: tuple[str, ...] = (),
        also: tuple[str, ...] = (),
        shared: Shared | None = None,
    ) -> None:
        self.problems, self.groups, self.also, self.shared = problems, groups, also, shared
        self.places: dict[str, Place] = {}
        self.own: set[str] = set()  # modules

    def fail(self, node: Node, path: str, message: str) -> Any:
        self.problems.at(node.place, f"{path}: {message}")
        return BAD

    def fields(
        self, node: Map, keys: Mapping[str, Key], path: str, inherited: Mapping[str, Any], *known: str, bare: str = ""
    ) -> dict[str, Any]:
        """A value for every key; inherited ones and defaults where nothing is written. Keys in `known` are not read here.

        A needed key that is only misspelt is one problem; the key `bare` is spoken of by the path alone.
        """
        unknown = [name for name in node.entries if name not in keys and name not in known]
        for name in unknown:
            self.problems.at(node.keys[name], unknown_key(name, path, (*keys, *known)))
        misspelt = {leaves.meant(name, (*keys, *known)) for name in unknown}
        found = {}
        for name, key in keys.items():
            dotted = path if name == bare else f"{path}.{name}" if path else name
            written = node.get(name)
            default = inherited.get(name, key.default)
            if written is not None:
                due = key if default is key.default else replace(key, default=default)
                found[name] = self.shared.value(self, written, due, dotted) if self.shared else self.value(written, due, dotted)
            elif default is MISSING:
                found[name] = BAD if name in misspelt else self.fail(node, dotted, f"is needed{f' ({key.help})' if key.help else ''}")
            else:
                found[name] = default
        return found

    def make(self, node: Node, maker: Maker, values: dict[str, Any], path: str) -> Any:
        """The part or group of settings; what its own check says is a problem at its place."""
        if any(value is BAD for value in values.values()):
            return BAD
        try:
            if isinstance(maker, Own):
                return maker.wrap(maker.make, values)
            return maker(**{field_name(maker, name): value for name, value in values.items()})
        except SettingError as error:
            dotted = error.key if error.key.startswith(path) else f"{path}.{error.key}"
            self.problems.at(blamed(dotted, self.places) or node.place, f"{dotted}: {error.message}")
        except ValueError as error:
            self.problems.at(blamed(path, self.places) or node.place, f"{path}: {error}")
        return BAD

    def value(self, node: Node, key: Key, path: str) -> Any:
        """The value of a node, BAD where there is none."""
        self.places[path] = node.place
        if is_null(node):
            return self.fail(node, path, "`null` has no place in a list")
        options = [option for option in leaves.options(key.kind) if option is not types.NoneType]
        base = slot_of(key.kind)
        word = node.get("name") if isinstance(node, Map) and list(node.entries) == ["name"] else node  # `none` put over a part
        without = len(options) < len(leaves.options(key.kind)) and str not in options and isinstance(word, Scalar) and word.text == "none"
        if without and (base is None or not self._is_part(base, "none")):
            return None
        if len(options) == 1:
            return self._one(node, replace(key, kind=options[0]), path)
        return self._union(node, key, options, path)

    def _is_part(self, base: type[Part], name: str) -> bool:
        try:
            find(base, name, self.also)
        except ValueError:
            return False
        return True

    def _union(self, node: Node, key: Key, options: Sequence[Any], path: str) -> Any:
        """The first type that reads it; words are tried first, and named if nothing does."""
        words = {str(word): word for option in options if get_origin(option) is Literal for word in get_args(option)}
        if isinstance(node, Scalar) and node.text in words:
            return words[node.text]
        if isinstance(node, List) and per_node(key) is not None:
            hint = "nodes differ by group, by range (`{0..4: ..., 5: ...}`) or by a spread, and a `sweep` runs several"
            return self.fail(node, path, f"one value is due, not a list: {hint}")
        tried = list[tuple[Any, Problems]]()
        lists, others = ([one for one in options if (get_origin(one) is tuple) == listed] for listed in (True, False))
        for option in lists + others if isinstance(node, List) else others + lists:
            if get_origin(option) is Literal:
                continue
            trial = Reader(Problems(), self.groups, self.also)
            found = trial.value(node, replace(key, kind=option), path)
            if found is not BAD:
                self.places |= trial.places
                self.own |= trial.own
                return found
            tried.append((option, trial.problems))
        hint = f", or {', '.join(f'`{word}`' for word in words)}" if words else ""
        self.problems += [replace(problem, message=problem.message + hint) for problem in self._nearest(tried, node)]
        return BAD

    def _nearest(self, tried: Sequence[tuple[Any, Problems]], node: Node) -> Problems:
        """What is wrong by the first reading; of a mapping with a name by one that knows it, of others by that for nodes."""
        if not isinstance(node, Map):
            return tried[0][1] if tried else Problems()
        name, slots = node.get("name"), [(Spread if get_origin(one) is PerNode else slot_of(one), found) for one, found in tried]
        knows = [found for slot, found in slots if slot and isinstance(name, Scalar) and self._is_part(slot, name.text)]
        each = [found for slot, found in slots if slot is Spread and name is None]
        return min(knows or each or [found for _, found in slots], key=len)

    def _one(self, node: Node, key: Key, path: str) -> Any:
        base, plain, kind = slot_of(key.kind), settings_of(key.kind), key.kind
        if base is not None:
            return self.part(node, base, key, path)
        if plain is not None:
            return self._settings(node, plain, key, path)
        inner = per_node(key)
        if inner is not None:
            return self._per_node(node, inner, key, path)
        if get_origin(kind) is tuple:
            return self._tuple(node, key, path)
        if get_origin(kind) is not None and isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
            return self._mapping(node, key, path)
        if not leaves.is_leaf(kind):
            return self.fail(node, path, f"a setting of type {getattr(kind, '__name__', kind)} can't be written in a scenario")
        if not isinstance(node, Scalar):
            given = "a list; a `sweep` runs several" if isinstance(node, List) else "a mapping"
            return self.fail(node, path, f"one value is due, not {given}")
        try:
            return within(leaves.read(node.text, kind, key.name), node.text, kind, key.limits)
        except ValueError as error:
            return self.fail(node, path, str(error))

    def part(self, node: Node, base: type[Part], key: Key, path: str) -> Any:
        """A part by name, or the inherited one with some settings changed."""
        node = as_part(node, base)
        if not isinstance(node, Map):
            return self.fail(node, path, f"a {base.slot} is due, not a list")
        named = node.get("name")
        name = named.text if isinstance(named, Scalar) else default_maker(key, base)
        if name is None:
            return self.fail(node, path, "`name` is needed")
        try:
            maker = find(base, name, self.also)
            keys = {one: inner.bound(key) for one, inner in keys_of(maker).items()}
        except ValueError as error:
            return self.fail(named or node, path, str(error))
        if isinstance(maker, type) and not issubclass(maker, base):
            return self.fail(named or node, path, f"`{name}` is no {base.__name__}")
        if ":" in name:
            self.own.add(name.partition(":")[0])
        inherited: Mapping[str, Any] = {}
        if isinstance(key.default, Part):
            origin, values = part_values(key.default)
            inherited = _beside(node, maker, values) if origin == maker else {}
        values = self.fields(node, keys, path, inherited, "name", bare=getattr(maker, "brief", ""))
        return self.make(node, maker, values, path)

    def _settings(self, node: Node, plain: type, key: Key, path: str) -> Any:
        node = as_settings(node, key)
        if not isinstance(node, Map):
            return self.fail(node, path, f"a mapping is due: `{{{next(iter(keys_of(plain)))}: ...}}`")
        inherited = part_values(key.default)[1] if isinstance(key.default, plain) and key.default != plain() else {}
        values = self.fields(node, keys_of(plain), path, _beside(node, plain, inherited))
        return self.make(node, plain, values, path)

    def _per_node(self, node: Node, inner: Key, key: Key, path: str) -> Any:
        if isinstance(node, Map) and "name" in node.entries:
            default = key.default.value if isinstance(key.default, PerNode) else MISSING
            found = self.part(node, Spread, Key(key.name, inner.kind, default, limits=key.limits), path)
        elif isinstance(node, Map):
            found = self._by_key(node, key, path)
        elif isinstance(node, List):
            items = [self.value(item, inner, f"{path}.{index}") for index, item in enumerate(node.items)]
            found = BAD if any(item is BAD for item in items) else tuple(items)
        else:
            found = self.value(node, inner, path)
        return BAD if found is BAD else PerNode(found)

    def _by_key(self, node: Map, key: Key, path: str) -> Any:
        """By group, or where no key is one, by range of ids."""
        written = [name for name in node.entries if node.get(name) is not None]
        if written and not set(written) & set(self.groups) and all(span(name) is not None for name in written):
            values = {name: self.value(node.entries[name], element(key), f"{path}.{name}") for name in written}
            return BAD if any(value is BAD for value in values.values()) else values
        for name in written:
            if name not in self.groups:
                known = leaves.nearest(name, self.groups) or "; `groups` is not set"
                self.problems.at(node.keys[name], f"{path}: unknown group `{name}`{known}; a spread over nodes has a `name`")
        missing = [name for name in self.groups if name not in written]
        if missing:
            self.fail(node, path, f"no value for group {', '.join(f'`{name}`' for name in missing)}")
        found = {name: self.value(node.entries[name], element(key), f"{path}.{name}") for name in written}
        return BAD if missing or set(written) - set(self.groups) or any(value is BAD for value in found.values()) else found

    def _tuple(self, node: Node, key: Key, path: str) -> Any:
        kinds = get_args(key.kind)
        whole = kinds[0] is int and len(kinds) == 2 and kinds[1] is ...
        if isinstance(node, Scalar) and whole:
            try:
                found = leaves.steps(node.text)
            except ValueError as error:
                return self.fail(node, path, str(error))
            if found is not None and found[-1] - found[0] >= MOST:
                return self.fail(node, path, f"a list holds at most {MOST:,} values")
            if found is not None:
                return tuple(found)
        if not isinstance(node, List):
            one = node.text if isinstance(node, Scalar) else "{...}"
            return self.fail(node, path, f"a list is due: `[{one}]`{', or a range: `0..4`' if whole else ''}")
        if kinds[-1] is not ... and len(kinds) != len(node.items):
            return self.fail(node, path, f"a list of {len(kinds)} is due, not of {len(node.items)}")
        each = [element(key)] * len(node.items) if kinds[-1] is ... else [Key(key.name, kind, limits=key.limits) for kind in kinds]
        items = [self.value(item, kind, f"{path}.{index}") for index, (item, kind) in enumerate(zip(node.items, each, strict=True))]
        return BAD if any(item is BAD for item in items) else tuple(items)

    def _mapping(self, node: Node, key: Key, path: str) -> Any:
        if not isinstance(node, Map):
            return self.fail(node, path, "a mapping is due: `{name: value}`")
        found = {name: self.value(item, element(key), f"{path}.{name}") for name, item in node.entries.items() if not is_null(item)}
        return BAD if any(item is BAD for item in found.values()) else found


def _beside(node: Map, maker: Maker, inherited: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inherited settings without those that exclude one that is written, or whose defaults follow from it."""
    exclusive = getattr(maker, "exclusive", ())
    gone = set() if all(node.get(name) is None for name in exclusive) else {*exclusive}
    gone |= {one for name, after in getattr(maker, "follow", {}).items() if node.get(name) is not None for one in after}
    return {name: value for name, value in inherited.items() if name not in gone}
