"""Events as columns, sums and files."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fedsim.base.errors import RunError
from fedsim.federation.ledger import COLUMNS, Ledger


def test_what_is_left_out_is_nothing_or_nobody() -> None:
    ledger = Ledger()
    ledger.add("evaluate", time=7, version=3)
    expected = dict.fromkeys(COLUMNS, 0) | {"time": 7, "version": 3, "node": -1, "job": -1, "staleness": -1, "kind": "evaluate"}
    assert {name: column.tolist() for name, column in ledger.columns().items()} == {name: [value] for name, value in expected.items()}


def test_columns_are_one_number_for_all_or_one_each() -> None:
    ledger = Ledger()
    ledger.add("dispatch", 2, time=5, node=np.array([4, 1]), bytes_down=np.array([10, 20]), down=1, work=np.array([2, 3]), up=4, steps=9)
    ledger.add("arrival", 0, node=np.array([], dtype=np.int64))
    ledger.add("arrival", time=8, node=1, job=0, bytes_up=30)
    table = ledger.columns()
    assert table["kind"].tolist() == ["dispatch", "dispatch", "arrival"]
    assert table["time"].tolist() == [5, 5, 8]
    assert table["node"].tolist() == [4, 1, 1]
    assert table["work"].tolist() == [2, 3, 0]
    assert table["up"].tolist() == [4, 4, 0]
    assert ledger.events == 3


def test_totals_by_hand() -> None:
    ledger = Ledger()
    assert ledger.totals()["staleness/mean"] == 0
    ledger.add("dispatch", 3, bytes_down=100)
    ledger.add("arrival", 2, bytes_up=np.array([10, 20]))
    ledger.add("drop", bytes_up=5)
    ledger.add("mix", 2, bytes_up=np.array([1000, 2000]))
    ledger.merged(np.array([0, 3]), steps=8)
    ledger.merged(np.array([4, 0, 1]), steps=2)
    ledger.merged(np.array([], dtype=np.int64), steps=0)
    ledger.dropped += 1
    assert ledger.totals() == {
        "traffic/bytes_up": 35,
        "traffic/bytes_down": 300,
        "traffic/bytes_cross": 3000,
        "traffic/bytes": 3335,
        "work/updates": 5,
        "work/steps": 10,
        "work/dropped": 1,
        "staleness/mean": 8 / 5,
    }
    assert ledger.bytes == 3335


def test_any_number_of_events_has_room() -> None:
    ledger = Ledger()
    for first in range(0, 10_000, 1000):
        ledger.add("arrival", 1000, time=np.arange(first, first + 1000))
    ledger.add("arrival", 30_000, time=np.arange(10_000, 40_000))
    assert ledger.columns()["time"].tolist() == list(range(40_000))
    assert set(ledger.columns()["node"].tolist()) == {-1}


def test_order_of_time_keeps_ties_and_what_was_before() -> None:
    ledger = Ledger()
    ledger.add("evaluate", time=99)
    ledger.add("arrival", 3, time=np.array([4, 2, 4]), node=np.array([0, 1, 2]))
    ledger.add("dispatch", 3, time=np.array([2, 4, 3]), node=np.array([3, 4, 5]))
    ledger.in_time(1)
    table = ledger.columns()
    assert table["time"].tolist() == [99, 2, 2, 3, 4, 4, 4]
    assert table["node"].tolist() == [-1, 1, 3, 5, 0, 2, 4]
    assert table["kind"].tolist() == ["evaluate", "arrival", "dispatch", "dispatch", "arrival", "arrival", "dispatch"]


def test_many_ties_stay_as_they_were_added() -> None:
    ledger, times = Ledger(), np.arange(3000) * 7 % 5
    ledger.add("arrival", 3000, time=times, node=np.arange(3000))
    ledger.in_time(0)
    assert ledger.columns()["node"].tolist() == sorted(range(3000), key=lambda node: int(times[node]))


def test_segments_are_complete_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events", per_second=19 * 10**9)
    ledger.flush()
    assert not (tmp_path / "events").exists()  # nothing to write
    ledger.add("dispatch", 2, time=np.array([2**62, 1]), node=np.array([0, 1]), job=np.array([2**40, 5]), version=6, down=1, work=2, up=3)
    written = ledger.columns()
    ledger.flush()
    ledger.flush()
    assert len(ledger.columns()["time"]) == 0
    ledger.add("merge", 5000, time=7, staleness=np.arange(5000))
    ledger.flush()
    assert sorted(path.name for path in (tmp_path / "events").iterdir()) == ["000000.parquet", "000001.parquet"]
    first, second = (pq.read_table(path) for path in sorted((tmp_path / "events").iterdir()))
    assert first.column_names == list(COLUMNS)
    assert {name: first[name].to_pylist() for name in COLUMNS} == {name: column.tolist() for name, column in written.items()}
    assert second["staleness"].to_pylist() == list(range(5000))
    assert set(second["bytes_up"].to_pylist()) == {0}  # no trace of the rows that stood there before
    assert ledger.events == 5002


def test_schema_of_a_segment(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, per_second=19 * 10**9)
    ledger.add("drop", time=3, node=2, bytes_up=4)
    ledger.flush()
    schema = pq.read_schema(tmp_path / "000000.parquet")
    assert json.loads(schema.metadata[b"fedsim"]) == {"ticks_per_second": 19 * 10**9}
    narrow = {"node": "int32", "staleness": "int32", "steps": "int32", "kind": "dictionary<values=string, indices=int8, ordered=0>"}
    assert {name: str(schema.field(name).type) for name in COLUMNS} == {name: narrow.get(name, "int64") for name in COLUMNS}


def test_a_segment_that_fails_leaves_no_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.add("evaluate", time=1)

    def half(table: object, where: Path, **settings: object) -> None:
        where.write_bytes(b"PAR1")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", half)
        with pytest.raises(RunError, match=r"000000\.parquet can't be written: disk full"):
            ledger.flush()
    assert not list(tmp_path.glob("*.parquet"))
    ledger.flush()  # nothing was forgotten
    assert pq.read_table(tmp_path / "000000.parquet")["time"].to_pylist() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["000000.parquet"]


def test_without_a_folder_events_stay() -> None:
    ledger = Ledger()
    ledger.add("mix", 3, bytes_up=2)
    ledger.flush()
    assert len(ledger.columns()["time"]) == 3
    assert ledger.bytes_cross == 6
