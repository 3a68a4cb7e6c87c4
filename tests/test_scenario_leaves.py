"""Texts as values: what is read, what is refused, and that writing and reading are inverse."""

import re
from fractions import Fraction
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.scenario.leaves import read, steps, write
from fedsim.scenario.limits import within
from fedsim.settings.values import Bytes, Count, Every, Rate, Share, Time

READ: list[tuple[str, Any, Any]] = [
    ("1_000", int, 1000),
    ("-3", int, -3),
    ("1e-3", float, 0.001),
    (".5", float, 0.5),
    ("5.", float, 5.0),
    ("0", float, 0.0),
    ("inf", float, float("inf")),
    ("true", bool, True),
    ("2026-11-21", str, "2026-11-21"),
    ("no", str, "no"),
    ("010", str, "010"),
    ("0.2 s", Time, Fraction(1, 5)),
    ("50ms", Time, Fraction(1, 20)),
    ("20 min", Time, Fraction(1200)),
    ("1.5 h", Time, Fraction(5400)),
    ("2 d", Time, Fraction(172800)),
    ("3 us", Time, Fraction(3, 10**6)),
    ("1e3 s", Time, Fraction(1000)),
    ("1.5 kB", Bytes, 1500),
    ("4 GiB", Bytes, 4 * 2**30),
    ("20 MB", Bytes, 20_000_000),
    ("1 MB/s", Rate, Fraction(10**6)),
    ("10 Mbit/s", Rate, Fraction(1_250_000)),
    ("64 kbit/s", Rate, Fraction(8000)),
    ("1 bit/s", Rate, Fraction(1, 8)),
    ("2MiB/s", Rate, Fraction(2 * 2**20)),
    ("5 %", Share, 0.05),
    ("5%", Share, 0.05),
    ("0.05", Share, 0.05),
    ("1.0", Share, 1.0),
    ("100 %", Share, 1.0),
    ("10", Count, Count(number=10, strict=True)),
    ("at most 10", Count, Count(number=10)),
    ("10 %", Count, Count(share=0.1)),
    ("0.1", Count, Count(share=0.1)),
    ("all", Count, Count()),
    ("1", Count, Count(number=1, strict=True)),
    ("50 rounds", Every, Every(rounds=50)),
    ("1 round", Every, Every(rounds=1)),
    ("10 s", Every, Every(seconds=Fraction(10))),
    ("keep", Literal["drop", "keep"], "keep"),
]


@pytest.mark.parametrize(("text", "kind", "value"), READ)
def test_texts_are_read_by_the_type_of_the_setting(text: str, kind: Any, value: Any) -> None:
    found = read(text, kind)
    assert (found, type(found)) == (value, type(value))


REFUSED: list[tuple[str, Any, str]] = [
    ("010", int, "`010`: 10, or octal? write `10`"),
    ("010 s", Time, "`010`: 10, or octal? write `10`"),
    ("-007", float, "`-007`: -7, or octal? write `-7`"),
    ("1.0", int, "`1.0` is no whole number; write `1`"),
    ("1e3", int, "`1e3` is no whole number; write `1000`"),
    ("1__0", int, "`1__0` is no whole number"),
    ("0x10", float, "`0x10` is no number"),
    ("nan", float, "`nan` is no number"),
    ("1e999", float, "`1e999` is too large; without a bound is `inf`"),
    ("5 %", float, "`5 %` is a share; a number is due: `0.05`"),
    ("1 s", float, "`1 s` is a time; a number is due"),
    ("yes", bool, "`yes`: a flag is `true` or `false`"),
    ("on", bool, "`on`: a flag is `true` or `false`"),
    ("True", bool, "`True`: a flag is `true` or `false`"),
    ("1:30", Time, "`1:30` is refused; `90 s`?"),
    ("1:00:05", Time, "`1:00:05` is refused; `3605 s`?"),
    ("5 m", Time, "`5 m`: minutes or milliseconds? write `5 min` or `5 ms`"),
    ("5", Time, "`5` has no unit; a time is due: `5 s`"),
    ("soon", Time, "`soon` is not a time; one is `10 s`"),
    ("5 sec", Time, "`5 sec`: unknown unit `sec`; a time is counted in us ms s min h d"),
    ("-5 s", Time, "`-5 s` is negative"),
    ("5 MB", Time, "`5 MB` is a size; a time is due: `5 s`"),
    ("2 MB", Rate, "`2 MB` is a size; a rate is due: `2 MB/s`"),
    ("10 Mbps", Rate, "`10 Mbps`: bits to some tools, bytes to others; write `10 Mbit/s` or `10 MB/s`"),
    ("-1 MB/s", Rate, "`-1 MB/s` is negative"),
    ("1000000", Rate, "`1000000` has no unit; a rate is due: `1000000 MB/s`"),
    ("2 MB/s", Bytes, "`2 MB/s` is a rate; a size is due: `2 MB`"),
    ("10 KB", Bytes, "`10 KB`: unknown unit `KB`; a size is counted in B kB MB GB KiB MiB GiB"),
    ("0.5 B", Bytes, "`0.5 B` is no whole number of bytes"),
    ("20", Bytes, "`20` has no unit; a size is due: `20 MB`"),
    ("5", Share, "`5` is no share; `5 %` or `0.05`?"),
    ("150 %", Share, "`150 %` is more than all"),
    ("-0.1", Share, "`-0.1` is negative"),
    ("1.0", Count, "`1.0`: one, or all? write `1` or `all`"),
    ("2.5", Count, "`2.5` is no number of nodes; write `10`, `10 %` or `all`"),
    ("0", Count, "`0` is no number of nodes; write `10`, `10 %` or `all`"),
    ("some", Count, "`some` is no number of nodes; write `10`, `10 %` or `all`"),
    ("50", Every, "`50` has no unit; write `50 rounds` or `50 s`"),
    ("0 rounds", Every, "`0 rounds`: at least 1 round is due"),
    ("0 s", Every, "`0 s`: an interval is above 0"),
    ("1.5 rounds", Every, "`1.5` is no whole number"),
    ("kept", Literal["drop", "keep"], "`kept` is none of drop, keep"),
]


@pytest.mark.parametrize(("text", "kind", "message"), REFUSED)
def test_refusals_say_what_is_due(text: str, kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(text, kind)


def test_a_bare_number_is_read_only_under_a_key_that_is_its_unit() -> None:
    assert read("3600", Time, "seconds") == read("1 h", Time, "seconds") == 3600
    assert read("20000000", Bytes, "bytes") == read("20 MB", Bytes, "bytes")
    with pytest.raises(ValueError, match="has no unit"):
        read("3600", Time, "wall")


def test_ranges_include_both_ends() -> None:
    assert steps("0..4") == range(5)
    assert steps("3..3") == range(3, 4)
    assert steps("ring") is None
    with pytest.raises(ValueError, match=r"a range is `0\.\.4`"):
        steps("0-4")
    with pytest.raises(ValueError, match=r"a range goes up: `0\.\.4`"):
        steps("4..0")


@pytest.mark.parametrize(
    ("text", "kind", "limits", "message"),
    [
        ("0", int, {"ge": 1}, "`0`: at least 1 is due"),
        ("1.5", float, {"gt": 0, "le": 1}, "`1.5`: above 0 and at most 1 is due"),
        ("0 s", Time, {"gt": 0}, "`0 s`: above 0 s is due"),
        ("0 MB/s", Rate, {"gt": 0}, "`0 MB/s`: above 0 B/s is due"),
        ("1.0", Share, {"lt": 1}, "`1.0`: below 100 % is due"),
    ],
)
def test_limits_are_those_of_the_field(text: str, kind: Any, limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        within(read(text, kind), text, kind, tuple(limits.items()))


def test_texts_are_written_with_the_greatest_unit_that_gives_a_whole_number() -> None:
    assert [write(Fraction(value), Time) for value in (0, 90, 1200, 86400)] == ["0 s", "90 s", "20 min", "1 d"]
    assert [write(Fraction(1, value), Time) for value in (20, 10**5, 8 * 10**6)] == ["50 ms", "10 us", "0.000000125 s"]
    assert [write(value, Bytes) for value in (0, 1500, 2_000_000)] == ["0 B", "1500 B", "2 MB"]
    assert [write(Fraction(value), Rate) for value in (8000, 1_250_000)] == ["8 kB/s", "1250 kB/s"]
    assert [write(value, Share) for value in (0.05, 1.0, 0.125, 1 / 3)] == ["5 %", "100 %", "12.5 %", repr(1 / 3)]
    with pytest.raises(ValueError, match="1/3 s is no exact decimal"):
        write(Fraction(1, 3), Time)


decimals = st.builds(lambda digits, places: Fraction(digits, 10**places), st.integers(0, 10**15), st.integers(0, 9))
counts = st.one_of(
    st.just(Count()),
    st.builds(Count, number=st.integers(1, 10**9), strict=st.booleans()),
    st.builds(Count, share=st.floats(1e-9, 1.0)),
)
intervals = st.one_of(st.builds(Every, rounds=st.integers(1, 10**9)), st.builds(Every, seconds=decimals.filter(bool)))
LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (float, st.floats(allow_nan=False).filter(lambda value: value != float("-inf"))),
    (bool, st.booleans()),
    (str, st.text()),
    (Literal["drop", "keep", 3], st.sampled_from(["drop", "keep", 3])),
    (Time, decimals),
    (Rate, decimals),
    (Bytes, st.integers(0, 10**18)),
    (Share, st.floats(0, 1)),
    (Count, counts),
    (Every, intervals),
]


@pytest.mark.parametrize(("kind", "values"), LEAVES, ids=[str(kind) for kind, _ in LEAVES])
def test_writing_then_reading_gives_the_value_back(kind: Any, values: st.SearchStrategy[Any]) -> None:
    @given(values)
    def check(value: Any) -> None:
        assert read(write(value, kind), kind) == value

    check()
