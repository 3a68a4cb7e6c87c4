"""Texts, corpora, sparse tables and time series as arrays, by hand."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import TEXT, refused, simulate, write

from fedsim.base.errors import SettingError
from fedsim.data import sparse
from fedsim.data.arrays import Arrays
from fedsim.data.source import Source
from fedsim.data.sources import Npz, source_for
from fedsim.data.sparse import densified
from fedsim.data.tabular import Table
from fedsim.data.text import hashed, pieces, vocabulary_of
from fedsim.data.text_sources import Tokens, Tsv
from fedsim.data.windows import Windows
from fedsim.scenario import load


def put(file: Path, text: str) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


# Sparse tables

TABLE: dict[str, Any] = {
    "data": np.array([1.0]),
    "indices": np.array([0, 2, 2, 1]),
    "indptr": np.array([0, 2, 2, 4]),
    "shape": np.array([3, 4]),
}


def test_a_sparse_table_becomes_dense() -> None:
    found = densified(TABLE | {"y": np.array([-1, 1, 1])}, "a")
    assert found.keys() == {"x", "y"} and found["x"].dtype == np.float32
    assert found["x"].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    valued = TABLE | {"data": np.array([3, 4, 5, 6])}
    assert densified(valued, "a")["x"].tolist() == [[3, 0, 4, 0], [0, 0, 0, 0], [0, 6, 5, 0]]
    plain = {name: array for name, array in TABLE.items() if name != "shape"}
    assert densified(plain, "a")["x"].shape == (3, 3)
    both = plain | {f"{name}_test": array for name, array in TABLE.items()}
    assert {name: x.shape for name, x in densified(both, "a").items()} == {"x": (3, 4), "x_test": (3, 4)}  # of the widest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"indptr": np.array([0, 3, 2, 4])}, "indptr does not rise from 0 to the 4 indices"),
        ({"indptr": np.array([0, 2, 3])}, "indptr does not rise"),
        ({"indices": np.array([0, 2, 2, 9])}, r"indices up to 9, and shape \[3, 4\]"),
        ({"indices": np.array([0, -1, 2, 1])}, "indices up to 2"),
        ({"indices": np.array([0.5, 2, 2, 1])}, "indices and indptr are no whole numbers"),
        ({"data": np.array([1.0, 2.0])}, "2 data for 4 indices"),
        ({"shape": np.array([7, 4])}, "indptr has 3 rows"),
    ],
)
def test_broken_sparse_tables(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=f"task.data: a: broken sparse table: {said}"):
        densified(TABLE | changes, "a")


def test_a_sparse_table_too_large_says_how_large(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = TABLE | {"shape": np.array([3, 10**9])}
    with pytest.raises(SettingError, match=r"a: 3 samples of 1,000,000,000 numbers take 11.2 GiB, and at most 2 GiB are made"):
        densified(wide, "a")
    monkeypatch.setattr(sparse, "BUDGET", 47)
    with pytest.raises(SettingError, match="3 samples of 4 numbers"):
        densified(TABLE, "a")


# Labelled texts

ROWS = "label\ttext\tuser\n1\tGood, good FUN\tann\n0\tbad\tbob\n1\tfun bad? good\tann\n"


def test_a_text_is_words_characters_or_bytes() -> None:
    assert pieces("It's FUN!", "words") == ["it", "'", "s", "fun", "!"]
    assert [*pieces("aé", "bytes")] == [97, 195, 169]
    assert vocabulary_of([["b", "a"], ["c", "a", "c"]], 2) == {"a": 2, "c": 3}


def test_words_are_numbered_by_how_often_they_occur(tmp_path: Path) -> None:
    put(tmp_path / "set" / "train.tsv", ROWS)
    put(tmp_path / "set" / "test.tsv", "text\tlabel\nfun unheard good\t1\n")
    found = Tsv("set", tokens="words", length=4).load(tmp_path)
    # good 3, bad 2, fun 2, then `,` and `?`
    assert found.x.tolist() == [[2, 5, 2, 4], [3, 0, 0, 0], [4, 3, 6, 2]] and found.vocabulary == 7
    assert found.x_test is not None and found.x_test.tolist() == [[4, 1, 2, 0]]
    assert found.y.tolist() == [1, 0, 1] and found.keys["user"].tolist() == ["ann", "bob", "ann"] and not found.test_keys
    few = Tsv("set", tokens="words", length=4, vocabulary=1).load(tmp_path)
    assert few.x.tolist() == [[2, 1, 2, 1], [1, 0, 0, 0], [1, 1, 1, 2]] and few.vocabulary == 3


def test_characters_and_bytes(tmp_path: Path) -> None:
    put(tmp_path / "a.tsv", "label\ttext\npos\tabba\nneg\té\n")
    letters = Tsv("a", tokens="characters", length=3).load(tmp_path)
    assert letters.x.tolist() == [[2, 3, 3], [4, 0, 0]] and letters.vocabulary == 5 and letters.y.tolist() == ["pos", "neg"]
    raw = Tsv("a.tsv", tokens="bytes", length=3).load(tmp_path)
    assert raw.x.tolist() == [[98, 99, 99], [196, 170, 0]] and raw.vocabulary == 257 and raw.x_test is None


def test_hashed_words_are_a_bag_of_length_one(tmp_path: Path) -> None:
    x = hashed(["Good good fun", "", "fun"], 64)
    good, fun = (zlib.crc32(word) % 64 for word in (b"good", b"fun"))
    assert x.shape == (3, 64) and (x != 0).sum(1).tolist() == [2, 0, 1]
    assert x[0, [good, fun]].tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5]) and x[2, fun] == 1
    put(tmp_path / "a.tsv", ROWS)
    assert Npz("a").load(tmp_path).x.shape == (3, 1024)  # a name that means a table
    with pytest.raises(SettingError, match="GiB"):
        Tsv("a", features=10**9).load(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("label\tsentence\n1\ta\n", r"a.tsv has no column `text` .its first line names: label, sentence."),
        ("", "a.tsv has no column `text`"),
        ("label\ttext\n1\ta\n1 b\n", r"a.tsv, line 3: 2 columns parted by tabs are due .label, text., not 1"),
        ("label\ttext\n", "a.tsv has no line below its names"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, said: str) -> None:
    put(tmp_path / "a.tsv", text)
    with pytest.raises(SettingError, match=f"task.data: {said}"):
        Tsv("a").load(tmp_path)


def test_texts_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"label\ttext\n1\t\xff\n")
    with pytest.raises(SettingError, match="can't be read as text in UTF-8"):
        Tsv("a").load(tmp_path)
    with pytest.raises(SettingError, match=r"no data `b`: looked for an .tsv beside the scenario"):
        Tsv("b").load(tmp_path)


# Corpora


def test_next_tokens_of_each_speaker(tmp_path: Path) -> None:
    # ann says 0 .. 12, bob one token, cid two: sequences of two and their next tokens; the last fifth is ann's last
    tokens = np.array([*range(13), 5, 7, 8], dtype=np.uint8)
    np.savez(tmp_path / "said.npz", tokens=tokens, offsets=[0, 13, 14, 16], user_names=["ann", "bob", "cid"], vocab=[*"abcdefghijklmno"])
    found = Tokens("said", length=2).load(tmp_path)
    assert found.x.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [8, 0]]
    assert found.y.tolist() == [[2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [9, -1]]
    assert found.keys["speaker"].tolist() == ["ann"] * 5 + ["cid"] and found.vocabulary == 16
    assert found.x_test is not None and found.x_test.tolist() == [[11, 12]] and found.test_keys["speaker"].tolist() == ["ann"]
    with pytest.raises(SettingError, match="no speaker has five sequences of 80"):
        Npz("said").load(tmp_path)  # a name that means a corpus: read with the default length


def test_a_text_file_is_a_corpus(tmp_path: Path) -> None:
    put(tmp_path / "book.txt", "abab abab!")
    found = Tokens("book.txt", length=2).load(tmp_path)
    # a and b 4 each, then ` ` and `!`
    assert found.x.tolist() == [[2, 3], [2, 3], [4, 2], [3, 2]] and found.y.tolist() == [[3, 2], [3, 4], [2, 3], [2, 3]]
    assert found.x_test is not None and found.x_test.tolist() == [[3, 0]] and found.y_test.tolist() == [[5, -1]]  # type: ignore[union-attr]
    assert found.vocabulary == 6 and set(found.keys["speaker"]) == {"book"}


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"words": np.arange(9)}, r"a.npz has no array tokens .it has: words."),
        ({"tokens": np.array([1.5, 2])}, "tokens are one row of whole numbers from 0, not float64"),
        ({"tokens": np.array([-1, 2])}, "tokens are one row"),
        ({"tokens": np.arange(9), "offsets": np.array([0, 5])}, "offsets do not rise from 0 to the 9 tokens"),
        ({"tokens": np.arange(9), "offsets": np.array([0, 9]), "user_names": np.array(["a", "b"])}, "2 user_names for 1 speakers"),
        ({"tokens": np.arange(3), "offsets": np.array([0, 1, 2, 3])}, "no speaker has two tokens"),
        ({"tokens": np.arange(9)}, "no speaker has five sequences of 80 tokens"),
    ],
)
def test_corpora_that_are_none(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SettingError, match=f"task.data: .*{said}"):
        Tokens("a").load(tmp_path)


# Time series


def lists(found: Arrays) -> tuple[Any, Any, Any, Any]:
    assert found.x_test is not None and found.y_test is not None
    return found.x[:, :, 0].tolist(), found.y.tolist(), found.x_test[:, :, 0].tolist(), found.y_test.tolist()


def test_windows_and_what_comes_next(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(12.0))
    # Five windows of two with two steps ahead; the last is for testing, and the fourth reaches into it
    x, y, x_test, y_test = lists(Windows("a", length=2, stride=2, horizon=2).load(tmp_path))
    assert (x, y) == ([[0, 1], [2, 3], [4, 5]], [[2, 3], [4, 5], [6, 7]]) and (x_test, y_test) == ([[8, 9]], [[10, 11]])
    np.savez(tmp_path / "b.npz", speed=np.arange(24.0).reshape(12, 2))
    two = Windows("b", series="speed", length=2, stride=2, horizon=2).load(tmp_path)
    assert two.x[1].tolist() == [[4, 5], [6, 7]] and two.y[1].tolist() == [8, 9, 10, 11] and two.x.dtype == np.float32


def test_windows_of_a_table_keep_to_their_ids_and_have_classes(tmp_path: Path) -> None:
    rows = [f"{'a' if t < 11 else 'b'},{t},{10 * t},{'up' if t % 2 else 'down'},2026" for t in range(17)]
    put(tmp_path / "t.csv", "\n".join(["ward,pulse,pressure,state,day", *rows]) + "\n")
    found = Windows("t.csv", columns=("pulse", "pressure"), length=2, stride=2, labels="state", by="ward").load(tmp_path)
    x, y, x_test, y_test = lists(found)
    assert x == [[0, 1], [2, 3], [4, 5], [6, 7], [11, 12], [13, 14], [15, 16]] and x_test == [[8, 9]]
    assert y == ["up"] * 4 + ["down"] * 3 and y_test == ["up"]
    assert found.keys["ward"].tolist() == ["a"] * 4 + ["b"] * 3 and found.test_keys["ward"].tolist() == ["a"]
    assert found.x[1].tolist() == [[2, 20], [3, 30]]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Windows("t"), "t.csv: column `state` holds no numbers .*`columns` says which are channels"),
        (Windows("t", labels="state", length=99), "no stretch of the series has the 99 steps"),
        (Windows("t", labels="state", length=3), "4 windows are too few to leave some for testing"),
        (Windows("t", labels="mood"), "t.csv has no `mood`|column `state`"),
        (Windows("t", columns=("speed",)), "t.csv has no column `speed`"),
        (Windows("b"), r"b.npz has no array `x` .it has: y."),
        (Windows("b", series="y"), "`y` is no series"),
        (Windows("c", by="who"), r"`who` has shape \[2\], and one entry for each of 6 steps is due"),
        (Windows("short"), "short.csv, line 3: 2 columns are due .a, b., not 1"),
        (Windows("empty"), "empty.csv can't be read as a table"),
    ],
)
def test_series_that_are_none(tmp_path: Path, source: Source, said: str) -> None:
    put(tmp_path / "t.csv", "pulse,state\n" + "".join(f"{t},{'ab'[t % 2]}\n" for t in range(6)))
    put(tmp_path / "short.csv", "a,b\n1,2\n3\n")
    put(tmp_path / "empty.csv", "")
    np.savez(tmp_path / "b.npz", y=np.array(["a", "b"]))
    np.savez(tmp_path / "c.npz", x=np.arange(6.0), who=np.arange(2))
    with pytest.raises(SettingError, match=f"task.data: .*({said})"):
        source.load(tmp_path)


# From a scenario


def test_names_of_files_mean_their_sources(folder: Path) -> None:
    assert source_for("a.tsv") == Tsv("a.tsv") and source_for("b.txt") == Tokens("b.txt") and source_for("c.csv") == Table("c.csv")
    put(folder / "a.tsv", ROWS)
    written = {
        "a.tsv": Tsv("a.tsv"),
        "{name: tsv, file: a, tokens: words, length: 9}": Tsv("a", tokens="words", length=9),
        "{name: tokens, file: b, length: 5}": Tokens("b", 5),
        "{name: windows, file: c, columns: [u, v], stride: 4, labels: z}": Windows("c", columns=("u", "v"), stride=4, labels="z"),
    }
    for text, part in written.items():
        [loaded] = load(write(folder, TEXT.replace("digits", text)))
        assert loaded.scenario.task.data == part
    assert Tsv("a").anchored(folder).file == str(folder / "a.tsv") and Tokens("b").anchored(folder) == Tokens("b")
    assert "small.yaml:1:14: task.data: b.txt" in refused(
        "run", write(put(folder / "b.txt", "ab").parent, TEXT.replace("digits", "b.txt")).name
    )


def test_runs_on_texts_and_forecasts(folder: Path) -> None:
    lines = "".join(f"{'good' if t % 2 else 'bad'}\t{'fine nice' if t % 2 else 'poor sad'} {t}\n" for t in range(80))
    put(folder / "mood.tsv", "label\ttext\n" + lines)
    run = simulate(folder, "train.lr=2", text=TEXT.replace("digits", "mood"))
    assert run.info["final"]["test/accuracy"] == 1
    np.savez(folder / "wave.npz", x=np.sin(np.arange(300) / 3))
    text = TEXT.replace("digits", "{name: windows, file: wave, length: 8}").replace("{name: dirichlet, alpha: 0.5, nodes: 8}", "{nodes: 8}")
    forecast = simulate(folder, "stop.rounds=40", text=text, into="wave")
    assert forecast.info["final"]["test/loss"] < 0.05 < forecast.metrics[0]["test/loss"]


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("a9a", (32561, 123), 2), ("sst2", (67349, 1024), 2), ("ag_news", (10001, 1024), 4)]
)
def test_real_tables(data: Path, tmp_path: Path, name: str, shape: tuple[int, ...], classes: int) -> None:
    found = source_for(name).load(tmp_path)  # type: ignore[union-attr]
    assert found.x.shape == shape and len(np.unique(found.y)) == classes
    assert np.isfinite(found.x).all() and (name != "a9a" or found.x.sum() == 451592)


def test_shakespeare_is_what_was_said(data: Path, tmp_path: Path) -> None:
    found = source_for("shakespeare").load(tmp_path)  # type: ignore[union-attr]
    assert found.vocabulary == 66 and found.x.max() == 65 and len(np.unique(found.keys["speaker"])) == 299
    with np.load(data / "shakespeare" / "shakespeare_by_speaker.npz") as file:
        tokens, names, vocab = file["tokens"], file["user_names"], file["vocab"]
    mine = found.keys["speaker"] == names[0]
    assert "".join(vocab[found.x[mine][0] - 1]) == "".join(vocab[tokens[:80]]) and (found.y[mine][0] - 1 == tokens[1:81]).all()
    assert ((found.y == -1) == (found.x == 0)).all()
