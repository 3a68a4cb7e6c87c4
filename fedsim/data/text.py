"""Texts as arrays: words, characters or bytes as token numbers, or a bag of hashed words. Nothing here depends on a seed."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = Literal["words", "characters", "bytes"]
Ints = NDArray[np.int64]

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"\w+|[^\w\s]")


def pieces(text: str, tokens: Tokens) -> Sequence[str] | bytes:
    """Lower-case words and signs, characters, or bytes of the text in UTF-8."""
    if tokens == "words":
        return _WORD.findall(text.lower())
    return text if tokens == "characters" else text.encode()


def vocabulary_of(texts: Iterable[Sequence[str]], most: int) -> dict[str, int]:
    """Numbers, from 2, of the most frequent pieces; equal ones in the order of the alphabet."""
    counts = Counter(chain.from_iterable(texts))
    frequent = sorted(counts, key=lambda piece: (-counts[piece], piece))[:most]
    return {piece: number for number, piece in enumerate(frequent, UNKNOWN + 1)}


def numbered(text: Sequence[str] | bytes, known: dict[str, int] | None) -> Ints:
    """int64 [pieces]: bytes count from 1 (0 is padding), other pieces by the vocabulary, UNKNOWN where they are not in it."""
    if known is None:
        return np.frombuffer(bytes(text), dtype=np.uint8).astype(np.int64) + 1  # type: ignore[arg-type]
    return np.array([known.get(str(piece), UNKNOWN) for piece in text], dtype=np.int64)


def encoder(texts: Iterable[str], tokens: Tokens, most: int) -> tuple[dict[str, int] | None, int]:
    """What `numbered` needs to know, and how many token numbers there are."""
    if tokens == "bytes":
        return None, 257
    known = vocabulary_of((pieces(text, tokens) for text in texts), most)  # type: ignore[misc]
    return known, len(known) + UNKNOWN + 1


def padded(texts: Iterable[str], tokens: Tokens, known: dict[str, int] | None, length: int, count: int) -> Ints:
    """int64 [count, length]: token numbers, cut to the length or filled up with PADDING."""
    out = np.full((count, length), PADDING, dtype=np.int64)
    for row, text in zip(out, texts, strict=True):
        found = numbered(pieces(text, tokens)[:length], known)
        row[: len(found)] = found
    return out


def hashed(texts: Sequence[str], features: int) -> NDArray[np.float32]:
    """float32 [N, features]: how often words occur whose CRC-32 leaves this remainder, each row scaled to length 1."""
    words = [pieces(text, "words") for text in texts]
    place = {word: zlib.crc32(str(word).encode()) % features for word in set(chain.from_iterable(words))}
    rows = np.repeat(np.arange(len(texts)), [len(own) for own in words])
    columns = np.fromiter((place[word] for word in chain.from_iterable(words)), dtype=np.int64, count=len(rows))
    out = np.zeros((len(texts), features), dtype=np.float32)
    np.add.at(out, (rows, columns), 1.0)
    out /= np.maximum(np.sqrt((out * out).sum(1, keepdims=True)), 1e-12)
    return out
