"""Data that are not what they seem: each says what was found and where, before anything large is unpacked."""

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from fedsim.base import memory
from fedsim.base.errors import SettingError
from fedsim.data import unpacking
from fedsim.data.own import OwnSource
from fedsim.data.source import read_npz
from fedsim.data.sources import Npz, source_for
from fedsim.data.text_sources import Tokens, Tsv
from fedsim.data.windows import Windows

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
WIDE = np.zeros((7, 3), int)


def refused(source, base: Path) -> str:
    with pytest.raises(SettingError) as caught:
        source.load(base)
    assert caught.value.key == "task.data"
    return caught.value.message


def needs(x):
    return {"x": x, "y": Y}


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (
            [np.zeros((7, 3), int), np.zeros((7, 3), int), np.zeros((5, 3), int)],
            "row 0 has [7, 3], row 2 [5, 3]; cut, pad or resize them to one",
        ),
        ([[1, 2], [3]], "row 0 has [2], row 1 [1]"),
        ([[[1, 2], [3]], [[1, 2], [3]]], "has unequal lengths within row 0"),
        (np.array([[1, "F"], [2, "M"]], dtype=object), "has the text 'F' in row 0, column 1"),
        ([1.5, None], "has None in row 1"),
        (["a", "b", None], "has None in row 2"),
        (scipy.sparse.eye_array(3), "is a single dia_array; `.toarray()` makes rows of it"),
        (np.array([1.0, 2.0], dtype=object), "holds Python objects; `.astype(float)` makes numbers of them"),
        (3, "is a single int64"),
        ({"a": 1}, "is a single dict"),
    ],
)
def test_own_values_that_are_no_array_name_the_row(tmp_path, x, said):
    message = refused(OwnSource(needs, {"x": x}), tmp_path)
    assert message.startswith(f"{__name__}:needs: `x` is not an array with one entry a sample: it ") and said in message


def test_sequences_of_floats_are_filled_up(tmp_path):
    """At their ends, to the longest; whole numbers may be tokens, where 0 may be one, and pictures are none."""
    found = OwnSource(needs, {"x": [np.full((t, 2), t, np.float32) for t in (1, 3, 2, 1, 1, 1)]}).load(tmp_path)
    assert (found.x.shape, found.x.dtype) == ((6, 3, 2), np.float32)
    assert found.x[:3, :, 0].tolist() == [[1, 0, 0], [3, 3, 3], [2, 2, 0]]
    assert "row 0 has [2, 2, 3], row 1 [3, 2, 3]" in refused(OwnSource(needs, {"x": [np.zeros((n, 2, 3)) for n in (2, 3)]}), tmp_path)


def test_masked_rows_are_not_read_as_numbers(tmp_path):
    assert "`x` is masked in row 2" in refused(OwnSource(needs, {"x": np.ma.masked_equal([1.0, 2.0, 9.0], 9.0)}), tmp_path)


def test_columns_of_texts_are_labels_and_ids(tmp_path):
    column = np.array(["a", "b", "a"], dtype=object)  # as pandas has them
    arrays = OwnSource(lambda: {"x": X[:3], "y": column, "site": column}).load(tmp_path)
    assert (arrays.y.dtype.kind, arrays.keys["site"].tolist()) == ("U", ["a", "b", "a"])


def raising():
    return {}["bmi"]


def leaving():
    raise SystemExit("no rows")


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (raising, {}, "raised KeyError: 'bmi' (test_misread.py:"),
        (leaving, {}, "raised SystemExit: no rows (test_misread.py:"),
        (raising, {"rows": 3}, "can't be called so: raising() got an unexpected keyword argument 'rows'"),
        (lambda: (X, Y), {}, "returned tuple, not a mapping of arrays x and y: {'x': ..., 'y': ...}"),
        (lambda: {0: X, 1: Y}, {}, "returned a mapping with the keys 0, 1, not a mapping of arrays"),
    ],
)
def test_own_functions_are_blamed_at_their_line(tmp_path, make, settings, said):
    assert said in refused(OwnSource(make, settings), tmp_path)


def member(name: str, shape: tuple[int, ...], content: bytes = b"", dtype: str = "<f8") -> tuple[str, bytes]:
    """An .npy file whose head declares what the content may not be."""
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


def archive(file: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members:
            out.writestr(name, content)
    return file


def test_an_archive_that_unpacks_to_too_much_is_never_unpacked(tmp_path, monkeypatch):
    file = archive(tmp_path / "bomb.npz", member("x", (1 << 20,), bytes(8 << 20)), member("y", (2,), bytes(16)))
    assert file.stat().st_size < 20_000
    monkeypatch.setattr(unpacking, "free_memory", lambda: 16 << 20)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(SettingError, match=r"largest array: `x`\) unpacks to 0\.0 GiB of memory, and at most 0\.0 GiB are taken"):
        read_npz(file)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("x", (1 << 50,))], r"array `x` is to hold 9,007,199,254,740,992 bytes, shape \[1125899906842624\] of float64, and has 0"),
        ([member("x", (2,), bytes(16), "|O")], "Object arrays are never read: `x` holds Python objects"),
        ([("x.npy", b"no array")], "magic string is not correct"),
    ],
)
def test_forged_arrays(tmp_path, members, said):
    with pytest.raises(SettingError, match=f"bad.npz can't be read as an .npz file: .*{said}"):
        read_npz(archive(tmp_path / "bad.npz", *members))


def test_other_files_in_an_archive_are_no_arrays(tmp_path):
    assert "has no array x or x_train (it has: y)" in refused(
        Npz(str(archive(tmp_path / "a.npz", ("x.txt", b"1 2 3"), member("y", (1,), bytes(8))))), tmp_path
    )


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.float32(3), "y": Y}, "a: `x` is a single float32, not an array with one entry a sample"),
        ({"x": X, "y": np.array("cat")}, "a: `y` is a single <U3"),
        ({"x": X, "y": Y, "y_test": Y}, "test samples missing: a has no array x_test"),
        ({"tokens": Y, "offsets": np.array(0)}, "offsets do not rise"),
        ({"tokens": Y, "offsets": np.array([0, 6]), "user_names": np.array("me")}, "1 user_names for 1 speakers"),
        ({"tokens": Y, "offsets": np.array([0, 6]), "vocab": np.array("ab")}, "vocab is one row of pieces, not <U2 of shape []"),
        ({"data": Y, "indices": np.array(3), "indptr": Y, "y": Y}, "indices and indptr are no whole numbers in one row"),
    ],
)
def test_arrays_without_axes(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    assert said in refused(Npz("a"), tmp_path)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            Tsv("table.csv"),
            "table.csv has no column `text` (its first line has no tab, but `,`, and columns are to be parted by tabs: age,sex",
        ),
        (
            Windows("table.csv"),
            "column `sex` holds no numbers (could not convert string to float: np.str_('F')); a .csv is read as a time",
        ),
        (source_for("twice.csv"), "twice.csv: two columns are called `a`"),
        (Tsv("twice.tsv", text="a", label="b"), "twice.tsv: two columns are called `a`"),
        (source_for("names.csv"), "names.csv can't be read as a table: it has no line below its names"),
        (Windows("gap.csv"), "gap.csv, line 4: 2 columns are due (a, b), not 1"),
        (Windows("nan.csv"), "nan.csv: the series has NaN or infinity in step 1, channel 1"),
        (
            source_for("table.h5"),
            "no archive of arrays; .npz, .tsv, .csv, .parquet and .txt files are read as they are, others by a function of",
        ),
        (source_for("pictures"), "the folder "),
        (source_for("pictures"), "pictures has no .npz or .tsv file (it has: cat.png); other kinds are read by a function of your own"),
    ],
)
def test_files_of_another_kind(tmp_path, monkeypatch, source, said):
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    (tmp_path / "table.csv").write_text("age,sex\n30,F\n")
    (tmp_path / "twice.csv").write_text("a,b,a\n1,2,3\n")
    (tmp_path / "twice.tsv").write_text("a\tb\ta\n1\t2\t3\n")
    (tmp_path / "names.csv").write_text("a,b\n")
    (tmp_path / "gap.csv").write_text("a,b\n\n1,2\n3\n")
    (tmp_path / "nan.csv").write_text("a,b\n1,2\n3,nan\n")
    (tmp_path / "table.h5").write_bytes(b"HDF")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_bytes(b"")
    assert said in refused(source, tmp_path)


@pytest.mark.parametrize("source", [Tsv("long.tsv"), Tokens("long.txt"), Windows("long.csv"), Windows("wide.npz", length=50)])
def test_texts_and_windows_are_bounded_too(tmp_path, monkeypatch, source):
    for kind in ("tsv", "txt", "csv"):
        (tmp_path / f"long.{kind}").write_text("text\tlabel\n" + "a\t1\n" * 100)
    np.savez(tmp_path / "wide.npz", x=np.zeros(200, dtype=np.float32))  # 800 bytes, whose windows take 30,000
    monkeypatch.setattr(unpacking, "free_memory", lambda: 2000)
    assert "GiB of memory, and at most 0.0 GiB are taken, half of what is free" in refused(source, tmp_path)


def test_one_long_text_makes_a_column_large(tmp_path, monkeypatch):
    (tmp_path / "long.tsv").write_text("text\tlabel\n" + "a\t1\n" * 100 + "a" * 1000 + "\t1\n")
    monkeypatch.setattr(unpacking, "free_memory", lambda: 100_000)
    assert "long.tsv: column `text`, its longest text in each row, takes" in refused(Tsv("long.tsv"), tmp_path)


def test_free_memory_is_what_the_system_and_its_container_leave(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "FREE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    assert memory.free_memory() == 8 << 30
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:       4 kB\n")
    assert memory.free_memory() == 4096
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert memory.free_memory() == 3000
