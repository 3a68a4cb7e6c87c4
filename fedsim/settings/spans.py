"""Ranges of node ids as keys: `0..24` with both ends, or `7` alone."""

import re
from collections.abc import Iterable


def span(word: str) -> range | None:
    """The nodes that a key names; None for a word that names none so."""
    found = re.fullmatch(r"(0|[1-9]\d{0,9})(?:\.\.(0|[1-9]\d{0,9}))?", word)
    return range(int(found[1]), int(found[2] or found[1]) + 1) if found else None


def covering(words: Iterable[str], nodes: int) -> dict[str, range] | None:
    """The nodes of each key, where all keys are ranges; None where none is. Raises ValueError where these don't name each node once."""
    spans = {word: ids for word in words if (ids := span(word)) is not None}
    if not spans:
        return None
    at = 0
    for word, ids in sorted(spans.items(), key=lambda item: item[1].start):
        if not ids:
            raise ValueError(f"`{word}` holds nothing; a range goes up")
        if ids.start != at:
            what = f"node {ids.start} is named twice" if ids.start < at else f"no value for node {at}"
            raise ValueError(f"{what}; ranges have each of the {nodes} nodes once")
        at = ids.stop
    if at != nodes:
        what = f"no value for node {at}" if at < nodes else f"node {at - 1} of {nodes} (the first is 0)"
        raise ValueError(f"{what}; ranges have each of the {nodes} nodes once")
    return spans
