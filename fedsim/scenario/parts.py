"""What can fill a slot and which settings it has: dataclass fields, or the typed arguments of a user's own function."""

import difflib
import importlib
import inspect
import pkgutil
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache, reduce
from operator import or_
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fedsim import PARTS
from fedsim.base.errors import blame
from fedsim.method.strategy import Strategy
from fedsim.scenario.leaves import is_leaf, nearest, options
from fedsim.scenario.settings import Scenario
from fedsim.scenario.trust import INTERNAL, permit, refusal, trusted
from fedsim.settings.part import Part
from fedsim.settings.values import PerNode

Limits = tuple[tuple[str, float], ...]
WITHIN = ("train", "schedule", "uplink", "downlink", "crosslink", "privacy")  # top-level keys whose values stand inside the strategy


@dataclass(frozen=True)
class Key:
    """One setting: its type, default (MISSING where it must be written), help and limits."""

    name: str = ""
    kind: Any = Any
    default: Any = field(default_factory=lambda: MISSING)
    help: str = ""
    limits: Limits = ()

    @property
    def bare(self) -> Any:
        """The type without `| None`."""
        rest = [option for option in options(self.kind) if option is not types.NoneType]
        return rest[0] if len(rest) == 1 else self.kind

    def bound(self, outer: "Key") -> "Key":
        """With the type and limits of the value that a spread stands for."""
        if not isinstance(self.kind, TypeVar):
            return self
        return replace(self, kind=outer.kind, limits=outer.limits + self.limits)


@dataclass(frozen=True)
class Own:
    """A user's own class or function that is no part itself: `wrap` makes the part from it and its settings."""

    name: str
    make: Callable[..., Any]
    wrap: Callable[[Callable[..., Any], Mapping[str, Any]], Part]
    given: tuple[str, ...]  # parameters that are no settings


Maker = type | Own


def _frozen(kind: Any) -> Any:
    """`list[int]` as `tuple[int, ...]`: settings are read, compared and written as tuples."""
    if get_origin(kind) in (list, Sequence):
        return tuple[(*map(_frozen, get_args(kind)), ...)]  # type: ignore[misc]
    return reduce(or_, map(_frozen, get_args(kind))) if get_origin(kind) in (Union, types.UnionType) else kind


def keys_of(maker: Maker) -> dict[str, Key]:
    """The settings of a dataclass or of a user's own class or function, by name. Raises ValueError for an argument without a type."""
    return _keys_of(cast(Any, maker))


@cache
def _keys_of(maker: Any) -> dict[str, Key]:
    if isinstance(maker, Own):
        return _arguments(maker)
    inside = WITHIN if issubclass(maker, Strategy) else ()
    if not is_dataclass(maker):
        return {}
    hints, found = get_type_hints(maker, include_extras=True), {}
    for one in fields(maker):
        if not one.init or one.name in inside:
            continue
        name = one.name.rstrip("_")
        default = one.default if one.default_factory is MISSING else one.default_factory()
        limits = tuple(one.metadata.get("limits", {}).items())
        found[name] = Key(name, _frozen(hints[one.name]), _settled(default), one.metadata.get("help", ""), limits)
    return found


def _settled(default: Any) -> Any:
    return tuple(default) if isinstance(default, list) else default


def _arguments(own: Own) -> dict[str, Key]:
    make: Any = own.make
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)
    found = {}
    for name, argument in inspect.signature(own.make).parameters.items():
        if name in own.given or argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
            continue
        if name == "base" and getattr(own.wrap, "slot", "") == "data":
            found[name] = Key(name, str, "", "folder of the function's files; by default the scenario's")
            continue
        if name not in hints:
            raise ValueError(f"`{own.name}`: its argument `{name}` has no type, so it can't be set")
        default = MISSING if argument.default is argument.empty else _settled(argument.default)
        found[name] = Key(name, _frozen(hints[name]), default)
    return found


def field_name(maker: Maker, name: str) -> str:
    """`from` -> `from_`, as the class spells it."""
    known = {one.name for one in fields(maker)} if isinstance(maker, type) and is_dataclass(maker) else {name}
    return name if name in known else name + "_"


def top_keys(strategy: type[Strategy] | None) -> dict[str, Key]:
    """The keys of a scenario, the same objects each time; the strategy's paper has the defaults of `train`, `schedule` and the codecs."""
    return _top_keys(cast(Any, strategy))


@cache
def _top_keys(strategy: Any) -> dict[str, Key]:
    found = dict(keys_of(Scenario))
    hints = get_type_hints(strategy or Strategy, include_extras=True)
    for one in fields(strategy or Strategy):
        if one.name in WITHIN:
            default = one.default if one.default_factory is MISSING else one.default_factory()
            found[one.name] = Key(one.name, hints[one.name], default, found[one.name].help)
    return found


def slot_of(kind: Any) -> type[Part] | None:
    """The base class of the parts that a type takes, None for other types."""
    for option in options(kind):
        origin = get_origin(option) or option
        if isinstance(origin, type) and issubclass(origin, Part):
            return origin
    return None


def settings_of(kind: Any) -> type | None:
    """The dataclass of a plain group of settings such as `stop`, None for other types."""
    for option in options(kind):
        if isinstance(option, type) and is_dataclass(option) and not issubclass(option, Part) and not is_leaf(option):
            return option
    return None


def per_node(key: Key) -> Key | None:
    """The type of each node's value, None for a setting that is the same for all."""
    for option in options(key.kind):
        if get_origin(option) is PerNode:
            return Key(key.name, get_args(option)[0], limits=key.limits)
    return None


def listed(key: Key) -> bool:
    """Does a bare list give each node its value? Where a plain value may stand beside what differs by node it is one to be swept."""
    return get_origin(key.bare) is PerNode


def candidates(base: type[Part], also: Iterable[str] = ()) -> dict[str, type[Part]]:
    """The parts of a slot by name: subclasses of its base in the base's module and its `modules`, for strategies in `strategies`."""
    return _known(cast(Any, base)) | {part.name: part for name in also for part in _parts_in(sys.modules[name], base)}


@cache
def _known(base: Any) -> dict[str, type[Part]]:
    names = [f"strategies.{name}" for name in strategy_names()] if issubclass(base, Strategy) else [base.__module__, *base.modules]
    return {part.name: part for name in names for part in _parts_in(importlib.import_module(name), base)}


def _parts_in(module: types.ModuleType, base: type[Part]) -> list[type[Part]]:
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return [value for value in own if issubclass(value, base) and is_dataclass(value) and not vars(value).get("abstract")]


@cache
def strategy_names() -> list[str]:
    import strategies

    return sorted(module.name for module in pkgutil.iter_modules(strategies.__path__) if not module.name.startswith("_"))


def find(base: type[Part], name: str, also: Iterable[str] = ()) -> Maker:
    """The part of that name, or the user's own `module:Name`. Raises ValueError with the nearest name where there is none."""
    if ":" in name and not name.startswith("hub:"):
        return _own(base, name)
    if issubclass(base, Strategy):  # only the one file is imported
        known = strategy_names()
        parts = _parts_in(importlib.import_module(f"strategies.{name}"), base) if name in known else []
        found = next((part for part in parts if part.name == name), None)
    else:
        named = candidates(base, also)
        known, found = list(named), named.get(name) or next((part for part in named.values() if name in part.aliases), None)
    if found is None:
        raise ValueError(f"unknown {base.slot} `{name}`{nearest(name, known)}")
    return found


def _cure(error: BaseException) -> str:
    """What mends a module of somebody's own that can't be imported, where that is known."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "fedsim":
        return f"; own parts are made of what `from fedsim import ...` gives: {', '.join(PARTS)}"
    return "; parts are decorated with `@dataclass(frozen=True)`" if "non-frozen" in str(error) else ""


def _own(base: type[Part], name: str) -> Maker:
    module_name, _, attribute = name.partition(":")
    beside = permit(module_name)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the user's own module may raise anything
        raise ValueError(f"`{module_name}` can't be imported: {blame(error)}{_cure(error)}") from error
    value = getattr(module, attribute, None)
    if value is None:
        raise ValueError(f"`{module_name}` has no `{attribute}`; a {base.slot} is due")
    whole = isinstance(value, type) and issubclass(value, base) and is_dataclass(value)
    wrapped = None if whole else _wrapper(base, value)
    if not whole and wrapped is None:
        derived = f"a dataclass that derives from {base.__module__}.{base.__name__}"
        due = {"model": "an nn.Module class", "data": "a function (`def`)"}.get(base.slot, derived)
        raise ValueError(f"`{name}` can't be a {base.slot}; {due} is due")
    origin = getattr(value, "__module__", None) or "builtins"
    permit(origin)  # the module may have imported it from anywhere
    if beside:
        _spelt.setdefault(value, name)
    if wrapped is None:
        return cast(type, value)
    if origin.partition(".")[0] in INTERNAL and not trusted(origin):
        raise refusal(origin)
    return Own(name, value, *wrapped)


def _wrapper(base: type[Part], value: Any) -> tuple[Callable[..., Part], tuple[str, ...]] | None:
    if base.slot == "model" and isinstance(value, type):
        from torch import nn

        from fedsim.models.own import OwnModel

        return (OwnModel, ("self", "input_shape", "outputs", "vocabulary")) if issubclass(value, nn.Module) else None
    if base.slot == "data" and inspect.isroutine(value):
        from fedsim.data.own import OwnSource

        return OwnSource, ()
    return None


_spelt: dict[Any, str] = {}  # own classes and functions, by the name under which a scenario beside them found them first


def part_name(part: Any) -> str:
    """How a scenario names this part: its name in its slot, or `module:Name` for a user's own."""
    if part is None:
        return "none"
    kind = getattr(part, "make", type(part))
    internal = kind.__module__.split(".")[0] in INTERNAL
    return str(kind.name) if internal and hasattr(kind, "name") else _spelt.get(kind) or f"{kind.__module__}:{kind.__qualname__}"


def root_of(kind: type[Part]) -> type[Part]:
    """The base class of its slot."""
    return next(base for base in reversed(kind.__mro__) if base.__dict__.get("slot"))


def part_values(part: Any) -> tuple[Maker, dict[str, Any]]:
    """What makes a part, and its settings by name."""
    if hasattr(part, "make"):
        wrapped = _wrapper(root_of(type(part)), part.make)
        assert wrapped
        maker = Own(part_name(part), part.make, *wrapped)
        values = {name: key.default for name, key in keys_of(maker).items()} | dict(part.settings)
        return maker, values
    kind = type(part)
    return kind, {name: getattr(part, field_name(kind, name)) for name in keys_of(kind)}


def shorthand(base: type[Part], text: str) -> dict[str, str]:
    """The settings that one word means: a name, or what the slot reads from it (a bare number is a constant curve)."""
    if base.bare[0] and (text[:1].isdigit() or text[:1] in "+-." or text == "inf"):
        return {"name": base.bare[0], base.bare[1]: text}
    if base.slot == "metric" and text.partition(":")[0].partition(".")[0] == "torchmetrics" and ":" in text:
        return {"name": "torchmetrics", "metric": text.partition(":")[2]}
    if base.slot == "data" and ("." in text or not difflib.get_close_matches(text, candidates(base), 1, 0.75)):
        from fedsim.data.sources import source_for

        source = source_for(text)
        if source is not None:
            maker, values = part_values(source)
            written = {name: str(value) for name, value in values.items() if value != keys_of(maker)[name].default}
            return {"name": part_name(source)} | written
    return {"name": text}
