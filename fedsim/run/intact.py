"""Reading the files of run folders as if anybody might have written them: each is what it must be, or one error names it."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from fedsim.base.errors import FedsimError
from fedsim.base.visible import one_line
from fedsim.federation.ledger import COLUMNS, KINDS
from fedsim.run.forms import FORMS
from fedsim.run.records import numbers, opened, opened_all

T = TypeVar("T")
SMALL, LARGE, SEGMENT = 1 << 24, 1 << 30, 1 << 32  # bytes of a file that is read as a whole; more is no such file


@cache
def _form(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(FORMS.get(name, dict[str, Any]))


def read(file: Path, of: Callable[[bytes], T], most: int = SMALL, broken: str = "broken") -> T:
    """What `of` makes of the file's bytes. Raises FedsimError, naming the file, where it can't be read or `of` raises."""
    try:
        if file.exists() and not file.is_file():
            raise OSError(0, "it is no plain file")
        if file.stat().st_size > most:
            raise OSError(0, f"{file.stat().st_size:,} bytes are too many")
        return of(file.read_bytes())
    except OSError as error:
        raise FedsimError(f"{file} can't be read: {error.strerror or error}") from None
    except FedsimError:
        raise
    except Exception as error:  # whatever a library says of a file that is not its own
        raise FedsimError(f"{file}: {broken} ({_short(error)})") from None


def _short(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "constrained-")))
        return f"`{where}`: {first['msg'][:1].lower()}{first['msg'][1:]}"
    text = (str(error).strip() or "no reason is given").splitlines()[0]
    return f"{type(error).__name__}: {text[:200]}" if not isinstance(error, FedsimError | ValueError) else text[:200]


def read_json(file: Path) -> dict[str, Any]:
    """Raises FedsimError where the file is missing or no JSON object of its form."""
    if not file.exists() and not file.is_symlink():
        raise FedsimError(f"{file.parent}: no {file.name}, so this is not a run{_begun(file)}")
    return read(file, lambda raw: _parsed(file.name, raw))


def _begun(file: Path) -> str:
    left = file.name == "run.json" and (file.parent / "lock").exists()
    return "; one was begun here but its first files could not be written (a full disk?)" if left else ""


def _parsed(name: str, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw)
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}" if raw.strip() else "it is empty") from None
    if not isinstance(content, dict):
        raise ValueError("an object is due")
    _form(name).validate_python(content)
    clean: dict[str, Any] = one_line(content)
    return clean


def read_records(file: Path, strict: bool = False) -> tuple[list[dict[str, Any]], str]:
    """The records of metrics.jsonl up to a damaged line, and what is wrong there. Raises FedsimError where it can't be read."""
    if not file.exists() and not file.is_symlink():
        return [], "it is missing" if strict else ""
    lines: list[str] = read(file, lambda raw: raw.decode(errors="replace").splitlines(keepends=True), LARGE)
    records, wrong = opened_all(lines, strict)
    return one_line(records), wrong


def read_column(file: Path, name: str) -> list[float] | None:
    """One metric of all records, see `numbers`; None also without the file. Raises FedsimError where it can't be read."""
    if not file.exists():
        return None
    lines: list[str] = read(file, lambda raw: raw.decode(errors="replace").splitlines(keepends=True), LARGE)
    return numbers(lines, name)


def read_last(file: Path) -> dict[str, Any] | None:
    """The last record of metrics.jsonl, checked with its place, and none before it; None where there is none.

    Raises FedsimError where it can't be read or is damaged.
    """
    if not file.exists() and not file.is_symlink():
        return None
    record: dict[str, Any] | None = one_line(read(file, _last, LARGE))
    return record


def _last(raw: bytes) -> dict[str, Any] | None:
    end = raw.rfind(b"\n") + 1  # what follows is still being written
    if not end:
        return None
    place = raw.count(b"\n") - 1
    try:
        return opened(raw[raw.rfind(b"\n", 0, end - 1) + 1 : end].decode(), place)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {place + 1}: {error if type(error) is ValueError else 'it is no JSON'}") from None


def read_text(file: Path) -> str:
    """UTF-8. Raises FedsimError where it can't be read."""
    return read(file, bytes.decode)


def read_arrays(file: Path, **due: tuple[str, int]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; `due` are the kinds of numbers and axes that some must have. Raises FedsimError where it is damaged."""

    def arrays(raw: bytes) -> dict[str, NDArray[Any]]:
        from io import BytesIO
        from zipfile import ZipFile

        with ZipFile(BytesIO(raw)) as packed:
            if sum(member.file_size for member in packed.infolist()) > LARGE:
                raise ValueError("it is too large unpacked")
        with np.load(BytesIO(raw)) as opened:
            found = {name: opened[name] for name in opened.files}
        for name, (kinds, axes) in due.items():
            if name not in found or found[name].dtype.kind not in kinds or found[name].ndim != axes:
                raise ValueError(f"an array `{name}` of {axes} axes is due")
        return found

    return read(file, arrays, LARGE)


def read_segments(files: Sequence[Path]) -> Any:
    """pyarrow.Table of event segments, one after the other. Raises FedsimError where one is damaged or no segment."""
    import pyarrow as pa

    tables = []
    for file in files:
        tables.append(read(file, _segment, SEGMENT, "unreadable event segment"))
        if not tables[-1].schema.equals(tables[0].schema, check_metadata=True):
            raise FedsimError(f"{file}: unreadable event segment (it is of another run than {files[0].name})")
    return pa.concat_tables(tables)


def read_clients(file: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nodes [k] and their accuracies [k]. Raises FedsimError where the file is damaged."""
    return read(file, _clients, LARGE)


def _clients(raw: bytes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    table = _parquet(raw)
    if [str(table.schema.field(name).type) for name in table.column_names] != ["int64", "double"] or table.column_names[0] != "node":
        raise ValueError("nodes and their accuracies are due")
    nodes, accuracy = (np.from_dlpack(column.combine_chunks()) for column in table.columns)  # `to_numpy` would import pandas
    if not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise ValueError("an accuracy is a share")
    return nodes.astype(np.int64), accuracy.astype(np.float64)


def _parquet(raw: bytes) -> Any:
    """The table of a file, its checksums verified."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(pa.BufferReader(raw), page_checksum_verification=True).read()  # `read_table` would import pandas
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _segment(raw: bytes) -> Any:
    import pyarrow as pa

    table = _parquet(raw)
    columns = {name: column.type for name, column in zip(table.column_names, table.columns, strict=True)}
    for name in COLUMNS:
        if name not in columns or (name != "kind" and not pa.types.is_integer(columns[name])):
            raise ValueError(f"a column `{name}` of {'words' if name == 'kind' else 'whole numbers'} is due")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or (name not in COLUMNS and not pa.types.is_floating(column.type)):
            raise ValueError(f"column `{name}` has gaps, or holds no numbers")
    if unknown := set(table["kind"].unique().to_pylist()) - set(KINDS):
        raise ValueError(f"events of an unknown kind `{min(map(str, unknown))}`")
    if int(json.loads((table.schema.metadata or {}).get(b"fedsim", b"{}")).get("ticks_per_second", 0)) < 1:
        raise ValueError("it doesn't say how many ticks are a second")
    return table
