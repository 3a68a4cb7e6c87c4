"""What strangers and broken workers may do to a server: end their own stream, and nothing else."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from xxhash import xxh3_64_intdigest as xxh3

from fedsim.base.errors import BrokenMessage, FedsimError
from fedsim.transport.hub import Hub
from fedsim.transport.limits import Limits, Rate
from fedsim.transport.messages_pb2 import (
    BROKEN,
    PROTOCOL,
    Admitted,
    Beat,
    FromServer,
    FromWorker,
    Hello,
    Object,
    Piece,
    Ready,
    Reply,
    Wanted,
)
from fedsim.transport.messages_pb2_grpc import FedsimStub
from fedsim.transport.service import of_use
from fedsim.transport.session import Came, Joined
from tests.outposts import Outposts, Worker, event, events, order, until

ADMITTED = FromServer(admitted=Admitted())
HELLO = FromWorker(hello=Hello(protocol=2, worker=b"w" * 16, nodes="7"))


@pytest.fixture
def posts(tmp_path: Path) -> Iterator[Outposts]:
    posts = Outposts(tmp_path)
    yield posts
    posts.close()


def started(posts: Outposts, **limits: Any) -> tuple[Hub, int, Worker]:
    """A hub and a worker that goes on."""
    hub, port = posts.hub(limits=Limits(**limits))
    worker = posts.worker(port)
    event(hub, Joined)
    return hub, port, worker


def goes_on(hub: Hub, worker: Worker, job: int = 99) -> bool:
    hub.order(worker.id, order(job))
    return list(event(hub, Came).reply.jobs) == [job] and worker.states.count("connected to " + worker.outlet.target) == 1


def talk(
    posts: Outposts, port: int, *messages: FromWorker | bytes, metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[list[FromServer], grpc.StatusCode]:
    """What the server says to this, and how the stream ends."""

    async def run() -> tuple[list[FromServer], grpc.StatusCode]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            raw = channel.stream_stream("/fedsim.v1.Fedsim/Session", response_deserializer=FromServer.FromString)(metadata=metadata)
            heard: list[FromServer] = []

            async def listen() -> None:
                while isinstance(answer := await raw.read(), FromServer):
                    heard.append(answer)
                    if answer == ADMITTED:
                        return

            try:
                for message in messages:
                    await raw.write(message if isinstance(message, bytes) else message.SerializeToString())
                    if isinstance(message, FromWorker) and message.HasField("ready"):
                        await listen()
                await listen()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            return heard, await raw.code()

    return posts.do(run())


@pytest.mark.parametrize("what", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200), b"P"], ids=["http", "tls", "drip"])
def test_connections_that_are_no_http2_are_cut(posts: Outposts, what: bytes) -> None:
    hub, port, worker = started(posts, handshake=0.4)
    begin = monotonic()
    with socket.create_connection(("127.0.0.1", port), 5) as stranger, suppress(ConnectionError):
        stranger.sendall(what)
        while stranger.recv(1000):
            stranger.sendall(b"R")
    assert monotonic() - begin < 3
    assert goes_on(hub, worker)


@pytest.mark.parametrize(
    ("said", "reason", "cause"),
    [
        ((), BROKEN, "nothing was said for 0.4 s"),
        ((FromWorker(beat=Beat()),), BROKEN, "no hello of a fedsim worker"),
        ((FromWorker(hello=Hello(protocol=2, worker=b"w" * 16, nodes="7" * 9000)),), BROKEN, "no hello of a fedsim worker"),
        ((FromWorker(hello=Hello(protocol=2, worker=b"w" * 16, nodes="x")),), BROKEN, "x is no list of nodes"),
        ((FromWorker(hello=Hello(protocol=1, worker=b"w" * 16)),), PROTOCOL, "the worker speaks protocol 1, the server 2"),
        ((HELLO, HELLO), BROKEN, "hello, which makes no sense here"),
        ((HELLO, FromWorker(reply=Reply(jobs=[1]))), BROKEN, "reply, which makes no sense here"),
        ((HELLO, FromWorker(ready=Ready(facts=bytes(2000)))), BROKEN, "facts of 2000 bytes, where at most 1000 are taken"),
        ((HELLO, FromWorker(ready=Ready()), FromWorker(ready=Ready())), BROKEN, "ready, which makes no sense here"),
    ],
    ids=["mute", "beat", "long", "nodes", "version", "twice", "unadmitted", "facts", "ready"],
)
def test_who_says_nonsense_is_told_so(posts: Outposts, said: tuple[FromWorker, ...], reason: int, cause: str) -> None:
    hub, port, worker = started(posts, handshake=0.4, facts=1000)
    heard, _ = talk(posts, port, *said)
    assert heard[-1].refusal.reason == reason and cause in heard[-1].refusal.cause
    assert goes_on(hub, worker)


def test_bytes_that_are_no_message_end_their_stream_with_one_line(posts: Outposts, caplog: pytest.LogCaptureFixture) -> None:
    hub, port, worker = started(posts)
    for said in ((b"\xff\xff\xff",), (HELLO, b"\xff\xff\xff"), (bytes(3 << 20),), (HELLO, bytes(3 << 20))):
        talk(posts, port, *said)
    assert goes_on(hub, worker)
    assert "Traceback" not in caplog.text and all(record.exc_info is None for record in caplog.records)


def test_objects_are_for_those_who_are_welcome_and_need_them(posts: Outposts) -> None:
    hub, port, worker = started(posts)
    secret, needed = posts.store.put(b"secret"), posts.store.put(b"needed")
    hub.order(worker.id, order(1, objects=[needed], kind="hold"))
    until(lambda: worker.orders)
    session = next(iter(hub.desk.sessions.values()))

    async def fetch(what: Object, key: str) -> bytes | grpc.StatusCode:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = FedsimStub(channel).Download(metadata=(("fedsim-session", key),))
            try:
                if key == session.key:  # strangers are not even heard
                    await call.write(Wanted(hash=what.hash))
                return bytes((await call.read()).data)
            except grpc.aio.AioRpcError as error:
                return error.code()

    assert posts.do(fetch(needed, session.key)) == b"needed"
    assert posts.do(fetch(needed, "0" * 32)) == grpc.StatusCode.UNAUTHENTICATED
    assert posts.do(fetch(secret, session.key)) == grpc.StatusCode.NOT_FOUND


def test_a_reply_larger_than_expected_is_refused(posts: Outposts, caplog: pytest.LogCaptureFixture) -> None:
    hub, port, worker = started(posts, expected=lambda job: 1000)
    other = posts.worker(port, "1", work=lambda order, paths: bytes(2001))
    event(hub, Joined)
    hub.order(other.id, order(1, 2))
    with pytest.raises(FedsimError, match="the server refused a reply: a reply of 2001 bytes where at most 2000 are expected"):
        other.ended.result(5)
    assert goes_on(hub, worker) and "a reply of 2001 bytes" in caplog.text
    assert len([*posts.store.folder.iterdir()]) == 0


def test_pieces_that_are_wrong_are_refused(posts: Outposts, caplog: pytest.LogCaptureFixture) -> None:
    hub, port, worker = started(posts)
    hub.order(worker.id, order(1, kind="hold"))
    until(lambda: worker.orders)
    session = hub.desk.sessions[worker.id]
    with pytest.raises(BrokenMessage, match="a job that there can't be"):
        session.replied(Reply(jobs=[1, 1 << 63]))

    async def send(*pieces: Piece) -> tuple[grpc.StatusCode, str]:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = FedsimStub(channel).Upload(metadata=(("fedsim-session", session.key),))
            try:
                for piece in pieces:
                    await call.write(piece)
                async for _ in call:
                    pass
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass
            return await call.code(), await call.details()

    wanted = Object(hash=bytes(32), size=10)
    first = Piece(object=wanted, jobs=[1])
    assert posts.do(send(Piece(data=b"x"))) == (grpc.StatusCode.INVALID_ARGUMENT, "the first piece names no object")
    for piece, cause in [
        (Piece(offset=3, data=b"x"), "a piece for offset 3, where 0 is next"),
        (Piece(data=b"x" * 11), "a piece of 11 bytes at offset 0 of an object of 10"),
        (Piece(data=b"x" * 10, check=1), "a piece at offset 0 that was damaged on its way"),
        (Piece(data=b"x" * 10, check=xxh3(b"x" * 10)), "not those its name says"),
    ]:
        code, text = posts.do(send(first, piece))
        assert (code == grpc.StatusCode.DATA_LOSS and cause in text) or "damaged" in text, text
    assert goes_on(hub, worker)
    assert "Traceback" not in caplog.text


def test_a_reply_whose_object_was_not_uploaded_ends_the_stream(posts: Outposts) -> None:
    hub, port = posts.hub(verdict=lambda job: "open")
    heard, _ = talk(posts, port, HELLO, FromWorker(ready=Ready()), FromWorker(reply=Reply(jobs=[1], object=Object(hash=bytes(32), size=1))))
    assert "a reply whose object was not uploaded" in heard[-1].refusal.cause
    assert not [e for e in events(hub) if isinstance(e, Came)]


def test_too_many_workers_of_an_address_wait_until_others_have_gone(posts: Outposts) -> None:
    hub, port, worker = started(posts, per_address=2)
    second = posts.worker(port, "1")
    event(hub, Joined)
    third = posts.worker(port, "2")
    until(lambda: any("workers of this address" in state for state in third.states))
    posts.do(second.outlet.drain("home"))
    assert event(hub, Joined).worker == third.id and goes_on(hub, worker)


def test_a_flood_of_messages_is_slowed_down(posts: Outposts) -> None:
    hub, port, worker = started(posts, messages=100, burst=50)

    async def flood() -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = FedsimStub(channel).Session()
            for message in (HELLO, FromWorker(ready=Ready()), *[FromWorker(beat=Beat(sent=1))] * 2000):
                await call.write(message)
            await asyncio.sleep(1)
            call.cancel()
        return hub.carried[b"w" * 16].frames_up

    assert 50 <= posts.do(flood()) < 400
    assert goes_on(hub, worker)


def test_a_rate_lets_a_burst_through_and_then_so_many_a_second() -> None:
    rate = Rate(10, 5)
    waits = [rate.wait() for _ in range(7)]
    assert waits[:5] == [0] * 5 and waits[5] == pytest.approx(0.1, abs=0.01) and waits[6] == pytest.approx(0.2, abs=0.01)


def test_log_of_refusals_is_no_warning(posts: Outposts, caplog: pytest.LogCaptureFixture) -> None:
    _, port, _ = started(posts)
    with caplog.at_level(logging.INFO):
        talk(posts, port, FromWorker(hello=Hello(protocol=1, worker=b"w" * 16)))
        until(lambda: "refused: the worker speaks protocol 1" in caplog.text)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        ("Exception not handled by _handle_exceptions in servicer method [/fedsim.v1.Fedsim/Upload]", asyncio.CancelledError(), False),
        ("ExecuteBatchError raised in core by servicer method [/fedsim.v1.Fedsim/Session]", None, False),
        ("Unexpected [ValueError] raised by servicer method [/fedsim.v1.Fedsim/Upload]", ValueError(), True),
    ],
)
def test_who_hangs_up_leaves_no_traceback_of_grpc_and_a_fault_does(message: str, error: BaseException | None, told: bool) -> None:
    found = (type(error), error, None) if error else None
    assert of_use(logging.LogRecord("grpc", logging.ERROR, "", 0, message, None, found)) is told
