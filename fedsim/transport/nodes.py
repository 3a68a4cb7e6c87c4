"""Numbers of nodes as they are written: `0..99`, `3,5,7`, or a word such as `auto` in their place."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LAST = 9_999_999  # the highest number a node may have
AUTO = "auto"
LONGEST, SHORT = 65_536, 30  # characters: at most read, and at most shown
_ITEM = re.compile(r"(0|[1-9][0-9]{0,9})(?:\.\.(0|[1-9][0-9]{0,9}))?")


@dataclass(frozen=True)
class Nodes:
    """Nodes as ranges in rising order that don't touch: a million in a row cost what one costs."""

    ranges: tuple[range, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[int | range]) -> "Nodes":
        """The nodes of numbers and ranges, in any order; what stands twice is there once."""
        found: list[range] = []
        for part in sorted((part if isinstance(part, range) else range(part, part + 1) for part in parts), key=lambda part: part.start):
            if found and part.start <= found[-1].stop:
                found[-1] = range(found[-1].start, max(found[-1].stop, part.stop))
            elif part:
                found.append(part)
        return cls(tuple(found))

    def __contains__(self, node: int) -> bool:
        return any(node in part for part in self.ranges)

    def __iter__(self) -> Iterator[int]:
        return (node for part in self.ranges for node in part)

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __str__(self) -> str:
        return ",".join(f"{part.start}" if len(part) == 1 else f"{part.start}..{part[-1]}" for part in self.ranges)

    @property
    def named(self) -> str:
        """`node 3`, `nodes 0..24`, or the first few."""
        return f"node{'s' if len(self) != 1 else ''} {self.short}"

    @property
    def short(self) -> str:
        text = str(self)
        return text if len(text) <= SHORT else f"{text[:SHORT].rpartition(',')[0]} ... ({len(self):,})"

    def without(self, others: "Nodes") -> "Nodes":
        """The nodes of these that the others lack."""
        left = list(self.ranges)
        for cut in others.ranges:
            left = [piece for part in left for piece in (part[: max(0, cut.start - part.start)], part[max(0, cut.stop - part.start) :])]
        return Nodes.of(left)


def parse(text: str, word: str = AUTO) -> Nodes | None:
    """The nodes that a text names; None where it is the word. Raises ValueError with what is wrong."""
    if text == word:
        return None
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters; at most {LONGEST:,} are read")
    return Nodes.of(_range(item.strip(), word) for item in text.split(","))


def _range(item: str, word: str) -> range:
    found = _ITEM.fullmatch(item)
    if not found:
        raise ValueError(f"`{item[:40]}`: a node, a range such as `0..99` (both ends included), or `{word}` is due")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise ValueError(f"`{item}` runs backwards; `{last}..{first}` is due")
    if last > LAST:
        raise ValueError(f"`{item}`: the highest number of a node is {LAST}")
    return range(first, last + 1)
