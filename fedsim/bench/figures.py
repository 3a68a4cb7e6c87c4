"""What a measurement gives, and how it says how far it is."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Figure:
    """One comparison: what both sides reach (medians), the median of the trials' ratios, and what the ratio should be at least.

    Of a limit (seconds, bytes), `other` is the limit, the ratio limit / measured and the target 1. Without a target: not for this machine.
    """

    name: str
    ours: float
    other: float
    ratio: float
    target: float | None


def limit(name: str, measured: float, most: float) -> Figure:
    """The figure of something that should be at most so large."""
    return Figure(name, measured, most, most / measured, 1.0)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = perf_counter()
    work()
    return perf_counter() - begin


def say(text: str = "") -> None:
    """Shows how far it is in one line on standard error, where that is a terminal; the next text replaces it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
