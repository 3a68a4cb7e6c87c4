"""Randomness as a value: numbers are a function of a key (int64 tensor), never of a generator that others also use.

A key is made with `fold(seed, "purpose", node, turn, ...)`. All functions are elementwise over keys, so drawing for many keys at
once gives the same bits as drawing for each alone, and they may stand inside a traced or vmapped function. The hash is
splitmix64's finaliser (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators").
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Word = int | str | Tensor
Keys = TypeVar("Keys", Tensor, NDArray[np.int64])

_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same low 64 bits."""
    return ((value & _MASK) ^ (1 << 63)) - (1 << 63)


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


@lru_cache(maxsize=4096)
def _hash_text(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little", signed=True)


def _right(value: Keys, places: int) -> Keys:
    """Logical shift; the operator repeats the sign."""
    return (value >> places) & ((1 << (64 - places)) - 1)


def scramble(value: Keys) -> Keys:
    """One-to-one on int64, elementwise; a change of one bit changes half of the bits."""
    value = (value ^ _right(value, 30)) * _FIRST
    value = (value ^ _right(value, 27)) * _SECOND
    return value ^ _right(value, 31)


def fold(key: int | Tensor, *words: Word) -> Tensor:
    """int64: a new key from a key and words; tensors (of whole numbers) broadcast. Equal words in equal order give equal keys."""
    if not isinstance(key, Tensor):
        plain = _plain(words, Tensor)
        key, words = torch.tensor(_fold_numbers(key, words[:plain])), words[plain:]
    out = key
    for word in words:
        number = _hash_text(word) if isinstance(word, str) else word if isinstance(word, Tensor) else _signed(word)
        out = scramble(scramble(out + _GOLDEN) ^ number)
    return out


def _plain(words: Sequence[Any], kind: type) -> int:
    """How many words there are before the first of this kind."""
    return next((place for place, word in enumerate(words) if isinstance(word, kind)), len(words))


def _fold_numbers(key: int, words: Iterable[Any]) -> int:
    """`fold` of numbers and texts on Python's integers, several times as fast as on tensors of one number."""
    out = key & _MASK
    for word in words:
        number = _hash_text(word) if isinstance(word, str) else word
        out = _scramble_number(_scramble_number((out + _GOLDEN) & _MASK) ^ (number & _MASK))
    return _signed(out)


def _scramble_number(value: int) -> int:
    value = (value ^ (value >> 30)) * _FIRST & _MASK
    value = (value ^ (value >> 27)) * _SECOND & _MASK
    return value ^ (value >> 31)


def fold_array(key: int | NDArray[np.int64], *words: int | str | NDArray[np.int64]) -> NDArray[np.int64]:
    """`fold` for NumPy arrays (of one axis at least): the same numbers, several times as fast on short ones."""
    if not isinstance(key, np.ndarray):
        plain = _plain(words, np.ndarray)
        key, words = np.array([_fold_numbers(key, words[:plain])]), words[plain:]
    out: Any = key
    for word in words:
        number = _hash_text(word) if isinstance(word, str) else word if isinstance(word, np.ndarray) else _signed(word)
        out = scramble(scramble(out + _GOLDEN) ^ number)
    return np.asarray(out)


def bits(key: Tensor, count: int, start: int = 0) -> Tensor:
    """int64 [..., count]: uniform over all 64-bit patterns; the numbers from place `start` on."""
    return scramble(key[..., None] + _GOLDEN * torch.arange(start + 1, start + count + 1, device=key.device))


def bits_array(key: int, count: int) -> NDArray[np.int64]:
    """int64 [count]: `bits` of one key, which is a number, as a NumPy array: the same, several times as fast."""
    return scramble(key + _GOLDEN * np.arange(1, count + 1))


def uniform(key: Tensor, count: int) -> Tensor:
    """float32 [..., count]: multiples of 2^-24 in [0, 1)."""
    return _right(bits(key, count), 40).to(torch.float32) * 2.0**-24


def interior(key: Tensor, count: int) -> Tensor:
    """float64 [..., count]: odd multiples of 2^-54 in (0, 1), never an end: for logarithms, tails and inverted distributions."""
    return (_right(bits(key, count), 11).to(torch.float64) + 0.5) * 2.0**-53


def interior_array(keys: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """`interior` for NumPy arrays: the same numbers, several times as fast on short ones."""
    drawn = scramble(keys[..., None] + _GOLDEN * np.arange(1, count + 1))
    return np.asarray((_right(drawn, 11).astype(np.float64) + 0.5) * 2.0**-53)


def normal(key: Tensor, count: int) -> Tensor:
    """float32 [..., count]: standard normal (Box & Muller 1958, in float64); the first numbers do not depend on `count`."""
    pairs = interior(key, count + count % 2)
    radius = (-2 * pairs[..., 0::2].contiguous().log()).sqrt()
    angle = 2 * math.pi * pairs[..., 1::2].contiguous()
    both = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return both.flatten(-2)[..., :count].to(torch.float32)


def below(key: Tensor, count: int, high: int | Tensor) -> Tensor:
    """int64 [..., count]: whole numbers in [0, high); `high` broadcasts over keys. Bias is under high / 2^63."""
    limit = high[..., None] if isinstance(high, Tensor) else high
    return _right(bits(key, count), 1) % limit


def permutation(key: Tensor, count: int) -> Tensor:
    """int64 [..., count]: the numbers 0 to count - 1 in an order drawn for each key."""
    return bits(key, count).argsort(dim=-1, stable=True)


def coins(keys: NDArray[np.int64], chance: float | NDArray[np.float64]) -> NDArray[np.bool_]:
    """Does each key's one number of `uniform` lie below the chance, one or each key's? For NumPy arrays."""
    return np.asarray(_right(scramble(keys + _GOLDEN), 40) * 2.0**-24 < chance)


def distinct(keys: NDArray[np.int64], count: int, high: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [n, count]: for each key [n] so many different numbers in [0, high), each set of them as likely; high [n] is at least count.

    The order of a row is not by lot. Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance"): it costs count numbers a key.
    """
    chosen = np.empty((len(keys), count), dtype=np.int64)
    for place in range(count):
        last = high - count + place
        lot = _right(scramble(fold_array(keys, place) + _GOLDEN), 1) % (last + 1)  # as `below` draws one
        taken = (chosen[:, :place] == lot[:, None]).any(1)
        chosen[:, place] = np.where(taken, last, lot)
    return chosen
