"""A stranger at a server's port: frames that almost make sense, from outside and as a worker that was let in."""

import asyncio
import json
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
from xxhash import xxh3_64_intdigest as xxh3

from fedsim import __version__
from fedsim.transport.messages_pb2 import Beat, Bye, FromServer, FromWorker, Hello, Object, Piece, Ready, Reply, Wanted
from fedsim.transport.naming import named
from fedsim.transport.wire import PROTOCOL, SESSION

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HEADS: list[Any] = [
    {"sizes": [64]},
    {"sizes": [float("inf")]},
    {"sizes": [10**30, -1]},
    {"sizes": "x"},
    {"error": {"a": [1]}},
    {"error": "\x1b[2J" + "long " * 2000},
    [1],
    None,
    "text",
]
PATIENCE = 1.0  # seconds for an answer


class Stranger:
    """Frames of one seed; `sent` counts them. `nodes` are those that it may host, `others` jobs that are none of its own."""

    def __init__(self, port: int, nodes: str, seed: int) -> None:
        self.port, self.nodes, self.lot = port, nodes, random.Random(seed)
        self.worker = self.lot.randbytes(16)
        self.sent = 0
        self.jobs = [0, 1, 2]
        self.session = ""
        self.facts = b"{}"
        self.samples = [bytes(64)]

    def number(self) -> int:
        return self.lot.choice([0, 1, 7, 4096, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, self.lot.randrange(1 << 40)])

    def mutated(self, raw: bytes) -> bytes:
        """The same bytes, but for what happens to them."""
        lot, data = self.lot, bytearray(raw)
        match lot.randrange(7):
            case 0 if data:
                data[lot.randrange(len(data))] ^= 1 << lot.randrange(8)
            case 1:
                del data[lot.randrange(len(data) + 1) :]
            case 2:
                data[lot.randrange(len(data) + 1) :] = b"\x0a" + b"\xff" * lot.randrange(1, 12) + b"\x7f"
            case 3:
                at = lot.randrange(len(data) + 1)
                data[at:at] = lot.randbytes(lot.randrange(1, 40))
            case 4:
                data = data * 2
            case 5:
                data = bytearray(lot.randbytes(lot.randrange(200)))
        return bytes(data)

    def reply(self) -> Reply:
        lot = self.lot
        jobs = lot.choices([*self.jobs, self.number()], k=lot.randrange(4))
        head = json.dumps(lot.choice(HEADS)).encode() if lot.random() < 0.7 else lot.randbytes(20)
        if lot.random() < 0.1:
            head = b"[" * 100_000
        object = Object(hash=lot.randbytes(lot.choice([0, 32, 31, 4000])), size=self.number()) if lot.random() < 0.5 else Object()
        seconds = lot.choice([0.1, -1.0, 1e300, float("nan"), float("inf")])
        return Reply(jobs=jobs, head=head, object=object, down=seconds, work=seconds)

    def word(self) -> bytes:
        """Something that a worker might say."""
        lot = self.lot
        what = lot.choice(
            [
                FromWorker(hello=Hello(protocol=PROTOCOL, version=__version__, worker=lot.randbytes(16), nodes=self.nodes)),
                FromWorker(ready=Ready(facts=self.facts)),
                FromWorker(ready=Ready(facts=lot.randbytes(40))),
                FromWorker(reply=self.reply()),
                FromWorker(reply=self.reply()),
                FromWorker(beat=Beat(sent=self.number(), echo=float("nan"), held=-1e300)),
                FromWorker(bye=Bye(reason="so\nlong\x1b[31m", drained=True)),
            ]
        ).SerializeToString()
        return self.mutated(what) if lot.random() < 0.5 else what

    async def in_session(self, channel: Any, frames: int, honest: bool) -> None:
        """A stream; `honest`: at first, so that it is let in."""
        call = channel.stream_stream("/fedsim.v1.Fedsim/Session", response_deserializer=FromServer.FromString)()
        hello = FromWorker(hello=Hello(protocol=PROTOCOL, version=__version__, worker=self.worker, nodes=self.nodes, role="train"))
        with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                if honest:
                    await call.write(hello.SerializeToString())
                    await call.write(FromWorker(ready=Ready(facts=self.facts)).SerializeToString())
                    await self._admitted(call)
                    await call.write(await self.forged(channel))
                for _ in range(frames):
                    await call.write(self.word())
                    self.sent += 1
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass
        call.cancel()

    async def _admitted(self, call: Any) -> None:
        """Reads until it has an order, or nothing comes."""
        while isinstance(message := await call.read(), FromServer):
            if message.HasField("welcome"):
                self.session = message.welcome.session.decode()
            if message.HasField("order"):
                self.jobs = [*(job.id for job in message.order.jobs), *range(max(job.id for job in message.order.jobs))][-40:]
                return

    async def forged(self, channel: Any) -> bytes:
        """A reply whose object is whole, and almost what a worker would have made."""
        content = self.mutated(self.lot.choice(self.samples))
        sizes = [len(content) - self.lot.choice([0, 0, 0, 1, 8])]
        wanted, job = named(content), self.jobs[:1]
        call = channel.stream_stream("/fedsim.v1.Fedsim/Upload")(metadata=((SESSION, self.session),))
        for piece in (Piece(object=wanted, jobs=job), Piece(data=content, check=xxh3(content))):
            await call.write(piece.SerializeToString())
            self.sent += 1
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        reply = Reply(jobs=job, object=wanted, head=json.dumps({"sizes": sizes}).encode(), work=0.1)
        return FromWorker(reply=reply).SerializeToString()

    async def transfer(self, channel: Any, frames: int) -> None:
        """An upload or a download, of a session that lives or of none."""
        lot, data = self.lot, self.lot.randbytes(64)
        name = lot.choice(["Upload", "Download"])
        metadata = ((SESSION, lot.choice([self.session, self.session, "", "0" * 32])),)
        call = channel.stream_stream(f"/fedsim.v1.Fedsim/{name}")(metadata=metadata)
        with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                for at in range(frames):
                    hash, size = lot.randbytes(lot.choice([32, 32, 0, 5, 300])), lot.choice([64, 0, 1, self.number()])
                    wanted: Any = Wanted(hash=hash, offset=self.number())
                    if name == "Upload":
                        first = Piece(object=Object(hash=hash, size=size), jobs=self.jobs[: lot.randrange(4)])
                        later = Piece(offset=lot.choice([0, self.number()]), data=data, check=xxh3(data) ^ lot.randrange(2))
                        wanted = first if not at else later
                    raw = wanted.SerializeToString()
                    await call.write(self.mutated(raw) if lot.random() < 0.4 else raw)
                    self.sent += 1
                await call.done_writing()
                while await call.read() is not grpc.aio.EOF:
                    pass
        call.cancel()

    async def raw(self, frames: int) -> None:
        """Bytes below gRPC: mutated HTTP/2, too long, or a drip."""
        lot = self.lot
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(PREFACE if lot.random() < 0.8 else self.mutated(PREFACE))
            for _ in range(frames):
                kind, body = lot.randrange(12), lot.randbytes(lot.randrange(64))
                size = lot.choice([len(body), (1 << 24) - 1, 0])
                frame = size.to_bytes(3, "big") + bytes([kind, lot.randrange(256)]) + lot.randrange(1 << 31).to_bytes(4, "big") + body
                writer.write(self.mutated(SETTINGS) if lot.random() < 0.2 else frame)
                self.sent += 1
            await writer.drain()
            if lot.random() < 0.2:
                await asyncio.sleep(0.2)
            writer.transport.abort()

    async def attack(self, frames: int, together: int = 4) -> None:
        """At least so many frames of all kinds."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            await self.in_session(channel, 1, honest=True)
            while self.sent < frames:
                kinds = self.lot.choices([0, 1, 2, 3], k=together)
                works = [self.in_session(channel, 6, honest=not at) for at, kind in enumerate(kinds) if kind < 2]
                works += [self.transfer(channel, 4) if kind == 2 else self.raw(8) for kind in kinds if kind >= 2]
                await asyncio.gather(*works)


def dripping(port: int, count: int) -> Sequence[socket.socket]:
    """Connections that have said a little and say no more."""
    found = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for at, one in enumerate(found):
        one.sendall(PREFACE[: 1 + at % len(PREFACE)])
    return found
