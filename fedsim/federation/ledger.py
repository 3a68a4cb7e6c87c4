"""Every dispatch, arrival, merge, mix, drop and evaluation as a row of numbers, and the sums over them."""

import json
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

KINDS = ("dispatch", "arrival", "merge", "drop", "mix", "evaluate")
COLUMNS = ("time", "kind", "node", "job", "version", "staleness", "bytes_down", "bytes_up", "down", "work", "up", "steps")
PLACE = {name: at for at, name in enumerate((*COLUMNS, "energy"))}
EMPTY = {"node": -1, "job": -1, "staleness": -1}  # what is not there; of other columns 0
SUMMED = {"bytes_down", "bytes_up", "energy"}
NARROW = {"node": np.int32, "staleness": np.int32, "steps": np.int32}


MICRO = 10**6  # the optional column `energy` holds so many parts of a joule until it is read


class Ledger:
    """Events in the order in which they happened, written to a folder in segments, and what they add up to. Kept after a `flush`."""

    keeps: ClassVar[tuple[str, ...]] = (
        *("sums", "bytes_up", "bytes_down", "bytes_cross", "updates", "steps", "dropped", "staleness", "events", "microjoules"),
    )

    def __init__(self, folder: Path | None = None, per_second: int = 10**9, energy: bool = False) -> None:
        self.folder, self.per_second = folder, per_second
        self.names = (*COLUMNS, "energy") if energy else COLUMNS
        self.rows = np.zeros((4096, len(self.names)), dtype=np.int64)
        self.empty = {kind: np.array([(EMPTY | {"kind": at}).get(name, 0) for name in self.names]) for at, kind in enumerate(KINDS)}
        self.microjoules = 0
        self.used = 0
        self.sums: list[int] = []  # of each segment written, the CRC-32 of its file
        self.bytes_up = self.bytes_down = self.bytes_cross = 0
        self.updates = self.steps = self.dropped = self.staleness = self.events = 0

    def add(self, kind: str, count: int = 1, **columns: Any) -> None:
        """`count` events of a kind; a column is an array [count] or one number for all; what is left out is 0, or -1 for ids."""
        if self.used + count > len(self.rows):
            self._make_room(count)
        block = self.rows[self.used : self.used + count]
        block[:] = self.empty[kind]
        for name, values in columns.items():
            block[:, PLACE[name]] = values
        self.used += count
        self.events += count
        sums = {name: int(block[:, PLACE[name]].sum()) for name in SUMMED & columns.keys()}
        down, up = sums.get("bytes_down", 0), sums.get("bytes_up", 0)
        self.microjoules += sums.get("energy", 0)
        if kind == "mix":
            self.bytes_cross += down + up
        else:
            self.bytes_down += down
            self.bytes_up += up

    def in_time(self, since: int) -> None:
        """Puts the events from number `since` of those not yet written into the order of time; ties stay as they were added."""
        block = self.rows[since : self.used]
        block[:] = block[np.argsort(block[:, 0], kind="stable")]

    def merged(self, ages: np.ndarray[Any, Any], steps: int) -> None:
        """Sums over merged updates."""
        self.updates += len(ages)
        self.steps += steps
        self.staleness += int(ages.sum())

    @property
    def bytes(self) -> int:
        """All that was sent; a message between hearers counts once."""
        return self.bytes_up + self.bytes_down + self.bytes_cross

    def totals(self) -> dict[str, float]:
        """By metric name."""
        return {
            "traffic/bytes_up": self.bytes_up,
            "traffic/bytes_down": self.bytes_down,
            "traffic/bytes_cross": self.bytes_cross,
            "traffic/bytes": self.bytes,
            "work/updates": self.updates,
            "work/steps": self.steps,
            "work/dropped": self.dropped,
            "staleness/mean": self.staleness / max(1, self.updates),
        } | ({"energy/joules": self.microjoules / MICRO} if "energy" in self.names else {})

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Events not yet written, by column; `kind` as words."""
        table = self._table()
        return table | {"kind": np.array(KINDS)[table["kind"]]}

    def _table(self) -> dict[str, np.ndarray[Any, Any]]:
        """Events not yet written, by column; `kind` as a number along KINDS, `energy` in joules."""
        table: dict[str, np.ndarray[Any, Any]] = {name: self.rows[: self.used, at] for at, name in enumerate(self.names)}
        return table | ({"energy": table["energy"] / MICRO} if "energy" in table else {})

    def flush(self) -> None:
        """Writes what is not yet written as one segment with checksums, complete or not there at all.

        Raises RunError where it can't be written; the events are kept then.
        """
        if self.folder is None or not self.used:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        from fedsim.base.files import whole

        columns = {name: column.astype(NARROW.get(name, column.dtype)) for name, column in self._table().items()}
        kind = pa.DictionaryArray.from_arrays(pa.array(columns.pop("kind").astype(np.int8)), pa.array(KINDS))
        table = pa.table({"time": columns.pop("time"), "kind": kind, **columns})
        table = table.replace_schema_metadata({b"fedsim": json.dumps({"ticks_per_second": self.per_second}).encode()})
        with whole(self.folder / f"{len(self.sums):06d}.parquet") as draft:
            self.folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
            check = zlib.crc32(draft.read_bytes())
        self.sums.append(check)
        self.used = 0

    def _make_room(self, count: int) -> None:
        while self.used + count > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
