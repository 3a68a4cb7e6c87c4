"""Who is there: settings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.clock import FOREVER, Ints, counted
from fedsim.base.keys import below, coins, fold, fold_array, interior
from fedsim.settings.anchored import anchored_file
from fedsim.settings.part import Part, setting
from fedsim.settings.traces import lots, stays
from fedsim.settings.values import PerNode, Population, Share, Time
from fedsim.world.calendar import Calendar, Coins, Windows

DAY = Fraction(86_400)


class Availability(Part):
    """Who is there: by the server's versions (`present`), or by the clock (a `Scheduled` one has a calendar)."""

    slot: ClassVar[str] = "availability"
    default: ClassVar[str] = "always"
    certain: ClassVar[bool] = False

    def present(self, people: Population, key: Tensor, version: int) -> NDArray[np.bool_]:
        """bool [nodes] while the server's model has this version; the key is the same for all versions."""
        raise NotImplementedError


@dataclass(frozen=True)
class Always(Availability):
    """Everybody, at any time."""

    certain: ClassVar[bool] = True

    def present(self, people: Population, key: Tensor, version: int) -> NDArray[np.bool_]:
        return np.ones(people.nodes, dtype=bool)


@dataclass(frozen=True)
class Bernoulli(Availability):
    """Each node by its own coin, tossed anew at each merge. No method knows the chance: `schedule.sampling` is for what it knows."""

    chance: PerNode[Share] = setting(help="probability of being there", ge=0, le=1)

    def present(self, people: Population, key: Tensor, version: int) -> NDArray[np.bool_]:
        chance = self.chance.shares(people, fold(key, "availability.chance"))
        return coins(fold_array(int(key), "present", version, np.arange(people.nodes)), chance)


@dataclass(frozen=True, kw_only=True)
class Scheduled(Availability):
    """Who is there by the clock."""

    abstract: ClassVar[bool] = True

    leaving: Literal["finish", "drop"] = setting("finish", "who leaves during a job finishes it first, or drops it at that moment")

    def times(self, people: Population) -> list[int]:
        """Denominators of its exact times, for the length of a tick."""
        return []

    def calendar(self, people: Population, key: Tensor, per_second: int) -> Calendar:
        """Raises ValueError where settings do not fit the population."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Diurnal(Scheduled):
    """Every day at the same hours: each node has one stay of share x 24 h that holds the peak, begun at a time before it that is its own.

    In one time zone all are there at the peak and a share 1 - d / (share x 24 h) at a distance d from it (up to half of the day); over
    the day `share` on average. Zones are drawn for each node, evenly; the clock starts at midnight in the first.
    """

    share: PerNode[Share] = setting(help="part of the day that a node is there", gt=0, le=1)
    peak: Time = setting(Fraction(2 * 3600), "time of the day, local, when most are there", ge=0, lt=86_400)
    zones: int = setting(1, "time zones, evenly over the day", ge=1, le=86_400)

    def times(self, people: Population) -> list[int]:
        return [(self.peak * 10**9).denominator]

    def calendar(self, people: Population, key: Tensor, per_second: int) -> Calendar:
        day, nodes = int(DAY * per_second), torch.arange(people.nodes)
        share = self.share.shares(people, fold(key, "availability.share"))
        length = np.maximum(np.rint(share * day), 1).astype(np.int64)
        before = interior(fold(key, "availability.habit", nodes), 1)[:, 0].numpy() * length
        zone = below(fold(key, "availability.zone", nodes), 1, self.zones)[:, 0].numpy()
        start = (round(self.peak * per_second) - before.astype(np.int64) - zone * day // self.zones) % day
        return daily(start, length, day)


def daily(start: Ints, length: Ints, day: int) -> Windows:
    """One stay a day of each node, from `start` [n] for `length` [n] <= day; over midnight it is two windows."""
    over = np.maximum(start + length - day, 0)
    begin, end = np.stack([start * 0, start], 1), np.stack([over, np.minimum(start + length, day)], 1)
    used = np.stack([over > 0, length > 0], 1)
    whole = length == day
    begin[whole, 1], end[whole, 1], used[whole, 0] = 0, day, False
    first = np.r_[0, used.sum(1).cumsum()]
    return Windows(begin[used], end[used], first, np.full(len(start), day))


@dataclass(frozen=True, kw_only=True)
class Markov(Scheduled):
    """Stays and absences of exponential length, without memory; a share on / (on + off) is there at any time."""

    on: PerNode[Time] = setting(help="mean length of a stay", gt=0)
    off: PerNode[Time] = setting(help="mean length of an absence", gt=0)

    def calendar(self, people: Population, key: Tensor, per_second: int) -> Calendar:
        on, off = (
            np.maximum(1, value.ticks(people, fold(key, f"availability.{name}"), per_second))
            for name, value in (("on", self.on), ("off", self.off))
        )
        return Coins(on, off, fold(key, "availability.markov"))


@dataclass(frozen=True, kw_only=True)
class Timetable(Scheduled):
    """Written times at which nodes join and leave; others are there from the start to the end.

    Nodes are a number, `4..7`, a group, `even`, `odd` or `all`. Nobody leaves before it joins.
    """

    joins: Mapping[str, Time] = setting(factory=dict, help="nodes to the time at which they come")
    leaves: Mapping[str, Time] = setting(factory=dict, help="nodes to the time at which they go")

    def times(self, people: Population) -> list[int]:
        return [(time * 10**9).denominator for time in (*self.joins.values(), *self.leaves.values())]

    def calendar(self, people: Population, key: Tensor, per_second: int) -> Calendar:
        join, leave = np.zeros(people.nodes, dtype=np.int64), np.full(people.nodes, FOREVER)
        for times, name, out in ((self.joins, "joins", join), (self.leaves, "leaves", leave)):
            seen = np.zeros(people.nodes, dtype=bool)
            for text, time in times.items():
                nodes = chosen(text, people)
                if seen[nodes].any():
                    raise ValueError(f"`{name}` names node {nodes[seen[nodes]][0]} twice")
                seen[nodes] = True
                out[nodes] = _counted(name, text, time, per_second)
        if len(wrong := np.flatnonzero(leave < join)):
            leaves, joins = (f"{times[wrong[0]] / per_second:g} s" for times in (leave, join))
            raise ValueError(f"node {wrong[0]} leaves at {leaves}, before it joins at {joins}")
        there = leave > join
        return Windows(join[there], leave[there], np.r_[0, there.cumsum()], np.full(people.nodes, FOREVER))


def _counted(name: str, text: str, time: Fraction, per_second: int) -> int:
    try:
        return counted(time, per_second)
    except ValueError as error:
        raise ValueError(f"{name}.{text}: {error}") from error


def chosen(text: str, people: Population) -> Ints:
    """Node ids that a text means: `3`, `0..9`, a group, `even`, `odd` or `all`. Raises ValueError where it means none."""
    everyone = np.arange(people.nodes)
    words = {"all": everyone, "even": everyone[::2], "odd": everyone[1::2]}
    words |= {name: np.arange(ids.start, ids.stop) for name, ids in people.groups.items()}
    found = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if text not in words and not found:
        raise ValueError(f"`{text}` means no nodes; write a number, `0..9`, {', '.join(f'`{word}`' for word in words)}")
    if not found:
        return words[text]
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first or last >= people.nodes:
        raise ValueError(f"`{text}` of {people.nodes} nodes, 0 to {people.nodes - 1}")
    return everyone[first : last + 1]


@dataclass(frozen=True, kw_only=True)
class TraceAvailability(Scheduled):
    """Recorded stays of a file in FedScale's availability format, as its pickle or as JSON; see `fedsim.settings.traces`.

    Nodes take clients of the file by a lot that is the same in all seeds, each client once before any is taken again.
    """

    name: ClassVar[str] = "trace"
    source: ClassVar[str] = "Lai et al. 2022"

    file: str = setting(help="path, beside the scenario or under FEDSIM_DATA")
    lot: int = setting(0, "another number gives the nodes other clients", ge=0)

    def calendar(self, people: Population, key: Tensor, per_second: int) -> Calendar:
        start, end, first, period = stays(self.file)
        client = lots(self.file, self.lot, len(period), range(people.nodes))
        count = (first[1:] - first[:-1])[client]
        ends = count.cumsum()
        at = np.arange(ends[-1]) - np.repeat(ends - count, count) + np.repeat(first[client], count)
        begin, stop = (np.rint(times[at] * per_second).astype(np.int64) for times in (start, end))
        return Windows(begin, stop, np.r_[0, ends], np.rint(period[client] * per_second).astype(np.int64))

    def anchored(self, base: Path) -> "TraceAvailability":
        """The same wherever the scenario lies: a file beside it by its absolute path."""
        return replace(self, file=anchored_file(self.file, base))
