"""What limits keep settings within what arithmetic can count: their own, and else those of their kind."""

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from fedsim.scenario.leaves import unit, write
from fedsim.settings.values import Every, Time

_KEEPS: dict[str, Callable[[Any, Any], bool]] = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
_TICK = Fraction(1, 10**9)
_BOUNDS: dict[Any, tuple[tuple[str, float], ...]] = {  # of settings that have none of their own: beyond them arithmetic overflows
    int: (("ge", -(10**15)), ("le", 10**15)),
    float: (("ge", -1e30), ("le", 1e30)),
    "time": (("le", 50_000 * 86_400),),
    "bytes": (("le", 10**18),),
    "rate": (("le", 10**18),),
    "power": (("le", 10**9),),
}
_FAR = 10**15  # bounds beyond it are told only to who passes them
_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def within(value: Any, text: str, kind: Any, limits: tuple[tuple[str, float], ...]) -> Any:
    """The value if it keeps the limits of the setting, and else of its kind. Raises ValueError with those it does not."""
    if kind is Every and value.seconds:
        within(value.seconds, text, Time, ())
    measure = unit(kind)
    if not (kind in (int, float) or measure):
        return value
    sides = {name[0] for name, _ in limits}  # below and above
    others = tuple((name, bound) for name, bound in _BOUNDS.get(measure or kind, ()) if name[0] not in sides)
    for bounds in (limits, others):
        if not all(_KEEPS[name](value, bound) for name, bound in bounds):
            told = [(name, bound) for name, bound in bounds if abs(bound) < _FAR or not _KEEPS[name](value, bound)]
            due = " and ".join(f"{_LIMITS[name]} {write(kind(bound) if kind in (int, float) else bound, kind)}" for name, bound in told)
            raise ValueError(f"`{text}`: {due} is due")
    if measure == "time" and 0 < value < _TICK:
        raise ValueError(f"`{text}`: the clock counts in ns; at least {write(_TICK, Time)} is due")
    return value
