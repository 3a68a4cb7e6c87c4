"""Events of a run in bounded memory: some columns of some rows at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.base.errors import FedsimError
from fedsim.federation.ledger import KINDS
from fedsim.run.folders import Columns, RunFolder

MOST = 50_000_000  # events that are read as a whole, in some 10 GB; of more, what needs all of them at once is left out


def events_of(run: RunFolder) -> int:
    """How many there are, without reading them; 0 where that can't be told."""
    try:
        return sum(_opened(file).metadata.num_rows for file in _files(run))
    except FedsimError:
        return 0


def ticks_of(run: RunFolder) -> int:
    """Ticks in a second, without reading events. Raises FedsimError where no segment says it."""
    file = next(iter(_files(run)))
    try:
        return int(json.loads((_opened(file).schema_arrow.metadata or {})[b"fedsim"])["ticks_per_second"])
    except (KeyError, ValueError, TypeError) as error:
        raise FedsimError(f"{file}: it doesn't say how many ticks are a second ({error})") from None


def stream(run: RunFolder, names: Sequence[str], most: int) -> Iterator[Columns]:
    """Columns [at most `most`] of a run's events in log order; `kind` counts along KINDS. Raises FedsimError where a segment is damaged."""
    import pyarrow as pa

    for number, file in enumerate(_files(run)):
        if file.name != f"{number:06d}.parquet":
            raise FedsimError(f"{file.parent}: {number:06d}.parquet is missing, or {file.name} is no segment")
        try:
            for batch in _opened(file).iter_batches(batch_size=most, columns=list(names)):
                yield {name: _column(batch.column(name)) for name in names}
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise FedsimError(f"{file}: unreadable event segment ({str(error).splitlines()[0]})") from None


def _files(run: RunFolder) -> list[Path]:
    files = sorted((run.path / "events").glob("*.parquet"))
    if not files:
        raise FedsimError(f"{run.path}: no events were written")
    return files


def _opened(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise FedsimError(f"{file}: unreadable event segment ({str(error).splitlines()[0]})") from None


def _column(array: Any) -> Any:
    """Numbers as they are, words as their places in KINDS."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type) or pa.types.is_string(array.type):
        array = array.dictionary_encode()
        codes = np.array([KINDS.index(word) for word in array.dictionary.to_pylist()], dtype=np.int8)
        return codes[np.from_dlpack(array.indices)]
    return np.from_dlpack(array)
