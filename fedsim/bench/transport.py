"""What messages and objects cost on their way between a server and workers in another process, over TLS on loopback."""

import asyncio
import datetime
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from fedsim.base.memory import give_large_blocks_back
from fedsim.bench.figures import Figure, limit, say

SIZE = 100 << 20
HEAD = "transport: "


def transport(trials: int) -> list[Figure]:
    """Measured in a process of its own, whose memory is the server's alone."""
    command = [sys.executable, "-P", "-m", "fedsim.bench.transport", "measure", str(trials)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        return [Figure(**json.loads(line)) for line in process.stdout]


def self_signed() -> tuple[bytes, bytes]:
    """Key and certificate of this machine's loopback addresses, as PEM, for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1"))]
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
    certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain), certificate.public_bytes(pem)


class Server:
    """A hub with the figures' workers in another process."""

    def __init__(self, folder: Path, pair: tuple[bytes, bytes], workers: int, nodes: int) -> None:
        import grpc

        from fedsim.transport.hub import Hub
        from fedsim.transport.objects import Store
        from fedsim.transport.session import Joined

        self.store, self.each = Store(folder / "server"), nodes
        self.hub = Hub(self.store, self, listen=["127.0.0.1:0"], credentials=grpc.ssl_server_credentials([pair]))
        (folder / "ca.pem").write_bytes(pair[1])
        command = [sys.executable, "-P", "-m", "fedsim.bench.transport", "join", *self.hub.start(), str(folder), str(workers), str(nodes)]
        self.process = subprocess.Popen(command)
        self.job = 0
        self.workers = [event.worker for event in self.events(workers) if isinstance(event, Joined)]

    def welcome(self, hello: Any, claim: Any) -> Any:
        from fedsim.transport.messages_pb2 import Welcome

        first = int(hello.nodes)
        return Welcome(run="bench", nodes=range(first, first + self.each))

    def admit(self, session: Any, facts: bytes) -> None:
        """Everybody."""

    def events(self, count: int) -> list[Any]:
        return [self.hub.events.get(timeout=120) for _ in range(count)]

    def ask(self, worker: bytes, kind: str, objects: Sequence[Any] = ()) -> None:
        from fedsim.transport.messages_pb2 import Job, Order, Part

        jobs = [Job(id=self.job + i, node=i) for i in range(self.each)]
        self.job += self.each
        self.hub.order(worker, Order(kind=kind, jobs=jobs, parts=[Part(name="w", object=one) for one in objects]))

    def answers(self, count: int) -> list[Any]:
        """So many replies, each settled."""
        found = []
        for event in self.events(count):
            self.hub.settle(event.worker, list(event.reply.jobs), [])
            found.append(event.reply)
        return found

    def close(self) -> None:
        self.hub.stop("measured", True)
        self.process.wait(30)


@contextmanager
def server(workers: int, nodes: int = 1) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as place:
        running = Server(Path(place), self_signed(), workers, nodes)
        try:
            yield running
        finally:
            running.close()


def messages_and_objects(trials: int) -> list[Figure]:
    """The round trip of an order and its reply; an object's way up, in seconds beside a bare stream's and in CPU seconds of both ends."""
    with server(1) as running:
        (worker,) = running.workers

        def small() -> float:
            running.ask(worker, "echo")
            return float(running.answers(1)[0].head) + process_time()

        trips = []
        for _ in range(200):
            begin = perf_counter()
            small()
            trips.append(perf_counter() - begin)
        times, costs, bare = [], [], []
        for trial in range(trials + 1):
            say(f"{HEAD}trial {trial} of {trials}")
            cost, begin = small(), perf_counter()
            running.ask(worker, "up")
            running.answers(1)
            times.append(perf_counter() - begin)
            costs.append(small() - cost)
            bare.append(asyncio.run(_bare_stream()))
    ratios = [other / ours for ours, other in zip(times[1:], bare[1:], strict=True)]
    return [
        limit("an order and its reply, ms", median(trips) * 1000, 2.0),
        Figure("100 MiB up over TLS, s, beside a bare stream", median(times[1:]), median(bare[1:]), median(ratios), 0.6),
        limit("100 MiB up over TLS, CPU s of both ends", median(costs[1:]), 1.0),
    ]


def many_streams(trials: int) -> list[Figure]:
    """One order and reply to each of 500 workers that are connected."""
    with server(500) as running:
        found = []
        for trial in range(trials + 1):
            say(f"{HEAD}500 streams, trial {trial} of {trials}")
            begin = perf_counter()
            for worker in running.workers:
                running.ask(worker, "echo")
            running.answers(500)
            found.append(perf_counter() - begin)
    return [limit("an order and its reply for each of 500 workers, s", median(found[1:]), 1.0)]


def memory(trials: int) -> list[Figure]:
    """What a server takes that sends 2,000 nodes in 40 workers a model of 8 MiB and gets rows of 8 MiB from each worker."""
    with server(40, 50) as running:
        for trial in range(trials):
            say(f"{HEAD}40 workers, trial {trial + 1} of {trials}")
            model = running.store.put(os.urandom(8 << 20))
            for worker in running.workers:
                running.ask(worker, "rows", [model])
            running.answers(40)
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    return [limit("memory of a server with 2,000 nodes in 40 workers, MiB", peak, 400.0)]


async def _bare_stream() -> float:
    """Seconds that as many bytes take on a stream of grpcio, from another process, with nothing done to them."""
    import grpc

    begin, pair = [0.0], self_signed()

    async def take(_: object, context: Any) -> None:
        await context.read()
        begin[0] = perf_counter()
        for _ in range(SIZE >> 20):
            await context.read()
        begin[0] = perf_counter() - begin[0]
        await context.write(b"all")

    endless = (("grpc.max_receive_message_length", 4 << 20),)
    taking = grpc.aio.server(options=endless)
    handler = grpc.stream_stream_rpc_method_handler(take)
    taking.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare", {"take": handler}),))
    port = taking.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await taking.start()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "fedsim.bench.transport", "bare", f"127.0.0.1:{port}", stdin=asyncio.subprocess.PIPE
    )
    await process.communicate(pair[1])
    await taking.stop(0)
    return begin[0]


async def _bare_end(target: str, ca: bytes) -> None:
    import grpc

    piece = os.urandom(1 << 20)
    async with grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca)) as channel:
        call = channel.stream_stream("/bare/take")()
        await call.write(b"begin")
        for _ in range(SIZE >> 20):
            await call.write(piece)
        await call.read()


class Worker:
    """Answers each order: nothing but its process's CPU seconds, a large object (`up`) or a middling one (`rows`)."""

    def __init__(self, store: Any, content: bytes) -> None:
        self.store, self.content = store, store.put(content)
        self.outlet: Any

    def welcome(self, welcome: Any) -> bytes:
        return b""

    async def order(self, order: Any, paths: Any) -> None:
        from fedsim.transport.messages_pb2 import Object, Reply

        thing = Object() if order.kind == "echo" else self.content
        reply = Reply(jobs=[job.id for job in order.jobs], object=thing, head=f"{process_time()}".encode())
        for name in paths:
            self.store.drop(name)
        await self.outlet.reply(reply, self.store.path(thing.hash) if thing.hash else None)

    def cancel(self, jobs: Sequence[int]) -> None: ...

    def settled(self, kept: Sequence[int], gone: Sequence[int]) -> None: ...

    def pending(self) -> list[Any]:
        return []

    def state(self, text: str) -> None: ...


async def _join(target: str, folder: Path, workers: int, nodes: int) -> None:
    import grpc

    from fedsim.transport.objects import Store
    from fedsim.transport.outlet import Outlet

    give_large_blocks_back()
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())

    async def one(number: int) -> None:
        store = Store(folder / f"worker {number}")
        worker = Worker(store, os.urandom(SIZE if workers == 1 else 8 << 20) if workers < 100 else b"")
        place = str(number * nodes)
        worker.outlet = Outlet(target, store, role="train", nodes=place, worker_id=place.encode().zfill(16), credentials=credentials)
        await worker.outlet.run(worker)

    await asyncio.gather(*map(one, range(workers)))


def _measure(trials: str) -> None:
    give_large_blocks_back()  # as `fedsim serve` and `fedsim join`
    parts: list[Callable[[int], list[Figure]]] = [messages_and_objects, many_streams, memory]
    for part in parts:
        for figure in part(int(trials)):
            print(json.dumps(vars(figure)), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", trials]:
            _measure(trials)
        case ["bare", target]:
            asyncio.run(_bare_end(target, sys.stdin.buffer.read()))
        case ["join", target, folder, workers, nodes]:
            asyncio.run(_join(target, Path(folder), int(workers), int(nodes)))
