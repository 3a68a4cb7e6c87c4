"""A hub and workers over real sockets: orders come back as replies, once, whatever happens to connections and processes between."""

import asyncio
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedsim.base.errors import FedsimError
from fedsim.bench.transport import self_signed
from fedsim.transport.handler import Refused
from fedsim.transport.hub import Hub
from fedsim.transport.messages_pb2 import NODE_TAKEN, RUN_OVER, SCENARIO, Hello, Object, Refusal, Welcome
from fedsim.transport.pulse import Line, Pulse
from fedsim.transport.session import Away, Back, Came, Joined, Left
from tests.outposts import Outposts, Worker, event, events, order, until

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def posts(tmp_path: Path) -> Iterator[Outposts]:
    posts = Outposts(tmp_path)
    yield posts
    posts.close()


def test_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *out, "fedsim/transport/messages.proto"], cwd=ROOT, check=True)
    for file in ("messages_pb2.py", "messages_pb2.pyi", "messages_pb2_grpc.py"):
        assert (tmp_path / "fedsim/transport" / file).read_text() == (ROOT / "fedsim/transport" / file).read_text(), "run `make proto`"


def test_an_order_goes_out_with_its_objects_and_comes_back_as_a_reply(posts: Outposts) -> None:
    hub, port = posts.hub()
    worker = posts.worker(port, "3,5", work=lambda order, paths: b"".join(paths[part.object.hash].read_bytes() for part in order.parts) * 2)
    joined = event(hub, Joined)
    assert (joined.worker, joined.nodes, joined.facts) == (worker.id, (3, 5), b"facts") and posts.door.found == [b"facts"]
    objects = [posts.store.put(b"model"), posts.store.put(bytes(3_000_000))]
    hub.order(worker.id, order(7, 8, objects=objects))
    came = event(hub, Came)
    assert came.worker == worker.id and list(came.reply.jobs) == [7, 8] and came.reply.head == b"[7, 8]"
    assert came.file and came.file.read_bytes() == (b"model" + bytes(3_000_000)) * 2
    hub.settle(worker.id, [7], [8])
    until(lambda: (worker.kept, worker.gone, worker.box) == ([7], [8], {}))
    carried = hub.carried[worker.id]
    assert carried.objects_down == 3_000_005 and carried.objects_up == 6_000_010
    assert carried.objects_down < carried.down < 3_003_000 and carried.objects_up < carried.up < 6_013_000
    until(lambda: hub.clock(worker.id))
    trip, ahead = hub.clock(worker.id) or (1, 1)
    assert 0 <= trip < 0.1 and abs(ahead) < 0.1
    hub.stop("enough", True)
    assert worker.ended.result(5) == "enough"


def test_several_workers_share_an_object_that_each_gets_once(posts: Outposts) -> None:
    hub, port = posts.hub()
    workers = [posts.worker(port, str(node)) for node in range(3)]
    until(lambda: len(hub.desk.sessions) == 3)
    [event(hub, Joined) for _ in workers]
    model = posts.store.put(b"x" * 100_000)
    for job, worker in enumerate(workers * 4):
        hub.order(worker.id, order(job, objects=[model]))
    assert sorted(job for _ in range(12) for job in event(hub, Came).reply.jobs) == list(range(12))
    assert [hub.carried[worker.id].objects_down for worker in workers] == [100_000] * 3


def test_a_cut_loses_nothing_and_computes_nothing_twice(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    worker = posts.worker(proxy.port)
    event(hub, Joined)
    hub.order(worker.id, order(1, 2, kind="hold"))
    until(lambda: worker.orders == [(1, 2)])
    proxy.cut()
    assert event(hub, Away).worker == event(hub, Back).worker == worker.id
    hub.order(worker.id, order(3))
    came = event(hub, Came)
    assert list(came.reply.jobs) == [3] and worker.orders == [(1, 2), (3,)] and worker.prepared == 1
    proxy.closed = True
    proxy.cut()
    event(hub, Away)
    hub.settle(worker.id, [3], [])
    hub.cancel(worker.id, [2])
    hub.order(worker.id, order(4))
    proxy.closed = False
    event(hub, Back)
    assert list(event(hub, Came).reply.jobs) == [4]
    until(lambda: (worker.kept, worker.cancelled) == ([3], [2]))
    posts.do(worker.answer([1], b"late"))
    assert list(event(hub, Came).reply.jobs) == [1] and worker.orders == [(1, 2), (3,), (4,)]
    assert events(hub) == []


def test_a_reply_waits_for_its_connection_and_is_told_once(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    worker = posts.worker(proxy.port)
    event(hub, Joined)
    hub.order(worker.id, order(1, kind="hold"))
    until(lambda: worker.orders)
    proxy.closed = True
    proxy.cut()
    event(hub, Away)
    work = posts.loop.call_soon_threadsafe
    work(lambda: posts.loop.create_task(worker.answer([1], b"content")))
    until(lambda: worker.box)
    proxy.closed = False
    came = event(hub, Came)
    assert came.file and came.file.read_bytes() == b"content"
    for _ in range(2):
        proxy.cut()
        event(hub, Back)
    hub.settle(worker.id, [1], [])
    until(lambda: worker.kept == [1])
    assert [e for e in events(hub) if isinstance(e, Came)] == [] and hub.carried[worker.id].objects_up == 7


def test_what_nobody_waits_for_is_gone_and_what_was_merged_is_kept(posts: Outposts) -> None:
    hub, port = posts.hub(verdict=lambda job: {5: "kept", 6: "open"}.get(job))
    worker = posts.worker(port)
    event(hub, Joined)
    posts.do(worker.answer([4], b"unasked"))
    posts.do(worker.answer([5], b"merged before"))
    until(lambda: (worker.kept, worker.gone) == ([5], [4]))
    posts.do(worker.answer([6], b"waited for"))
    assert list(event(hub, Came).reply.jobs) == [6] and hub.carried[worker.id].objects_up == 10
    hub.settle(worker.id, [6], [])
    until(lambda: worker.kept == [5, 6])


def test_equal_replies_of_several_workers_stay_until_each_is_settled(posts: Outposts) -> None:
    hub, port = posts.hub()
    model = posts.store.put(b"as it was" * 1000)
    for node in range(3):
        posts.worker(port, str(node), work=lambda order, paths: b"as it was" * 1000)
    for _ in range(3):
        hub.order(event(hub, Joined).worker, order(1, objects=[model]))
    posts.store.drop(model.hash)
    for _ in range(3):
        came = event(hub, Came)
        assert came.file and came.file.read_bytes() == b"as it was" * 1000
        hub.settle(came.worker, [1], [])
    until(lambda: not posts.store.has(model.hash) and [*posts.store.folder.iterdir()] == [])


def test_equal_replies_of_one_worker_travel_once(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    proxy.rate = 4e6
    worker = posts.worker(proxy.port, work=lambda order, paths: bytes(2_000_000))
    event(hub, Joined)
    for job in range(3):
        hub.order(worker.id, order(job))
    found = [event(hub, Came) for _ in range(3)]
    assert sorted(came.reply.jobs[0] for came in found) == [0, 1, 2] and hub.carried[worker.id].objects_up == 2_000_000
    for came in found:
        assert came.file and came.file.stat().st_size == 2_000_000
        hub.settle(came.worker, came.reply.jobs, [])
    until(lambda: not posts.store.has(found[0].reply.object.hash))


def one_long_call(seconds: float) -> None:
    """In C, about so long on any machine."""
    began = monotonic()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 100_000)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(100_000 * seconds / (monotonic() - began)))


def test_a_worker_that_disappears_has_left_and_one_that_works_long_has_not(posts: Outposts) -> None:
    hub, port = posts.hub(silence=0.8)
    proxy = posts.proxy(port)
    busy = posts.worker(port, "0", silence=0.8, work=lambda order, paths: one_long_call(2.0))
    lost = posts.worker(proxy.port, "1", silence=0.8)
    event(hub, Joined), event(hub, Joined)
    hub.order(busy.id, order(1))
    proxy.paused = True
    left = event(hub, Left)
    assert (left.worker, left.nodes) == (lost.id, (1,)) and "nothing was heard of it for 0.8 s" in left.why
    came = event(hub, Came)
    assert came.worker == busy.id and not [e for e in events(hub) if isinstance(e, Left)]
    proxy.paused = False
    assert event(hub, Joined).worker == lost.id


def test_a_server_that_comes_back_on_its_port_is_found(posts: Outposts) -> None:
    hub, port = posts.hub()
    worker = posts.worker(port)
    event(hub, Joined)
    hub.order(worker.id, order(1, kind="hold"))
    until(lambda: worker.orders)
    hub.stop("a restart", False, 0.1)
    posts.loop.call_soon_threadsafe(lambda: posts.loop.create_task(worker.answer([1], b"content")))
    again, _ = posts.hub(port, verdict=lambda job: "open" if job == 1 else None)
    assert event(again, Joined).worker == worker.id and worker.prepared == 1
    again.order(worker.id, order(1))
    came = event(again, Came)
    assert list(came.reply.jobs) == [1] and worker.orders == [(1,)]
    assert any("a restart" in state for state in worker.states)


def test_workers_that_took_what_was_free_ask_the_next_server_for_the_same(posts: Outposts) -> None:
    """Else the first that comes back would get all, and memories would be with others."""
    asked, door = list[str](), posts.door.welcome

    def welcome(hello: Hello, claim: Any) -> Welcome | Refusal:
        asked.append(hello.nodes)
        return Welcome(run="run", scenario=b"{}", nodes=[1, 2, 5]) if hello.nodes in ("auto", "1..2,5") else door(hello, claim)

    posts.door.welcome = welcome  # type: ignore[method-assign]
    hub, port = posts.hub()
    posts.worker(port, "auto")
    assert event(hub, Joined).nodes == (1, 2, 5)
    hub.stop("a restart", False, 0.1)
    again, _ = posts.hub(port)
    assert event(again, Joined).nodes == (1, 2, 5) and {*asked[1:]} == {"1..2,5"}


def test_a_worker_that_is_drained_hands_over_and_leaves(posts: Outposts) -> None:
    hub, port = posts.hub()
    worker = posts.worker(port, work=lambda order, paths: bytes(2_000_000))
    event(hub, Joined)
    hub.order(worker.id, order(1))
    until(lambda: worker.box)
    posts.do(worker.outlet.drain("sent home"))
    assert worker.ended.result(5) == "sent home"
    came = event(hub, Came)
    assert event(hub, Left).why == "sent home" and came.file and came.file.stat().st_size == 2_000_000
    hub.settle(worker.id, [1], [])
    until(lambda: not posts.store.has(came.reply.object.hash))


def test_refusals_say_why_at_the_worker(posts: Outposts) -> None:
    hub, port = posts.hub()
    posts.door.no = Refusal(reason=SCENARIO, cause="train.lr is 0.1 here and 0.2 there", cure="use the server's scenario")
    with pytest.raises(Refused, match=r"train.lr is 0.1 here and 0.2 there; use the server's scenario"):
        posts.worker(port).ended.result(5)
    posts.door.no = Refusal(reason=RUN_OVER, cause="the run has ended")
    assert posts.worker(port).ended.result(5) == "the run has ended"
    posts.door.no = None
    posts.worker(port, "1,2")
    event(hub, Joined)
    with pytest.raises(Refused, match=r"node 2, which 127\.0\.0\.1:\d+ wants, is hosted by 127\.0\.0\.1:\d+") as no:
        posts.worker(port, "2,3").ended.result(5)
    assert no.value.refusal.reason == NODE_TAKEN and len(hub.desk.sessions) == 1


def test_of_two_processes_with_one_identity_the_newer_goes_on(posts: Outposts) -> None:
    hub, port = posts.hub()
    first = posts.worker(port)
    event(hub, Joined)
    second = posts.worker(port)
    assert event(hub, Back).worker == second.id
    with pytest.raises(Refused, match="the same worker connected from"):
        first.ended.result(5)
    hub.order(second.id, order(1))
    event(hub, Came)
    assert (first.orders, second.orders) == ([], [(1,)])


def test_addresses_of_both_families_and_those_that_cannot_be_had(posts: Outposts) -> None:
    hub, port = posts.hub(host="[::1]")
    posts.worker(port, host="[::1]")
    event(hub, Joined)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        with pytest.raises(FedsimError, match=rf"127.0.0.1:{used}: can't be listened at: Address already in use"):
            posts.hub(used)
    with pytest.raises(FedsimError, match=rf"\[::1\]:{port}: can't be listened at: Address already in use"):
        posts.hub(port, host="[::1]")
    with pytest.raises(FedsimError, match=r"192.0.2.1:0: can't be listened at: Cannot assign"):
        posts.hub(host="192.0.2.1")
    with pytest.raises(FedsimError, match=r"7070: no HOST:PORT"):
        Hub(posts.store, posts.door, listen=["7070"]).start()


def test_an_order_that_cannot_be_sent_is_an_error_at_once(posts: Outposts) -> None:
    hub, _ = posts.hub()
    huge = order(1)
    huge.head = bytes(3 << 20)
    with pytest.raises(FedsimError, match=r"an order of 31457\d\d bytes, where a message has at most"):
        hub.order(b"anybody", huge)
    there = posts.store.put(b"there")
    with pytest.raises(FedsimError, match=r"an order needs the object 000000000000 \(1\), which is not in the store"):
        hub.order(b"anybody", order(1, objects=[there, Object(hash=bytes(32))]))
    hub.order(b"anybody", order(1, objects=[there]))  # who has left, so that its pin goes
    posts.store.drop(there.hash)
    until(lambda: not posts.store.has(there.hash))


def test_beats_go_on_while_a_worker_prepares_and_the_server_makes_up_its_mind(posts: Outposts) -> None:
    hub, port = posts.hub(silence=0.4)
    worker = Worker(posts.folder / "slow", "0")
    worker.welcome = lambda welcome: sleep(1) or b"facts"  # type: ignore[func-returns-value,method-assign,misc]
    posts.door.admit = lambda session, facts: sleep(1)  # type: ignore[method-assign,func-returns-value]
    posts.run(worker, f"127.0.0.1:{port}")
    assert event(hub, Joined).facts == b"facts" and [state for state in worker.states if "no connection" in state] == []


def test_everything_goes_over_tls_and_a_stranger_to_the_ca_gets_nowhere(posts: Outposts) -> None:
    pair, other = self_signed(), self_signed()
    hub, port = posts.hub(credentials=grpc.ssl_server_credentials([pair]))
    content = bytes(range(256)) * 10_000
    worker = posts.worker(port, credentials=grpc.ssl_channel_credentials(pair[1]), work=lambda order, paths: content)
    event(hub, Joined)
    hub.order(worker.id, order(1, objects=[posts.store.put(content[::-1])]))
    came = event(hub, Came)
    assert came.file and came.file.read_bytes() == content
    stranger = posts.worker(port, "1", credentials=grpc.ssl_channel_credentials(other[1]))
    until(lambda: any("CERTIFICATE_VERIFY_FAILED" in state for state in stranger.states))
    assert len(hub.desk.sessions) == 1


def test_health_is_told_to_whoever_asks(posts: Outposts) -> None:
    _, port = posts.hub()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_full_disk_at_either_end_is_waited_out(
    posts: Outposts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub, port = posts.hub()
    worker = posts.worker(port, work=lambda order, paths: bytes(500_000))
    event(hub, Joined)
    full, real = ["server"], os.pwrite

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        if full[0] in os.readlink(f"/proc/self/fd/{file}") and offset:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    hub.order(worker.id, order(1))
    until(lambda: hub.full and any("server" in state and "No space left on device; goes on when" in state for state in worker.states))
    full[0] = "nowhere"
    assert list(event(hub, Came).reply.jobs) == [1] and not hub.full
    assert caplog.text.count("replies wait at their workers") == 1 and "there is room again" in caplog.text
    full[0] = str(worker.store.folder)
    model = posts.store.put(bytes(400_000))
    hub.order(worker.id, order(2, objects=[model]))
    until(lambda: any(str(worker.store.folder) in state for state in worker.states))
    full[0] = "nowhere"
    assert list(event(hub, Came).reply.jobs) == [2]
    assert hub.carried[worker.id].objects_down < 2 * 400_000


def test_a_worker_without_a_server_says_so_and_can_be_sent_home(posts: Outposts) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = posts.worker(port)
    until(lambda: sum("no connection to 127.0.0.1" in state and "next try in 0." in state for state in worker.states) >= 3)
    posts.do(worker.outlet.drain("sent home"))
    assert worker.ended.result(1) == "sent home"


def test_what_is_cancelled_is_neither_fetched_nor_sent_to_its_end(posts: Outposts) -> None:
    hub, port = posts.hub()
    proxy = posts.proxy(port)
    proxy.rate = 4e6
    worker = posts.worker(proxy.port)
    event(hub, Joined)
    hub.order(worker.id, order(1, objects=[posts.store.put(os.urandom(8_000_000))]))
    until(lambda: proxy.down > 500_000)
    hub.cancel(worker.id, [1])
    hub.order(worker.id, order(2, kind="hold"))
    until(lambda: worker.orders == [(2,)])
    answered = asyncio.run_coroutine_threadsafe(worker.answer([2], os.urandom(8_000_000)), posts.loop)
    until(lambda: proxy.up > 500_000)
    hub.cancel(worker.id, [2])
    assert answered.result(5) is None
    until(lambda: worker.cancelled == [1, 2] and not [*posts.store.folder.glob("*.part")])
    assert proxy.down < 4_000_000 and proxy.up < 4_000_000 and worker.orders == [(2,)]


def test_beats_are_as_frequent_as_the_other_end_came_to_ask() -> None:
    said: list[str] = []

    async def write(message: str) -> None:
        said.append(message)

    async def talk() -> None:
        every, line = 60.0, Line[str](Pulse(), lambda beat: "beat")
        talking = asyncio.create_task(line.run(write, lambda: every))
        await asyncio.sleep(0.01)
        every = 0.01
        line.post("ready")
        await asyncio.sleep(0.2)
        line.end()
        await talking

    asyncio.run(talk())
    assert said[:2] == ["beat", "ready"] and 3 <= said.count("beat") <= 22
