"""Files of measured devices in FedScale's two formats, as its pickles or as JSON with the same content.

Capacity: {client: {"computation": ms of inference a sample, "communication": kbit/s}}. A training step costs about three inferences
(forward, and backward at twice the price). Availability: {client: {"active": [...], "inactive": [...], "finish_time": s, ...}}: a
client is there from active[i] to inactive[i], in seconds, and the whole repeats after finish_time (Lai et al. 2022, "FedScale:
Benchmarking Model and System Performance of Federated Learning at Scale", https://arxiv.org/abs/2105.11367, and its client manager).
"""

import json
import math
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim.base.clock import Ints
from fedsim.base.keys import fold, permutation
from fedsim.settings.anchored import roots

Floats = NDArray[np.float64]


class _Plain(pickle.Unpickler):
    """Reads plain values only: a pickle that names any class or function could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names `{module}.{name}`; plain numbers, texts, lists and mappings are due")


def find_trace(name: str, base: Path | None = None) -> Path:
    """The file beside the scenario (`base`) or under FEDSIM_DATA. Raises ValueError where there is none."""
    places, elsewhere = roots(base or Path())
    for root in places:
        if (found := root / Path(name).expanduser()).is_file():
            return found
    raise ValueError(f"no file `{name}`: looked for beside the scenario{elsewhere}")


def read_trace(name: str) -> dict[str, Any]:
    """{client: its entry}, in the order of the file. Raises ValueError, naming the file, where it is none."""
    path = find_trace(name)
    try:
        with path.open("rb") as stream:
            first = stream.read(1)
            stream.seek(0)
            content = json.load(stream) if first in b"{ \t\r\n[" else _Plain(stream).load()
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        OverflowError,
        RecursionError,
        IndexError,
        KeyError,
        AttributeError,
        TypeError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"{path} can't be read as JSON or as a plain pickle: {str(error) or type(error).__name__}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: a mapping of clients is due, and at least one")
    return {str(client): entry for client, entry in content.items()}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def device_numbers(name: str, field: str) -> Floats:
    """float64 [devices]: one number of each device. Raises ValueError, naming file and client, where it lacks or is not above 0."""
    found = []
    for client, entry in read_trace(name).items():
        if not isinstance(entry, dict) or field not in entry:
            has = f"; it has {', '.join(map(str, entry))}" if isinstance(entry, dict) and entry else ""
            raise ValueError(f"{name}: client `{client}`: no `{field}`{has}")
        if not _number(entry[field]) or entry[field] <= 0:
            raise ValueError(f"{name}: client `{client}`: `{field}` is {entry[field]!r}; a number above 0 is due")
        found.append(float(entry[field]))
    return np.array(found)


class Stays(NamedTuple):
    """When clients are there, in seconds: client c in [start[i], end[i]) for first[c] <= i < first[c + 1], again after each period[c]."""

    start: Floats
    end: Floats
    first: Ints
    period: Floats


def stays(name: str) -> Stays:
    """Of an availability trace. Raises ValueError, naming file and client, where an entry has gaps or contradicts itself."""
    start: list[float] = []
    end: list[float] = []
    first, period = [0], []
    for client, entry in read_trace(name).items():
        if wrong := _mistake(entry):
            raise ValueError(f"{name}: client `{client}`: {wrong}")
        for begin, stop in zip(entry["active"], entry["inactive"], strict=True):
            if len(end) > first[-1] and begin == end[-1]:
                end[-1] = float(stop)  # it did not leave
            elif stop > begin:
                start.append(float(begin))
                end.append(float(stop))
        first.append(len(start))
        period.append(float(entry["finish_time"]))
    return Stays(np.array(start), np.array(end), np.array(first, dtype=np.int64), np.array(period))


def _mistake(entry: Any) -> str:
    """What is wrong with a client's entry of an availability trace, or nothing."""
    if not isinstance(entry, dict):
        return f"a mapping is due, not {type(entry).__name__}"
    if missing := [key for key in ("active", "inactive", "finish_time") if key not in entry]:
        return f"no `{missing[0]}`"
    active, inactive, finish = entry["active"], entry["inactive"], entry["finish_time"]
    if not _number(finish) or finish <= 0:
        return f"`finish_time` is {finish!r}; a number above 0 is due"
    for key, times in (("active", active), ("inactive", inactive)):
        if not isinstance(times, list | tuple):
            return f"`{key}` is no list"
        if bad := [time for time in times if not _number(time) or time < 0]:
            return f"`{key}` has {bad[0]!r}; times of 0 or more are due"
    if len(active) != len(inactive):
        return f"{len(active)} times in `active`, but {len(inactive)} in `inactive`: the trace has a gap"
    last = 0.0
    for begin, stop in zip(active, inactive, strict=True):
        if begin < last:
            return f"it is active at {begin:g} s, before {last:g} s when it was last inactive: times must rise"
        if stop < begin:
            return f"it is inactive at {stop:g} s, before it is active at {begin:g} s"
        last = stop
    return f"it is inactive at {last:g} s, after its `finish_time` of {finish:g} s" if last > finish else ""


def lots(name: str, lot: int, count: int, nodes: range) -> Ints:
    """int64 [len(nodes)]: which of `count` clients of a file each node takes. A lot for each `count` nodes, so none is taken twice before
    all are; keyed by the file's name and the lot's number, so that all settings of a node come from one client, in all seeds."""
    key, ids = fold(lot, "trace", Path(name).name), np.arange(nodes.start, nodes.stop)
    blocks = range(nodes.start // count, -(-nodes.stop // count))
    order = permutation(fold(key, torch.arange(blocks.start, max(blocks.start + 1, blocks.stop))), count).numpy()
    taken: Ints = order[ids // count - blocks.start, ids % count]
    return taken
