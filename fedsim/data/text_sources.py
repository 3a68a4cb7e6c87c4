"""Sources of text: labelled texts from a table, and a corpus whose next tokens are to be foretold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np

from fedsim.base.errors import SettingError
from fedsim.data.arrays import Array, Arrays, complaint
from fedsim.data.files import anchored, find_file
from fedsim.data.source import Source, read_npz
from fedsim.data.sparse import check_size
from fedsim.data.table import check_names, texts
from fedsim.data.text import Tokens as Pieces
from fedsim.data.text import encoder, hashed, numbered, padded, pieces
from fedsim.data.unpacking import check_text
from fedsim.data.wordpieces import Wordpieces, prompted, read_wordpieces
from fedsim.settings.part import setting

Known = dict[str, int] | Wordpieces | None  # what makes numbers of texts


@dataclass(frozen=True)
class Tsv(Source):
    """Labelled texts: a table of columns parted by tabs, their names in its first line. Other columns are natural ids.

    A folder is its train.tsv, and its test.tsv is the test set. As `hashed`, a text is a bag of words: numbers for any model. Otherwise
    it is token numbers: 0 fills up, 1 is unknown (bytes count from 1).
    """

    file: str = setting(help="path, file's stem or folder")
    test: str | None = setting(None, "a second table, which is the test set")
    tokens: Literal["hashed", "words", "characters", "bytes", "pieces"] = setting("hashed", "what a text is made of")
    pieces: str = setting("stories260k", "an .npz with the pieces of `pieces`, as its model has them")
    prompt: str = setting("", "put behind each text, also behind one that is cut; with `pieces`")
    features: int = setting(1024, "of `hashed`: places that words are counted in", ge=1, le=10_000_000)
    length: int = setting(64, "tokens a text, cut or filled up", ge=1, le=100_000)
    vocabulary: int = setting(10_000, "most frequent words or characters that are told apart", ge=1, le=10_000_000)
    text: str = setting("text", "column of the texts")
    label: str = setting("label", "column of the labels")

    def load(self, base: Path) -> Arrays:
        path = find_file(self.file, base, (".tsv",))
        beside = path.with_name("test.tsv")
        test = find_file(self.test, base, (".tsv",)) if self.test else beside if path.name == "train.tsv" and beside.is_file() else None
        train = _table(path, self.text, self.label)
        tests = None if test is None else _table(test, self.text, self.label)
        if self.prompt and self.tokens != "pieces":
            raise SettingError("task.data.prompt", "is put behind texts of `tokens: pieces` only")
        known: Known = None
        if self.tokens == "pieces":
            known = read_wordpieces(self.pieces, base)
            size = len(known.pieces)
        elif self.tokens == "hashed":
            check_size(len(train[self.text]), self.features, path.name)
            size = 0
        else:
            known, size = encoder(train[self.text].tolist(), self.tokens, self.vocabulary)
        x, y = self._x(train, known), _labels(train[self.label])
        keys = {name: column for name, column in train.items() if name not in (self.text, self.label)}
        if tests is None:
            return Arrays(x, y, keys=keys, vocabulary=size)
        test_keys = {name: tests[name] for name in keys if name in tests}
        return Arrays(x, y, self._x(tests, known), _labels(tests[self.label]), keys, test_keys, size)

    def _x(self, table: Mapping[str, Array], known: Known) -> Array:
        given: list[str] = table[self.text].tolist()
        if isinstance(known, Wordpieces):
            return prompted(given, self.prompt, known, self.length)
        if self.tokens == "hashed":
            return hashed(given, self.features)
        return padded(given, cast(Pieces, self.tokens), known, self.length, len(given))

    def anchored(self, base: Path) -> "Tsv":
        kinds = (".tsv",)
        return replace(self, file=anchored(self.file, base, kinds), test=self.test and anchored(self.test, base, kinds))


def _lines(path: Path) -> list[str]:
    check_text(path)
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise complaint(f"{path} can't be read as text in UTF-8: {error}") from error


def _table(path: Path, *needed: str) -> dict[str, Array]:
    """Columns of text by name. Raises SettingError where a line has another number of columns, or a needed one is missing."""
    head, *lines = (line.removesuffix("\r") for line in _lines(path))
    names = head.split("\t")
    if missing := [name for name in needed if name not in names]:
        found = f"its first line names: {', '.join(names)}"
        if len(names) == 1 and (sign := next((sign for sign in ",;|" if sign in head), "")):
            found = f"its first line has no tab, but `{sign}`, and columns are to be parted by tabs: {head[:60]}"
        raise complaint(f"{path.name} has no column `{missing[0]}` ({found})")
    check_names(names, path.name)
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, 2) if line]
    for number, row in rows:
        if len(row) != len(names):
            raise complaint(f"{path.name}, line {number}: {len(names)} columns parted by tabs are due ({', '.join(names)}), not {len(row)}")
    if not rows:
        raise complaint(f"{path.name} has no line below its names")
    return {name: texts([row[place] for _, row in rows], path.name, name) for place, name in enumerate(names)}


def _labels(column: Array) -> Array:
    """Whole numbers where all are, else texts."""
    try:
        return column.astype(np.int64)
    except ValueError:
        return column


@dataclass(frozen=True)
class Tokens(Source):
    """A corpus cut into sequences of `length`, whose targets are the next tokens; the last fifth of each speaker's is the test set.

    An .npz has `tokens`, and `offsets` where each speaker's begin (and the end), perhaps `user_names`; token numbers are moved up by 1,
    as 0 fills up. A text file is one speaker's. The ids are called `speaker`.
    """

    source: ClassVar[str] = "Caldas et al. 2018, LEAF, arXiv 1812.01097 (Shakespeare by role)"
    kinds: ClassVar[tuple[str, ...]] = (".npz", ".txt")

    file: str = setting(help="path, file's stem or folder")
    length: int = setting(80, "tokens a sequence", ge=1, le=100_000)
    tokens: Literal["words", "characters", "bytes", "pieces"] = setting("characters", "what a text file is made of")
    pieces: str = setting("stories260k", "an .npz with the pieces of `pieces`, as its model has them")
    vocabulary: int = setting(10_000, "most frequent words or characters of a text file that are told apart", ge=1, le=10_000_000)

    def load(self, base: Path) -> Arrays:
        path = find_file(self.file, base, self.kinds)
        if path.suffix == ".npz":
            stream, ends, names, size = _corpus(read_npz(path), path.name)
        else:
            known = read_wordpieces(self.pieces, base) if self.tokens == "pieces" else None
            stream, size = _text(path, cast(Pieces, self.tokens), self.vocabulary) if known is None else _pieces(path, known)
            ends, names = np.array([0, len(stream)]), np.array([path.stem])
        first, owner = _sequences(ends, self.length)
        if not len(first):
            raise complaint(f"{path.name}: no speaker has two tokens, and a next token is what is foretold")
        place = first[:, None] + np.arange(self.length + 1)
        there = place < ends[owner + 1][:, None]
        whole = np.where(there, stream[np.minimum(place, len(stream) - 1)], 0)
        x, y = np.where(there[:, 1:], whole[:, :-1], 0), np.where(there[:, 1:], whole[:, 1:], -1)
        count = np.bincount(owner, minlength=len(names))
        test = np.arange(len(owner)) >= (np.cumsum(count) - count // 5)[owner]
        if not test.any():
            raise complaint(f"{path.name}: no speaker has five sequences of {self.length} tokens, so none is left for testing")
        speaker = names[owner]
        return Arrays(x[~test], y[~test], x[test], y[test], {"speaker": speaker[~test]}, {"speaker": speaker[test]}, size)

    def anchored(self, base: Path) -> "Tokens":
        return replace(self, file=anchored(self.file, base, self.kinds))


def _sequences(ends: Array, length: int) -> tuple[Array, Array]:
    """Where sequences begin and whose they are, int64 [N]; the last of a speaker may be shorter, each has a next token."""
    count = np.maximum(-(-(np.diff(ends) - 1) // length), 0)
    owner = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return ends[owner] + nth * length, owner


def _pieces(path: Path, known: Wordpieces) -> tuple[Array, int]:
    return known.encode("\n".join(_lines(path))), len(known.pieces)


def _text(path: Path, tokens: Pieces, most: int) -> tuple[Array, int]:
    text = "\n".join(_lines(path))
    known, size = encoder([text], tokens, most)
    return numbered(pieces(text, tokens), known), size


def _corpus(found: Mapping[str, Array], origin: str) -> tuple[Array, Array, Array, int]:
    """Token numbers from 1, ends, names and the number of token numbers."""
    if "tokens" not in found:
        raise complaint(f"{origin} has no array tokens (it has: {', '.join(found) or 'none'})")
    tokens = found["tokens"]
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not len(tokens) or tokens.min() < 0:
        raise complaint(f"{origin}: tokens are one row of whole numbers from 0, not {tokens.dtype} of shape {list(tokens.shape)}")
    ends = found.get("offsets", np.array([0, len(tokens)]))
    if ends.dtype.kind not in "iu" or ends.ndim != 1 or len(ends) < 2 or ends[0] or ends[-1] != len(tokens) or (np.diff(ends) < 0).any():
        raise complaint(f"{origin}: offsets do not rise from 0 to the {len(tokens)} tokens")
    names, vocabulary = found.get("user_names", np.arange(len(ends) - 1)), found.get("vocab", np.arange(0))
    if names.shape != (len(ends) - 1,):
        raise complaint(f"{origin}: {names.size} user_names for {len(ends) - 1} speakers")
    if vocabulary.ndim != 1:
        raise complaint(f"{origin}: vocab is one row of pieces, not {vocabulary.dtype} of shape {list(vocabulary.shape)}")
    size = max(int(tokens.max()) + 1, len(vocabulary)) + 1
    return tokens.astype(np.int64) + 1, ends.astype(np.int64), names, size
