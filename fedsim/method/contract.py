"""What a strategy's functions give back, checked, so that a mistake is named and not its consequence."""

# m: jobs, k: hearers

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from fedsim.base.errors import RunError
from fedsim.base.rows import Rows

SHRINK = (
    "inside `batches` rows are cut to the jobs still at work: hand other rows to it too, `for batch, y, c in local.batches(x, c)`, "
    "or cut them, `c[: len(y)]`"
)

SHARED = "what nodes receive may be one row that many share: write to a copy, `x = received['model'].clone()`"


class Misuse(RunError):
    """A strategy gave back, or asked for, what it may not."""


class Named(dict[str, Tensor]):
    """Rows by name; asked for one that isn't there, it says what is, and where such a name comes from."""

    def __init__(self, rows: Rows, what: str) -> None:
        super().__init__(rows)
        self.what = what

    def __missing__(self, name: str) -> Tensor:
        raise Misuse(f"{self.what.format(name=name)} (there {_listed(self)})")


def memory_of(rows: Rows) -> Named:
    """What `start_local` declares, as `local_update` is given it."""
    return Named(rows, "memory has no `{name}`: `start_local` declares what a node remembers before its first job")


def sent_of(rows: Rows) -> Named:
    """The parts of messages, as `merge` is given them."""
    return Named(rows, "messages have no `{name}`: they have the parts that `local_update` returns")


def received_of(rows: Rows) -> Named:
    """What a node hears, as `local_update` is given it."""
    return Named(rows, "nodes don't receive `{name}`: they hear what `broadcast` and `instruct` return")


@contextmanager
def read_only(received: Rows) -> Iterator[None]:
    """Raises Misuse where what nodes received was written to meanwhile: others hear the same rows, or models are made of them."""
    before = {name: rows._version for name, rows in received.items()}
    yield
    for name, rows in received.items():
        if rows._version != before[name]:
            raise Misuse(f"`local_update` writes to `{name}`, which it received; due is a copy, `x = received['{name}'].clone()`")


def replied(found: Any, before: Rows, jobs: int) -> tuple[Rows, Rows]:
    """What `local_update` returned for so many jobs, with memory `before`. Raises Misuse where that is not what it has to be."""
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, Mapping) for one in found)):
        raise Misuse(f"`local_update` returns {_kind(found)}; due are two mappings, the parts to send and the memory")
    parts, memory = found
    for what, rows in (("part", parts), ("memory", memory)):
        for name, value in rows.items():
            if not isinstance(value, Tensor) or value.dim() < 1 or len(value) != jobs:
                raise Misuse(f"`local_update`: {what} `{name}` is {_kind(value)}; a row for each of {jobs} jobs is due")
    if not parts:
        raise Misuse("`local_update` sends nothing: its parts are empty")
    for name in memory.keys() - before.keys():
        raise Misuse(f"`local_update` returns memory `{name}`, which `start_local` does not declare (there {_listed(before)})")
    for name, rows in before.items():
        if name not in memory:
            raise Misuse(f"`local_update` leaves memory `{name}` out; return it as it was where it does not change")
        if memory[name].shape != rows.shape:
            raise Misuse(f"`local_update`: memory `{name}` is {_kind(memory[name])}, and was {_kind(rows)}")
    return dict(parts), dict(memory)


def state_of(found: Any, before: Mapping[str, Any], function: str) -> None:
    """What `merge` or `mix` returned. Raises ValueError where it is not the state it was given, with other numbers."""
    if not isinstance(found, Mapping):
        raise ValueError(f"`{function}` returns {_kind(found)}; the state is due, such as `state | {{'model': ...}}`")
    if found.keys() != before.keys():
        odd = sorted(found.keys() ^ before.keys())
        raise ValueError(f"`{function}` returns {_names(found)}, and the state has {_names(before)}: `{odd[0]}` is only in one of them")
    for name, rows in found.items():
        was = before[name]
        if isinstance(was, Tensor) and (not isinstance(rows, Tensor) or rows.shape != was.shape):
            raise ValueError(f"`{function}`: `{name}` becomes {_kind(rows)}, and was {_kind(was)}")
        if isinstance(was, Tensor) and rows.dtype != was.dtype:
            raise ValueError(f"`{function}`: `{name}` becomes {_numbers(rows)}, and was {_numbers(was)}")


def hint(error: Exception, live: int, jobs: int) -> None:
    """Notes at an error of `local_update` that rows of all jobs met those of the `live` ones still at work, or that rows which many share
    were written to, where that is so."""
    if "single memory location" in str(error):
        error.add_note(SHARED)
    if isinstance(error, RuntimeError | IndexError) and 0 < live < jobs and "size" in str(error):
        error.add_note(SHRINK)


def _kind(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _numbers(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _listed(rows: Mapping[str, Any]) -> str:
    return f"is {_names(rows)}" if rows else "is none"


def _names(rows: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in rows)
