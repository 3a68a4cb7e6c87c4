"""How numbers are written for people: times, sizes, counts, shares."""

from collections.abc import Sequence
from statistics import fmean, stdev


def three_digits(value: float) -> str:
    """45.4, 672, 1.18: three significant digits, never with an exponent."""
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"


def duration(seconds: float) -> str:
    """`250 ms`, `12.3 s`, `14 min 20`, `31.9 h`, `5.2 d`"""
    if seconds < 0.9995:
        return f"{three_digits(seconds * 1000)} ms" if seconds > 0 else "0 s"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if round(seconds) < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02}" if rest else f"{minutes} min"
    return f"{seconds / 3600:.1f} h" if seconds < 96 * 3600 else f"{seconds / 86400:.1f} d"


def clock(seconds: float) -> str:
    """`16:21`, `1:03:00`: for a time that moves."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def size(count: float) -> str:
    """`640 B`, `45.4 MB`, `131 GB`; powers of 1000."""
    for power, unit in enumerate(("B", "kB", "MB", "GB", "TB")):
        if count / 1000**power < 999.5:
            return f"{count:.0f} B" if not power else f"{three_digits(count / 1000**power)} {unit}"
    return f"{count / 1000**5:,.0f} PB"


def energy(joules: float) -> str:
    """`640 mJ`, `45.4 J`, `131 kJ`"""
    for power, unit in enumerate(("mJ", "J", "kJ", "MJ", "GJ")):
        if joules / 1000 ** (power - 1) < 999.5:
            return f"{three_digits(joules / 1000 ** (power - 1))} {unit}" if joules else "0 J"
    return f"{joules / 1000**4:,.0f} TJ"


def count(number: float) -> str:
    """`1,180`"""
    return f"{number:,.0f}"


def counted(number: int, noun: str) -> str:
    """`1 round`, `1,180 rounds`"""
    return f"{count(number)} {noun}" + ("s" if number != 1 else "")


def percent(share: float) -> str:
    """`86.2 %`"""
    return f"{100 * share:.1f} %"


def short_percent(share: float) -> str:
    """`85 %`, `97.5 %`: without a closing zero."""
    return f"{100 * share:.4g} %"


def spread(shares: Sequence[float]) -> str:
    """`86.2 %`, or `86.2 +- 0.6` (mean and deviation, in per cent) for several; `-` for none."""
    if len(shares) > 1:
        return f"{100 * fmean(shares):.1f} +- {100 * stdev(shares):.1f}"
    return percent(shares[0]) if shares else "-"
