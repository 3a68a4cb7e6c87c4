"""What networks do to connections: transfers go on where they were cut, and only silence ends anything, never slowness."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from fedsim.transport.session import Away, Came, Joined, Left
from fedsim.transport.wire import PIECE, WINDOW
from tests.outposts import Outposts, event, events, order, until

CONTENT = os.urandom(20_000_000)


@pytest.fixture
def posts(tmp_path: Path) -> Iterator[Outposts]:
    posts = Outposts(tmp_path)
    yield posts
    posts.close()


def test_a_cut_transfer_goes_on_at_the_committed_offset(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    proxy.rate = 60e6
    worker = posts.worker(proxy.port, work=lambda order, paths: CONTENT[::-1])
    event(hub, Joined)
    model = posts.store.put(CONTENT)
    proxy.cut_at = proxy.up + proxy.down + 12_000_000
    hub.order(worker.id, order(1, objects=[model]))
    until(lambda: worker.box)
    assert 20_000_000 < proxy.down < 20_000_000 + (WINDOW + 2) * PIECE and proxy.cut_at is None
    proxy.cut_at = proxy.up + proxy.down + 8_000_000
    came = event(hub, Came)
    assert came.file and came.file.read_bytes() == CONTENT[::-1]
    assert 20_000_000 < proxy.up < 20_000_000 + (WINDOW + 2) * PIECE and proxy.cut_at is None
    assert worker.orders == [(1,)] and hub.carried[worker.id].objects_up <= proxy.up


def test_many_cuts_still_make_one_whole(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    proxy.rate = 40e6
    worker = posts.worker(proxy.port, work=lambda order, paths: CONTENT[:9_000_000])
    event(hub, Joined)
    hub.order(worker.id, order(1))
    for size in (1_000_000, 2_500_000, 1_000, 3_000_000):
        proxy.cut_at = proxy.up + proxy.down + size
        until(lambda: proxy.cut_at is None)
    came = event(hub, Came)
    assert came.file and came.file.read_bytes() == CONTENT[:9_000_000] and worker.orders == [(1,)]
    assert [e for e in events(hub) if isinstance(e, Came)] == []


def test_bytes_changed_on_their_way_are_never_taken(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    worker = posts.worker(proxy.port, work=lambda order, paths: CONTENT[:3_000_000])
    event(hub, Joined)
    proxy.damage_at = proxy.up + 1_500_000
    hub.order(worker.id, order(1))
    came = event(hub, Came)
    assert came.file and came.file.read_bytes() == CONTENT[:3_000_000] and proxy.damage_at is None


def test_beats_keep_an_idle_stream_through_a_proxy_that_cuts_idle_ones(posts: Outposts) -> None:
    hub, port = posts.hub(silence=1.2)
    proxy = posts.proxy(port)
    proxy.idle = 0.6
    worker = posts.worker(proxy.port, silence=1.2)
    event(hub, Joined)
    end = monotonic() + 2.5
    until(lambda: monotonic() > end)
    assert events(hub) == [] and proxy.connections == 1
    proxy.idle = 0.1  # even beats are too rare for this one
    event(hub, Away)
    proxy.idle = None
    hub.order(worker.id, order(1))
    assert list(event(hub, Came).reply.jobs) == [1]


def test_a_slow_link_is_not_silence(posts: Outposts) -> None:
    hub, port = posts.hub(silence=1.0)
    proxy = posts.proxy(port)
    proxy.rate, proxy.delay = 400e3, 0.02
    worker = posts.worker(proxy.port, silence=1.0, work=lambda order, paths: CONTENT[:600_000])
    event(hub, Joined)
    begin = monotonic()
    hub.order(worker.id, order(1, objects=[posts.store.put(CONTENT[:1_000_000])]))
    came = event(hub, Came)
    assert monotonic() - begin > 3.5 and came.file and came.file.stat().st_size == 600_000
    assert [e for e in events(hub) if isinstance(e, Left | Away)] == []
    assert proxy.down < 1_050_000 and proxy.up < 650_000 and proxy.connections == 2


def test_small_objects_pass_large_ones(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    proxy.rate = 10e6
    worker = posts.worker(proxy.port)
    event(hub, Joined)
    large, small = posts.store.put(CONTENT), posts.store.put(b"small")
    hub.order(worker.id, order(1, objects=[large]))
    until(lambda: proxy.down > 2_000_000)
    hub.order(worker.id, order(2, objects=[small]))
    assert list(event(hub, Came).reply.jobs) == [2] and proxy.down < 15_000_000
    assert list(event(hub, Came).reply.jobs) == [1]


def test_a_transfer_survives_a_restart_of_the_server(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    proxy.rate = 8e6
    worker = posts.worker(proxy.port, work=lambda order, paths: CONTENT[:6_000_000])
    event(hub, Joined)
    hub.order(worker.id, order(1))
    until(lambda: proxy.up > 3_000_000)
    hub.stop("a restart", False, 0.1)
    again, _ = posts.hub(port, verdict=lambda job: "open")
    came = event(again, Came)
    assert came.file and came.file.read_bytes() == CONTENT[:6_000_000]
    assert proxy.up < 8_000_000 and again.carried[worker.id].objects_up < 5_000_000 and worker.orders == [(1,)]


def test_transfers_whose_connection_hangs_go_on_over_another(posts: Outposts) -> None:
    hub, port = posts.hub(silence=1.0)
    proxy = posts.proxy(port)
    proxy.rate = 8e6
    worker = posts.worker(proxy.port, silence=1.0)
    event(hub, Joined)
    hub.order(worker.id, order(1, objects=[posts.store.put(CONTENT[:6_000_000])]))
    until(lambda: proxy.down > 2_000_000)
    proxy.hung = {2}
    came = event(hub, Came)
    assert list(came.reply.jobs) == [1] and proxy.connections == 3 and proxy.down < 10_000_000
    assert [e for e in events(hub) if isinstance(e, Left | Away)] == []


def test_a_server_that_stands_still_does_not_take_workers_for_silent(posts: Outposts) -> None:
    hub, port = posts.hub(silence=0.5)
    posts.worker(port, silence=0.5)
    event(hub, Joined)
    hub._loop.call_soon_threadsafe(time.sleep, 1.5)
    time.sleep(2.5)
    assert [one for one in events(hub) if isinstance(one, Left)] == []
