"""Byte-pair pieces as sentencepiece makes them (Kudo & Richardson 2018), from a table of pieces and scores."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.base.errors import SettingError
from fedsim.data.arrays import complaint
from fedsim.data.files import find_file
from fedsim.data.source import read_npz

BEGIN = 1
BYTES = 3  # the piece of byte b is number b + 3, for what has no piece of its own
_WORDS = re.compile(r" ?[^ ]+| +(?= )| ")  # no piece crosses the beginning of a word


@dataclass(frozen=True)
class Wordpieces:
    """Pieces by number, the first three for unknown, beginning and end; of pieces that could be merged the one with most score is first."""

    pieces: tuple[bytes, ...]
    scores: tuple[float, ...] = field(repr=False)

    @cached_property
    def number(self) -> dict[bytes, int]:
        return {piece: number for number, piece in enumerate(self.pieces) if number >= BYTES + 256}

    def encode(self, text: str) -> NDArray[np.int64]:
        """Numbers of the pieces of the text, as if a space stood before it; no beginning and no end."""
        found = [number for word in _WORDS.findall(" " + text) for number in self._known(word)]
        return np.array(found, dtype=np.int64)

    @cached_property
    def _known(self) -> Callable[[str], tuple[int, ...]]:
        """`_word`, with what it said of the last words; not by the tokenizer itself, whose hash takes longer than most words."""
        return lru_cache(maxsize=1 << 16)(self._word)

    def _word(self, word: str) -> tuple[int, ...]:
        parts = [character.encode() for character in word]
        while True:
            merged = [self.number.get(a + b, -1) for a, b in pairwise(parts)]
            best = max(range(len(merged)), key=lambda at: (self.scores[merged[at]] if merged[at] >= 0 else -np.inf, -at), default=-1)
            if best < 0 or merged[best] < 0:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return tuple(number for part in parts for number in self._numbers(part))

    def _numbers(self, part: bytes) -> list[int]:
        return [self.number[part]] if part in self.number else [BYTES + byte for byte in part]


def prompted(texts: Sequence[str], prompt: str, known: Wordpieces, length: int) -> NDArray[np.int64]:
    """int64 [N, length]: beginning, text and prompt; texts are cut so that all fits, 0 fills up. Raises SettingError where none does."""
    end = known.encode(prompt) if prompt else np.zeros(0, dtype=np.int64)
    if length < len(end) + 2:
        raise SettingError("task.data.length", f"{length} tokens have no room for a beginning, a text and a prompt of {len(end)}")
    out = np.zeros((len(texts), length), dtype=np.int64)
    for row, text in zip(out, texts, strict=True):
        found = np.concatenate([[BEGIN], known.encode(text)[: length - 1 - len(end)], end])
        row[: len(found)] = found
    return out


def read_wordpieces(name: str, base: Path = Path()) -> Wordpieces:
    """Those of an .npz with `tokenizer_bytes`, `tokenizer_lengths` and `tokenizer_scores`. Raises SettingError where it has none."""
    path = find_file(name, base)
    found: Mapping[str, Any] = read_npz(path)
    if missing := [key for key in ("tokenizer_bytes", "tokenizer_lengths", "tokenizer_scores") if key not in found]:
        raise complaint(f"{path.name} has no array {missing[0]}, so no pieces")
    rows, lengths, scores = (found[f"tokenizer_{part}"] for part in ("bytes", "lengths", "scores"))
    pieces = tuple(bytes(row[:length]) for row, length in zip(rows, lengths, strict=True))
    return Wordpieces(pieces, tuple(scores.tolist()))
