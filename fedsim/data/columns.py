"""Tables of CSV, TSV and parquet files as columns, through pyarrow, which is imported only here."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedsim.base.reading import Reading
from fedsim.data.arrays import Array, complaint
from fedsim.data.table import check_names
from fedsim.data.unpacking import check_bytes, check_text

GAPS = ["", "?", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "null", "None", "<NA>", "#N/A"]


def read_columns(path: Path, encoding: str, reading: Reading) -> dict[str, Any]:
    """Columns by name, each a pyarrow array; of a .csv or .tsv the kind of a column is found out from its entries.

    Raises SettingError where it is no table, is not in that encoding, or two columns have one name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            check_bytes(2 * sum(file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups)), f"{path.name} takes up to")
            table = file.read(use_threads=False)
        else:
            check_text(path)
            table = _text(path, encoding, reading)
        names = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError, LookupError, OSError) as error:
        hint = "; its `encoding` may be another, such as latin-1" if isinstance(error, UnicodeDecodeError) or "UTF" in str(error) else ""
        raise complaint(f"{path.name} can't be read as a table: {' '.join(str(error).split())[:200]}{hint}") from error
    check_names(names, path.name)
    if not table.num_rows or not table.num_columns:
        raise complaint(f"{path.name} can't be read as a table: it has no line below its names")
    found = {}
    for name, column in zip(names, table.columns, strict=True):
        if pa.types.is_binary(column.type):
            raise complaint(f"{path.name}: column `{name}` is no text in UTF-8; set its `encoding`, such as latin-1")
        found[name] = column.combine_chunks()
    return found


def _text(path: Path, encoding: str, reading: Reading) -> Any:
    from pyarrow import csv

    with path.open("rb") as file:
        head = file.readline(1 << 20).decode(encoding, errors="replace")
    sign = "\t" if path.suffix == ".tsv" else max(",;\t|", key=head.count)
    with path.open("rb") as file:
        return csv.read_csv(
            _Watched(file, path.stat().st_size, reading),
            read_options=csv.ReadOptions(use_threads=False, encoding=encoding),
            parse_options=csv.ParseOptions(delimiter=sign, newlines_in_values=True),
            convert_options=csv.ConvertOptions(strings_can_be_null=True, null_values=GAPS),
        )


class _Watched:
    """A file that says how far it is read."""

    closed = False

    def __init__(self, file: IO[bytes], length: int, reading: Reading) -> None:
        self.file, self.length, self.reading = file, length, reading

    def read(self, count: int = -1) -> bytes:
        self.reading(self.file.tell() / max(1, self.length))
        return self.file.read(count)

    def readable(self) -> bool:
        return True


def kind_of(column: Any) -> str:
    """`number`, `text` or `other` (times, lists); `empty` where it has no entry."""
    from pyarrow import types

    kind = column.type
    if types.is_null(kind) or column.null_count == len(column):
        return "empty"
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "number"
    return "text" if types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind) else "other"


def gaps_of(column: Any) -> Array:
    """bool [rows]: where it has no entry, or NaN."""
    from pyarrow import compute

    return np.asarray(compute.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False))


def numbers_of(column: Any) -> Array:
    """float64 [rows], NaN where there is none."""
    return np.asarray(column.cast("float64").to_numpy(zero_copy_only=False))


def texts_of(column: Any) -> Array:
    """Texts [rows], "" where there is none."""
    coded = _coded(column)
    texts: Array = np.array(coded.dictionary.to_pylist(), dtype=np.str_)
    row: Array = np.asarray(coded.indices.to_numpy())
    found: Array = texts[row]
    return found


def kinds_of(column: Any) -> Array:
    """The different texts in their order, without ""."""
    return np.array(sorted({*_coded(column).dictionary.to_pylist()} - {""}), dtype=np.str_)


def _coded(column: Any) -> Any:
    """Its different texts, and which of them stands in each row."""
    return column.cast("string").fill_null("").dictionary_encode()


def plain(column: Any, kind: str) -> Array:
    """A column as ids, or as labels: whole numbers, truth values and texts as such."""
    if kind == "number" and not column.null_count:
        found = column.to_numpy(zero_copy_only=False)
        return np.asarray(found if found.dtype.kind in "iufb" else found.astype(np.float64))
    return numbers_of(column) if kind == "number" else texts_of(column)


def check_mixed(texts: Array, name: str, origin: str) -> None:
    """Raises SettingError where most entries of a column of texts are numbers: the first that is none was likely not meant."""
    some = texts[:10_000]
    if (first := _no_number(some.tolist())) and 2 * sum(not _no_number([one]) for one in some.tolist()) >= np.count_nonzero(some != ""):
        row, text = first
        raise complaint(f"{origin}: column `{name}` holds numbers, and the text {text[:40]!r} in row {row} (the first row is 0)")


def _no_number(texts: Sequence[str]) -> tuple[int, str] | None:
    """The first that is no number, with its place."""
    for place, text in enumerate(texts):
        try:
            float(text or 0)
        except ValueError:
            return place, text
    return None
