"""Parts: what a scenario can name. A part is a frozen dataclass, its fields are its settings, and they are the only definition of them."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, get_origin, get_type_hints

from fedsim.base.errors import SettingError


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    factory: Any = dataclasses.MISSING,
    kw_only: Any = dataclasses.MISSING,
    **limits: float,
) -> Any:
    """A dataclass field with help text and limits (`ge, gt, le, lt`); schema, checks, `fedsim list` and documents are made from it."""
    if default is not dataclasses.MISSING:
        return dataclasses.field(default=default, kw_only=kw_only, metadata={"help": help, "limits": limits})
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata={"help": help, "limits": limits})
    return dataclasses.field(metadata={"help": help, "limits": limits})


def called(make: Callable[..., Any], settings: Mapping[str, Any], **given: Any) -> Any:
    """A user's own class or function, called with its settings (tuples as lists where it asks for lists) and what it takes of `given`."""
    hints = get_type_hints(vars(make).get("__init__", make) if isinstance(make, type) else make)
    asked = inspect.signature(make).parameters
    own = {name: list(value) if get_origin(hints.get(name)) is list and value is not None else value for name, value in settings.items()}
    return make(**{name: value for name, value in given.items() if name in asked}, **own)


def spell(name: str) -> str:
    """`LogNormal` -> `log_normal`: how a class is written in a scenario."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Part:
    """Base of everything that fills a slot of a scenario.

    `slot` says where it fits and is set by the slot's base class; `name` is how a scenario spells it, by default the class's
    name in lower case with underscores; `source` is the paper it follows, `default` the name that a mapping without `name` means.
    Parts of a slot are found in the module of its base class and in those that the base class names as `modules`.
    """

    slot: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()
    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()  # other spellings of the name that are read
    default: ClassVar[str] = ""
    abstract: ClassVar[bool] = False  # of a class itself: a base of parts, no part that a scenario can name
    exclusive: ClassVar[tuple[str, ...]] = ()  # settings of which at most one is due: one that is written takes the place of a default
    bare: ClassVar[tuple[str, str]] = ("", "")  # the slot's part that a bare number means, and its setting
    brief: ClassVar[str] = ""  # the setting of a part, a number, that is written in the place of the whole
    listed: ClassVar[str] = ""  # the setting of the slot's default part that a bare list means

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = spell(cls.__name__)


__all__ = ["Part", "SettingError", "called", "setting", "spell"]
