"""Rows of more than 2 GiB, there and back: `make test-network`."""

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from random import Random
from time import monotonic

import pytest

from fedsim.transport.messages_pb2 import Order
from fedsim.transport.session import Came, Joined
from tests.outposts import Outposts, event, order

SIZE = 2_500_000_000
BLOCK = 25_000_000


@pytest.fixture
def posts(tmp_path: Path) -> Iterator[Outposts]:
    posts = Outposts(tmp_path)
    yield posts
    posts.close()


@pytest.mark.network
def test_a_row_of_two_and_a_half_gigabytes_goes_both_ways(posts: Outposts, tmp_path: Path) -> None:
    file, lot = tmp_path / "row", Random(0)
    with file.open("wb") as out:
        for _ in range(SIZE // BLOCK):
            out.write(lot.randbytes(BLOCK))

    def turned(order: Order, paths: dict[bytes, Path]) -> list[memoryview]:
        """The same bytes, the last one first."""
        with next(iter(paths.values())).open("rb") as source:
            raw = memoryview(mmap(source.fileno(), 0, access=ACCESS_READ))
        return [raw[-1:], *(raw[at : at + BLOCK] for at in range(0, SIZE - 1, BLOCK))]

    thing = posts.store.adopt(file)
    hub, port = posts.hub()
    worker = posts.worker(port, work=turned)  # type: ignore[arg-type]
    event(hub, Joined)
    begun = monotonic()
    posts.store.pin(thing.hash)  # the order's
    hub.order(worker.id, order(1, objects=[thing]))
    came = event(hub, Came, 500)
    print(f"\n2.5 GB there and back: {monotonic() - begun:.0f} s")
    assert thing.size == SIZE and came.reply.object.size == SIZE + 1 and came.file
    with came.file.open("rb") as got, posts.store.path(thing.hash).open("rb") as sent:
        one, other = mmap(got.fileno(), 0, access=ACCESS_READ), mmap(sent.fileno(), 0, access=ACCESS_READ)
        assert one[0] == other[SIZE - 1]
        assert all(one[at + 1 : at + 1 + BLOCK] == other[at : at + BLOCK] for at in range(0, SIZE, BLOCK))
