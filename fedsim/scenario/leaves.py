"""Settings that are one text: how each is read and written. Every reader raises ValueError with what is due."""

import difflib
import re
import types
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, TypeAdapter

from fedsim.base.address import hide
from fedsim.settings.choice import Choice
from fedsim.settings.values import MOST_NODES, Count, Every, Share, Unit

_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = rf"[+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][+-]?\d{{1,3}})?"
_BYTES: dict[str, Fraction | int] = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_BITS: dict[str, Fraction | int] = {"bit/s": Fraction(1, 8), "kbit/s": 125, "Mbit/s": 125 * 10**3, "Gbit/s": 125 * 10**6}
UNITS: dict[str, dict[str, Fraction | int]] = {
    "time": {"us": Fraction(1, 10**6), "ms": Fraction(1, 1000), "s": 1, "min": 60, "h": 3600, "d": 86400},
    "bytes": _BYTES,
    "rate": {f"{unit}/s": factor for unit, factor in _BYTES.items()} | _BITS,
    "share": {"%": Fraction(1, 100)},
    "power": {"W": 1, "mW": Fraction(1, 1000), "kW": 1000},
}
_NOUN = {"time": "a time", "bytes": "a size", "rate": "a rate", "share": "a share", "power": "a power"}
_USUAL = {"time": "s", "bytes": "MB", "rate": "MB/s", "share": "%", "power": "W"}


def meant(word: str, known: Iterable[str]) -> str | None:
    """The name that is near, None where none is."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), 1, 0.6 if len(word) > 3 else 0.5)), None)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` if one is near, otherwise what there is to choose from."""
    names = list(known)
    if near := meant(word, names):
        return f"; did you mean `{near}`?"
    return f"; there are {', '.join(names)}" if 0 < len(names) <= 12 else ""


def options(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one kind."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def unit(kind: Any) -> str | None:
    """`time`, `bytes`, `rate`, `share` or `power` for a quantity."""
    marks = [mark.kind for mark in get_args(kind)[1:] if isinstance(mark, Unit)] if get_origin(kind) is Annotated else []
    return marks[0] if marks else None


def is_leaf(kind: Any) -> bool:
    return kind in (str, int, float, bool, Choice, Count, Every) or get_origin(kind) is Literal or unit(kind) is not None


def number(text: str) -> Fraction:
    """An exact decimal number."""
    if re.match(r"[+-]?0\d", text):
        plain = re.sub(r"^([+-]?)0+(?=\d)", r"\1", text)
        raise ValueError(f"`{text}`: {plain}, or octal? write `{plain}`")
    if not re.fullmatch(_NUMBER, text):
        raise ValueError(f"`{text}` is no number")
    return Fraction(text)


def whole(text: str) -> int:
    if not re.fullmatch(_NUMBER, text):
        raise ValueError(f"`{text}` is no whole number")
    value = number(text)
    if not re.fullmatch(rf"[+-]?{_DIGITS}", text):
        hint = f"; write `{value}`" if value.denominator == 1 else ""
        raise ValueError(f"`{text}` is no whole number{hint}")
    return int(text)


def decimal(text: str) -> float:
    if text == "inf":
        return float("inf")
    amount = re.fullmatch(rf"({_NUMBER}) *(\D\S*)", text)
    for kind, units in UNITS.items():
        if amount and amount[2] in units:
            hint = f": `{float(number(amount[1]) / 100)}`" if kind == "share" else ""
            raise ValueError(f"`{text}` is {_NOUN[kind]}; a number is due{hint}")
    number(text)
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"`{text}` is too large; without a bound is `inf`")
    return value


def flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"`{text}`: a flag is `true` or `false`")
    return text == "true"


def steps(text: str, most: int = 100_000) -> range | None:
    """`0..4` with both ends, at most so many numbers; None for a text that is no range."""
    if re.fullmatch(r"\d+-\d+", text):
        raise ValueError(f"`{text}` reads as a subtraction or a date; a range is `{text.replace('-', '..')}`")
    found = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if not found:
        return None
    first, last = whole(found[1]), whole(found[2])
    if last < first:
        raise ValueError(f"`{text}` holds nothing; a range goes up: `{last}..{first}`")
    if last - first >= most:
        raise ValueError(f"`{text}` holds {last - first + 1:,} numbers; at most {most:,} are due")
    return range(first, last + 1)


def _unit_error(text: str, amount: str, given: str, kind: str) -> str:
    if kind == "time" and given == "m":
        return f"`{text}`: minutes or milliseconds? write `{amount} min` or `{amount} ms`"
    if re.fullmatch("[kKmMgG]?[bB]ps", given):
        prefix = given[:-3]
        return f"`{text}`: bits to some tools, bytes to others; write `{amount} {prefix}bit/s` or `{amount} {prefix}B/s`"
    for other in UNITS:
        if given in UNITS[other]:
            if kind == "rate" and other == "bytes":
                due = text + "/s"
            elif kind == "bytes" and given.removesuffix("/s") in _BYTES:
                due = text.removesuffix("/s")
            else:
                due = f"{amount} {_USUAL[kind]}"
            return f"`{text}` is {_NOUN[other]}; {_NOUN[kind]} is due: `{due}`"
    return f"`{text}`: unknown unit `{given}`; {_NOUN[kind]} is counted in {' '.join(UNITS[kind])}"


def quantity(text: str, kind: str, bare: bool = False) -> Fraction:
    """A number with a unit, in s, B, B/s or as a share; `bare` says that the key itself is the unit."""
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", text)
    if clock and kind == "time":
        hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        raise ValueError(f"`{text}` is refused; `{hours * 3600 + minutes * 60 + seconds} s`?")
    found = re.fullmatch(rf"({_NUMBER}) *([^\s\d]\S*)?", text)
    if not found:
        raise ValueError(f"`{text}` is not {_NOUN[kind]}; one is `10 {_USUAL[kind]}`")
    amount, given = number(found[1]), found[2]
    if given is None and kind == "share" and amount > 1:
        raise ValueError(f"`{text}` is no share; `{text} %` or `{float(amount / 100)}`?")
    if given is None and kind != "share" and not bare:
        raise ValueError(f"`{text}` has no unit; {_NOUN[kind]} is due: `{text} {_USUAL[kind]}`")
    if given is not None and given not in UNITS[kind]:
        raise ValueError(_unit_error(text, found[1], given, kind))
    value = amount * UNITS[kind][given] if given else amount
    if value < 0:
        raise ValueError(f"`{text}` is negative")
    if kind == "share" and value > 1:
        raise ValueError(f"`{text}` is more than all")
    if kind == "bytes" and value.denominator != 1:
        raise ValueError(f"`{text}` is no whole number of bytes")
    return value


def count(text: str) -> Count:
    """`10` of the nodes, `10 %` of them, `all`, or `at most 10`, which is no error where there are fewer."""
    if text == "all":
        return Count()
    if text.startswith("at most "):
        return replace(count(text.removeprefix("at most ")), strict=False)
    if text.endswith("%"):
        share = quantity(text, "share")
    else:
        share = number(text) if re.fullmatch(_NUMBER, text) else Fraction(0)
        if re.fullmatch(_DIGITS, text) and share >= 1:
            return Count(number=int(share), strict=True)
        if share == 1:
            raise ValueError(f"`{text}`: one, or all? write `1` or `all`")
    if not 0 < share <= 1:
        raise ValueError(f"`{text}` is no number of nodes; write `10`, `10 %` or `all`")
    return Count(share=float(share))


def choice(text: str) -> Choice:
    """`all`, `even`, `odd`, a group's name, `7`, `0..9` (both ends), or a share of the nodes by lot."""
    if re.fullmatch(r"\d+", text):
        return Choice(ids=range(whole(text), whole(text) + 1))
    if ids := steps(text, MOST_NODES):
        return Choice(ids=ids)
    if text.endswith("%") or re.match(r"[+-.\d]", text):
        share = float(quantity(text, "share"))
        if not share:
            raise ValueError(f"`{text}` chooses no node; write `10 %`, `0..9`, `even`, `odd`, `all` or a group's name")
        return Choice(share=share)
    return Choice(text)


def every(text: str) -> Every:
    """`50 rounds` or a time."""
    found = re.fullmatch(rf"({_NUMBER}) *rounds?", text)
    if found:
        value = whole(found[1])
        if value < 1:
            raise ValueError(f"`{text}`: at least 1 round is due")
        return Every(rounds=value)
    if re.fullmatch(_NUMBER, text):
        raise ValueError(f"`{text}` has no unit; write `{text} rounds` or `{text} s`")
    seconds = quantity(text, "time")
    if not seconds:
        raise ValueError(f"`{text}`: an interval is above 0")
    return Every(seconds=seconds)


_READERS: dict[Any, Callable[[str], Any]] = {str: str, int: whole, float: decimal, bool: flag, Choice: choice, Count: count, Every: every}


def read(text: str, kind: Any, key: str = "") -> Any:
    """The value of a text. `key` is the setting's name: under `seconds` a bare number is seconds, under `bytes` bytes."""
    measure = unit(kind)
    if measure:
        value = quantity(text, measure, bare=(key, measure) in (("seconds", "time"), ("bytes", "bytes")))
        return float(value) if measure == "share" else int(value) if measure == "bytes" else value
    if get_origin(kind) is Literal:
        known = {str(value): value for value in get_args(kind)}
        if text not in known:
            raise ValueError(f"`{text}` is none of {', '.join(known)}{nearest(text, known) if len(known) > 12 else ''}")
        return known[text]
    return _READERS[kind](text)


@cache
def adapter(kind: Any, limits: tuple[tuple[str, float], ...]) -> TypeAdapter[Any]:
    """Its JSON Schema is that of the value once read."""
    return TypeAdapter(Annotated[kind, Field(**{name: bound for name, bound in limits if bound < float("inf")})])


def _plain(value: Fraction) -> str | None:
    """A decimal without exponent, None where there is none."""
    if set(_prime_factors(value.denominator)) - {2, 5}:
        return None
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    text = str(abs(int(value * 10**digits))).rjust(digits + 1, "0")
    return ("-" if value < 0 else "") + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)


def _prime_factors(value: int) -> Iterable[int]:
    for prime in (2, 5):
        while value % prime == 0:
            value //= prime
            yield prime
    if value > 1:
        yield value


def _amount(value: Fraction, kind: str) -> str:
    """With the greatest unit that gives a whole number, otherwise the base unit."""
    base = {"time": "s", "bytes": "B", "rate": "B/s", "power": "W"}[kind]
    scale = {"time": ("d", "h", "min", "s", "ms", "us"), "bytes": ("GB", "MB", "kB", "B"), "rate": ("GB/s", "MB/s", "kB/s", "B/s")}
    chosen = next((name for name in scale.get(kind, ()) if value and (value / UNITS[kind][name]).denominator == 1), base)
    text = _plain(value / UNITS[kind][chosen])
    if text is None:
        raise ValueError(f"{value} {base} is no exact decimal")
    return f"{text} {chosen}"


def _count_text(value: Count) -> str:
    if value.number is not None:
        return f"{'' if value.strict else 'at most '}{value.number}"
    return "all" if value.share is None else write(value.share, Share)


def write(value: Any, kind: Any) -> str:
    """The text that `read` turns into the value; of an address without its password."""
    measure = unit(kind)
    if measure == "share":
        percent = format((Decimal(repr(float(value))) * 100).normalize(), "f")
        return f"{percent} %" if len(percent) < 8 else repr(float(value))
    if measure:
        return _amount(Fraction(value), measure)
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        text = repr(float(value))
        return text.removesuffix(".0")
    if kind is Count:
        return _count_text(value)
    if kind is Choice and value.ids is not None:
        return str(value.ids[0]) if len(value.ids) == 1 else f"{value.ids[0]}..{value.ids[-1]}"
    if kind is Choice:
        return str(value.word) if value.share is None else write(value.share, Share)
    if kind is Every:
        return f"{value.rounds} rounds" if value.rounds else _amount(value.seconds, "time")
    return hide(str(value))
