"""Rows that wait: views where they can be, memories as a dict would keep them."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsim.base.errors import RunError
from fedsim.base.rows import Rows
from fedsim.base.store import LARGE, Blocks, Memories, Table
from fedsim.run import checkpoint


def numbered(first: int, count: int) -> Rows:
    """Row i is first + i, twice, and as a whole number beside that."""
    column = torch.arange(first, first + count)
    return {"x": column[:, None].repeat(1, 2).float(), "n": column}


def values(rows: Rows) -> list[int]:
    assert (rows["x"] == rows["n"][:, None]).all()
    return [int(n) for n in rows["n"]]


def test_neighbours_of_a_block_are_a_view() -> None:
    blocks, rows = Blocks(), numbered(10, 5)
    slots = blocks.post(rows, 5)
    taken = blocks.take(slots[1:4])
    assert values(taken) == [11, 12, 13]
    assert taken["x"].data_ptr() == rows["x"][1].data_ptr()
    assert blocks.take(slots)["x"].data_ptr() == rows["x"].data_ptr()


def test_one_row_for_many_readers_is_never_repeated_in_memory() -> None:
    blocks, rows = Blocks(), numbered(7, 1)
    slots = blocks.post(rows, 1000, np.zeros(1000, dtype=np.int64))
    taken = blocks.take(slots[5:900])
    assert taken["x"].shape == (895, 2)
    assert taken["x"].stride(0) == 0
    assert taken["x"].data_ptr() == rows["x"].data_ptr()
    assert set(values(taken)) == {7}


def test_readers_may_read_any_row_in_any_order() -> None:
    blocks = Blocks()
    slots = blocks.post(numbered(0, 3), 5, np.array([2, 0, 0, 1, 2]))
    assert values(blocks.take(slots)) == [2, 0, 0, 1, 2]
    assert values(blocks.take(slots[::-1])) == [2, 1, 0, 0, 2]
    lent, at = blocks.lend(slots)
    assert at is not None and at.tolist() == [2, 0, 0, 1, 2] and values(lent) == [0, 1, 2]


def test_interleaved_blocks_come_in_the_order_of_the_slots() -> None:
    blocks = Blocks()
    a, b, c = (blocks.post(numbered(first, 3), 3) for first in (0, 10, 20))
    assert values(blocks.take(np.concatenate([a, c]))) == [0, 1, 2, 20, 21, 22]
    assert values(blocks.take(np.array([a[0], b[2], a[1], c[0], b[0], a[1]]))) == [0, 12, 1, 20, 10, 1]


def test_a_block_goes_with_its_last_reader() -> None:
    blocks = Blocks()
    a, b = blocks.post(numbered(0, 2), 4, np.array([0, 1, 1, 1])), blocks.post(numbered(10, 2), 2)
    blocks.release(np.array([a[0], b[1], a[1], a[2]]))
    assert list(blocks.blocks) == list(blocks.uses) == [0, 1]
    assert values(blocks.take(np.array([a[3], b[0]]))) == [1, 10]
    blocks.release(a[3:])
    assert list(blocks.blocks) == list(blocks.uses) == [1]
    assert int(blocks.post(numbered(0, 1), 1)[0]) not in {*a.tolist(), *b.tolist()}  # no slot is given twice
    blocks.release(b[:1])
    assert list(blocks.blocks) == [2]


posts = st.lists(
    st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), min_size=1, max_size=6))), min_size=1
)


@given(posts, st.data())
@settings(max_examples=50)
def test_blocks_are_a_dict_from_slot_to_row(posted: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    blocks, known = Blocks(), dict[int, int]()
    waiting: list[int] = []
    for number, (rows, at) in enumerate(posted):
        slots = blocks.post(numbered(100 * number, rows), len(at), np.array(at)).tolist()
        known |= {slot: 100 * number + row for slot, row in zip(slots, at, strict=True)}
        waiting += slots
        wanted = data.draw(st.lists(st.sampled_from(waiting), min_size=1, max_size=8)) if waiting else []
        if wanted:
            assert values(blocks.take(np.array(wanted))) == [known[slot] for slot in wanted]
            lent, at = blocks.lend(np.array(wanted))
            assert values(lent if at is None else {name: rows[at] for name, rows in lent.items()}) == [known[slot] for slot in wanted]
        gone = data.draw(st.integers(0, len(waiting)))
        done, waiting = waiting[:gone], waiting[gone:]
        if done:
            blocks.release(np.array(done))
        assert set(blocks.blocks) == {slot >> 24 for slot in waiting}


def fresh(nodes: NDArray[np.int64]) -> Rows:
    return {"x": torch.full((len(nodes), 2), -1.0), "n": torch.full((len(nodes),), -1)}


def test_memories_of_nodes_that_never_had_one_are_the_default() -> None:
    memories = Memories(5)
    assert values(memories.get(np.array([4, 0]), fresh)) == [-1, -1]
    memories.put(np.array([3, 1]), numbered(30, 2))
    assert values(memories.get(np.array([0, 1, 2, 3]), fresh)) == [-1, 31, -1, 30]
    assert values(memories.get(np.array([3, 3, 1]), lambda nodes: 1 / 0)) == [30, 30, 31]  # type: ignore[arg-type, return-value]


def test_what_was_put_or_got_may_be_changed_afterwards() -> None:
    memories, rows = Memories(2), numbered(5, 1)
    memories.put(np.array([1]), rows)
    rows["x"] += 1
    memories.get(np.array([1]), fresh)["x"].zero_()
    assert values(memories.get(np.array([1]), fresh)) == [5]


def test_the_table_grows_with_those_who_have_a_memory() -> None:
    memories = Memories(1_000_000)
    for first in range(0, 40, 8):
        memories.put(np.arange(first, first + 8) * 20_000, numbered(first, 8))
    assert len(memories.rows["x"]) < 100
    assert memories.count == 40
    assert values(memories.get(np.arange(40) * 20_000, fresh)) == list(range(40))
    memories.put(np.arange(40) * 20_000, numbered(100, 40))
    assert memories.count == 40
    assert values(memories.get(np.array([20_000, 20_001]), fresh)) == [101, -1]


def test_no_memory_is_no_table() -> None:
    memories = Memories(3)
    memories.put(np.array([0, 1]), {})
    assert memories.get(np.array([0, 2]), lambda count: {}) == {}
    assert not memories.rows


someone = st.lists(st.integers(0, 29), max_size=12)


@settings(max_examples=80)
@given(
    st.lists(st.tuples(someone.map(lambda nodes: list(dict.fromkeys(nodes))), someone), max_size=8), st.sampled_from([0, 150, 250, LARGE])
)
def test_memories_are_a_dict_from_node_to_row(turns: list[tuple[list[int], list[int]]], large: int) -> None:
    """Wherever their tables lie: all rows of "x" or "n" are 240 bytes."""
    memories, known = Memories(30, large), dict[int, int]()
    for turn, (written, read) in enumerate(turns):
        memories.put(np.array(written, dtype=np.int64), numbered(100 * turn, len(written)))
        known |= {node: 100 * turn + i for i, node in enumerate(written)}
        assert values(memories.get(np.array(read, dtype=np.int64), fresh)) == [known.get(node, -1) for node in read]
        lent, at = memories.lend(np.array(read, dtype=np.int64), fresh, torch.device("cpu"))
        assert values(lent if at is None else {name: rows[at] for name, rows in lent.items()}) == [known.get(node, -1) for node in read]
    assert memories.count == len(known)


def test_a_large_table_grows_in_a_file_without_a_copy() -> None:
    memories = Memories(1000, large=1000)
    memories.put(np.arange(50), numbered(0, 50))
    assert not memories.files and len(memories.rows["x"]) == 100
    memories.put(np.arange(50, 120), numbered(50, 70))  # 240 rows of 8 bytes are too much
    assert set(memories.files) == {"x", "n"} and len(memories.rows["x"]) == 150
    before = memories.rows["x"]
    memories.put(np.arange(120, 200), numbered(120, 80))
    assert len(memories.rows["x"]) == 250
    before[3] = 7.0  # the same bytes of the same file
    assert memories.rows["x"][3].tolist() == [7.0, 7.0]
    before[3] = 3.0
    assert values(memories.get(np.arange(200), fresh)) == list(range(200))
    assert os.fstat(memories.files["x"].fileno()).st_nlink == 0  # goes with the process, however that ends
    files = list(memories.files.values())
    del memories, before
    assert all(file.closed for file in files)


def test_a_full_disk_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"^memories of clients can't be written: No space left on device$"):
        Memories(10, large=70).put(np.arange(10), numbered(0, 10))


def test_a_table_is_zero_where_nothing_was_set_and_grows_with_what_is() -> None:
    table = Table(1_000_000, torch.ones(3, dtype=torch.float64))
    assert len(table) == 1_000_000 and table.memories.count == 0
    assert table[torch.tensor([5, 7])].equal(torch.zeros(2, 3, dtype=torch.float64))
    rows = torch.arange(6.0, dtype=torch.float64).view(2, 3)
    table[torch.tensor([999_999, 7])] = rows
    assert table[torch.tensor([7, 5, 999_999])].tolist() == [[3, 4, 5], [0, 0, 0], [0, 1, 2]]
    assert len(table.memories.rows["row"]) == 16
    rows.zero_()
    table[torch.tensor([7])].zero_()
    assert table[torch.tensor([7])].tolist() == [[3, 4, 5]]


def test_a_table_never_has_more_rows_than_nodes() -> None:
    small, large = Memories(70), Memories(70, large=100)
    for first in range(0, 70, 10):
        for memories in (small, large):
            memories.put(np.arange(first, first + 10), numbered(first, 10))
    assert len(small.rows["x"]) == len(large.rows["x"]) == 70 and set(large.files) == {"x", "n"}
    assert values(large.get(np.arange(70), fresh)) == list(range(70))


def test_a_table_in_a_file_goes_through_a_checkpoint_and_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memories.__init__, "__defaults__", (100,))  # bytes
    table, other = Table(90, torch.zeros(4)), Table(90, torch.zeros(4))
    rows = torch.arange(360.0).view(90, 4)
    table[torch.arange(40)] = rows[:40]
    assert set(table.memories.files) == {"row"}
    checkpoint.write(tmp_path / "one.checkpoint", {}, checkpoint.collect(table))
    assert (tmp_path / "one.checkpoint").stat().st_size < 40 * 4 * 4 + 90 * 4 + 1000  # rows of those who have one
    checkpoint.restore(other, checkpoint.read(tmp_path / "one.checkpoint")[1])
    assert other[torch.arange(40)].equal(rows[:40]) and not other[torch.arange(40, 90)].any()
    other[torch.arange(30, 90)] = rows[30:]
    assert other[torch.arange(90)].equal(rows) and set(other.memories.files) == {"row"}


def test_what_a_checkpoint_reads_of_a_large_table_lies_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(checkpoint, "room", lambda like, rows: made.append(rows) or like.new_empty(rows, *like.shape[1:]))
    kept = {"a": torch.ones(3, 2), "none": torch.ones(0, 2), "one": torch.tensor(5.0)}
    checkpoint.write(tmp_path / "one.checkpoint", {}, checkpoint.collect(kept))
    state = checkpoint.read(tmp_path / "one.checkpoint")[1]
    assert made == [3]
    assert [array.tolist() for array in state.arrays] == [[[1, 1]] * 3, [], 5]
