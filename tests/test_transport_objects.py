"""Objects named by their hash: whole or not there, received in pieces that may come twice, in disorder or damaged."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest as xxh3

from fedsim.base.errors import BrokenMessage, HostError
from fedsim.transport import pieces
from fedsim.transport.messages_pb2 import Object, Piece
from fedsim.transport.naming import Naming, named
from fedsim.transport.objects import NoRoom, Partial, Store
from fedsim.transport.pieces import Cut, fill, opened, packed
from fedsim.transport.sending import Flow
from fedsim.transport.wire import WINDOW


def test_what_is_put_lies_under_its_hash(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", sync=True)
    one = store.put(b"some bytes")
    assert one == named(b"some bytes") and store.path(one.hash).read_bytes() == b"some bytes"
    assert store.put(iter([memoryview(b"some "), memoryview(b"bytes")])) == one
    (tmp_path / "file").write_bytes(b"others")
    two = store.adopt(tmp_path / "file")
    assert two == named(b"others") and not (tmp_path / "file").exists() and len(os.listdir(store.folder)) == 2
    assert store.pin(one.hash) and store.pin(one.hash)
    store.drop(one.hash)
    store.unpin(one.hash)
    assert store.has(one.hash)
    store.unpin(one.hash)
    assert not store.has(one.hash) and not store.pin(one.hash) and os.listdir(store.folder) == [two.hash.hex()]
    store.drop(one.hash)
    assert store.pin(two.hash)
    store.keep(two.hash)
    store.unpin(two.hash)
    assert store.has(two.hash)


def test_what_lay_there_before_is_kept_until_swept(tmp_path: Path) -> None:
    before = Store(tmp_path)
    one, two = before.put(b"one"), before.put(b"two")
    before.partial(named(b"three"), "w").close()
    (tmp_path / "notes.txt").touch()
    store = Store(tmp_path)
    store.sweep({two.hash})
    assert not store.has(one.hash) and sorted(os.listdir(tmp_path)) == sorted([two.hash.hex(), "notes.txt"])
    store.drop(two.hash)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[memoryview]:
        yield memoryview(b"some")
        raise KeyError

    store = Store(tmp_path)
    with pytest.raises(KeyError):
        store.put(broken())
    assert os.listdir(tmp_path) == []


CONTENT = bytes(range(256)) * 4


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["next", "again", "ahead", "damaged", "cut", "die"]), st.integers(1, 400), st.integers(0, len(CONTENT) * 8 - 1)
        ),
        max_size=30,
    )
)
def test_pieces_arrive_whole_or_are_refused(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    wanted = named(CONTENT)
    partial = store.partial(wanted, "w")
    for what, size, bit in steps:
        at = partial.offset
        data = CONTENT[at : at + size]
        if partial.whole:
            break
        if what == "next":
            assert partial.append(at, data, xxh3(data)) == at + len(data)
        elif what == "die":  # in the middle of a write
            partial.close()
            with (store.folder / f"{wanted.hash.hex()}.w.part").open("ab") as file:
                file.write(data)
            partial = store.partial(wanted, "w")
            assert partial.offset == at + len(data)
        elif what == "cut":
            partial.close()
            partial = store.partial(wanted, "w")
            assert partial.offset == at
        else:
            there = {"again": max(at - size, 0), "ahead": at + size, "damaged": at}[what]
            data = CONTENT[there : there + size]
            if what == "damaged":
                byte = bit // 8 % len(data)
                bad = data[:byte] + bytes([data[byte] ^ 1 << bit % 8]) + data[byte + 1 :]
                with pytest.raises(BrokenMessage, match="damaged"):
                    partial.append(at, bad, xxh3(data))
            elif there != at:
                with pytest.raises(BrokenMessage, match=f"a piece for offset {there}, where {at} is next"):
                    partial.append(there, data, xxh3(data))
            assert partial.offset == at
    while not partial.whole:
        data = CONTENT[partial.offset : partial.offset + 300]
        partial.append(partial.offset, data, xxh3(data))
    partial.finish()
    assert store.path(wanted.hash).read_bytes() == CONTENT
    partial.close()
    assert os.listdir(store.folder) == [wanted.hash.hex()]


def test_what_is_not_what_its_name_says_is_thrown_away_and_begun_anew(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), named(b"right")
    partial = store.partial(wanted)
    partial.append(0, b"wrong", xxh3(b"wrong"))
    with pytest.raises(BrokenMessage, match="an object of 5 bytes that are not those its name says"):
        partial.finish()
    assert os.listdir(tmp_path) == []
    again = store.partial(wanted)
    assert again.offset == 0
    again.append(0, b"right", xxh3(b"right"))
    again.finish()
    assert store.path(wanted.hash).read_bytes() == b"right"
    again.close()


def test_a_piece_beyond_the_end_is_refused_and_owners_are_apart(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), named(b"content")
    one, two = store.partial(wanted, "one"), store.partial(wanted, "two")
    with pytest.raises(BrokenMessage, match="a piece of 9 bytes at offset 0 of an object of 7"):
        one.append(0, b"content..", xxh3(b"content.."))
    with pytest.raises(BrokenMessage, match="a piece of 0 bytes"):
        one.append(0, b"", 0)
    one.append(0, b"con", xxh3(b"con"))
    assert (one.offset, two.offset) == (3, 0)
    one.close(), two.close()
    store.forget("one")
    assert os.listdir(tmp_path) == [f"{wanted.hash.hex()}.two.part"]


def test_a_full_disk_keeps_what_came_and_goes_on_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, wanted = Store(tmp_path), named(b"first second")
    partial = store.partial(wanted)
    partial.append(0, b"first ", xxh3(b"first "))
    real, calls = os.pwrite, []

    def full(file: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real(file, data[:2], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoRoom, match="No space left on device"):
        partial.append(6, b"second", xxh3(b"second"))
    assert calls == [6, 8] and partial.offset == 6 == partial.name.stat().st_size
    monkeypatch.undo()
    partial.append(6, b"second", xxh3(b"second"))
    partial.finish()
    assert store.path(wanted.hash).read_bytes() == b"first second"
    partial.close()


def test_a_folder_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="store can't be written: Not a directory"):
        Store(tmp_path / "file" / "store")


def test_sizes_beyond_two_gibibytes_are_counted_right(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), Object(hash=bytes(32), size=(3 << 30) + 5)
    name = tmp_path / f"{wanted.hash.hex()}..part"
    with name.open("wb") as file:
        file.truncate(3 << 30)
    partial = Partial.__new__(Partial)
    partial.store, partial.wanted, partial.name, partial.digest = store, wanted, name, Naming()
    partial.file, partial.offset = os.open(name, os.O_RDWR), 3 << 30
    assert partial.append(3 << 30, b"12345", xxh3(b"12345")) == wanted.size and partial.whole
    partial.close()


numbers = st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 1 << 20, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])


@given(numbers, st.sampled_from([1, 127, 128, 16_383, 16_384, 1 << 20]))
def test_a_piece_is_the_bytes_that_protobuf_makes_of_it(offset: int, size: int) -> None:
    data = os.urandom(size)
    made, usual = packed(offset, data), Piece(offset=offset, data=data, check=xxh3(data))
    assert made.message == usual.SerializeToString() and opened(made.message) == made
    assert (made.offset, made.data, made.check) == (offset, data, xxh3(data))


@given(st.builds(Piece, offset=numbers, data=st.binary(max_size=200), check=numbers), st.data())
def test_what_came_is_read_as_protobuf_reads_it(piece: Piece, data: st.DataObject) -> None:
    """Also where it is cut short, has a byte changed, says something twice, or is written in another order."""
    raw = bytearray(piece.SerializeToString())
    match data.draw(st.sampled_from(["same", "cut", "changed", "twice", "order"])):
        case "cut":
            del raw[data.draw(st.integers(0, len(raw))) :]
        case "changed" if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        case "twice":
            raw *= 2
        case "order":
            raw[:0] = Piece(check=7).SerializeToString()
    message = bytes(raw)
    try:
        known = Piece.FromString(message)
    except DecodeError:
        with pytest.raises(BrokenMessage, match="bytes that are no message"):
            opened(message)
    else:
        assert opened(message) == Cut(message, known.offset, memoryview(known.data), known.check)


@pytest.mark.parametrize("now", [None, 0, 1 << 30], ids=["no flag", "at once", "not at once"])
def test_a_file_is_read_whole_whatever_memory_has_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: int | None) -> None:
    file, room = tmp_path / "file", memoryview(bytearray(4))
    file.write_bytes(b"0123456789")
    monkeypatch.setattr(pieces, "NOW", now)  # a flag that the system does not know is refused
    with file.open("rb") as content:
        asyncio.run(fill(room, content.fileno(), 5))
        assert bytes(room) == b"5678"
        with pytest.raises(HostError, match="shorter than it was"):
            asyncio.run(fill(room, content.fileno(), 7))


def test_one_answer_to_several_pieces_makes_room_for_as_many(tmp_path: Path) -> None:
    """Of a window of pieces that are all on their way, the answer to the third frees three."""
    file, sent = tmp_path / "file", list[Cut]()
    file.write_bytes(bytes(8 << 20))

    async def sending() -> list[int]:
        async def write(piece: Cut) -> None:
            sent.append(piece)

        async def stalled() -> None:
            before = -1
            while len(sent) > before or flow._window._value > 0:
                before = len(sent)
                await asyncio.sleep(0.05)

        flow, counts = Flow(file, 8 << 20, 0, write), list[int]()
        task = asyncio.create_task(flow._send())
        await stalled()
        counts.append(len(sent))
        flow.heard(sent[2].offset + len(sent[2].data))
        await stalled()
        counts.append(len(sent))
        task.cancel()
        return counts

    assert asyncio.run(sending()) == [WINDOW, WINDOW + 3]
