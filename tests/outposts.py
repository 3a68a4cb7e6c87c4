"""A hub and workers on this machine, for tests: real sockets, one loop for all workers and proxies."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty
from time import monotonic, sleep
from typing import Any, TypeVar

from fedsim.base.errors import FedsimError
from fedsim.transport.hub import Hub
from fedsim.transport.messages_pb2 import Hello, Job, Object, Order, Part, Refusal, Reply, Welcome
from fedsim.transport.objects import Store
from fedsim.transport.outlet import Outlet
from fedsim.transport.session import Event, Session
from tests.proxy import Proxy

T = TypeVar("T")
E = TypeVar("E")


def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits until it is true."""
    end = monotonic() + seconds
    while not true():
        assert monotonic() < end, "it did not come true"
        sleep(0.005)


class Door:
    """A handshake that gives each worker the nodes it asks for; `no` is what it says instead."""

    def __init__(self) -> None:
        self.no: Refusal | None = None
        self.found: list[bytes] = []

    def welcome(self, hello: Hello, claim: Any) -> Welcome | Refusal:
        if not hello.nodes.replace(",", "").isdigit():
            raise FedsimError(f"{hello.nodes} is no list of nodes")
        return self.no or Welcome(run="run", scenario=b"{}", nodes=map(int, hello.nodes.split(",")))

    def admit(self, session: Session, facts: bytes) -> Refusal | None:
        self.found.append(facts)
        return None


class Worker:
    """A worker whose jobs' replies are their ids, or what `work` makes of an order and its objects."""

    def __init__(self, folder: Path, nodes: str, name: str = "", work: Callable[[Order, dict[bytes, Path]], bytes] | None = None) -> None:
        self.store = Store(folder)
        self.nodes, self.id = nodes, (name or f"worker {nodes}").encode()[:16].ljust(16)
        self.work = work
        self.box: dict[tuple[int, ...], tuple[Reply, Path | None]] = {}
        self.orders: list[tuple[int, ...]] = []
        self.kept: list[int] = []
        self.gone: list[int] = []
        self.cancelled: list[int] = []
        self.states: list[str] = []
        self.prepared = 0
        self.outlet: Outlet
        self.ended: Future[str]

    def welcome(self, welcome: Welcome) -> bytes:
        self.prepared += 1
        return b"facts"

    async def order(self, order: Order, paths: dict[bytes, Path]) -> None:
        jobs = tuple(job.id for job in order.jobs if job.id not in order.done)
        self.orders.append(jobs)
        if order.kind == "hold":
            return
        content = await asyncio.to_thread(self.work, order, paths) if self.work else b""
        for name in paths:
            self.store.drop(name)
        await self.answer(jobs, content)

    async def answer(self, jobs: Sequence[int], content: bytes = b"") -> None:
        thing = self.store.put(content) if content else Object()
        reply = Reply(jobs=jobs, head=repr(list(jobs)).encode(), object=thing)
        self.box[tuple(jobs)] = reply, self.store.path(thing.hash) if content else None
        await self.outlet.reply(*self.box[tuple(jobs)])

    def cancel(self, jobs: Sequence[int]) -> None:
        self.cancelled += jobs

    def settled(self, kept: Sequence[int], gone: Sequence[int]) -> None:
        self.kept += kept
        self.gone += gone
        self.box = {jobs: what for jobs, what in self.box.items() if not {*jobs} <= {*kept, *gone}}

    def pending(self) -> list[tuple[Reply, Path | None]]:
        return list(self.box.values())

    def state(self, text: str) -> None:
        self.states.append(text)


class Outposts:
    """What a test starts; `close` stops all of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.door = Door()
        self.store = Store(folder / "server")
        self.hubs: list[Hub] = []
        self.proxies: list[Proxy] = []
        self.running: list[Future[str]] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it in the workers' loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def hub(self, port: int = 0, silence: float = 5.0, host: str = "127.0.0.1", **settings: Any) -> tuple[Hub, int]:
        hub = Hub(self.store, self.door, listen=[f"{host}:{port}"], silence=silence, **settings)
        bound = hub.start()
        self.hubs.append(hub)
        return hub, int(bound[0].rpartition(":")[2])

    def proxy(self, target: int) -> Proxy:
        self.proxies.append(self.do(Proxy(target).start()))
        return self.proxies[-1]

    def worker(
        self, port: int, nodes: str = "0", silence: float = 5.0, host: str = "127.0.0.1", credentials: Any = None, **more: Any
    ) -> Worker:
        worker = Worker(self.folder / (more.get("name") or nodes), nodes, **more)
        self.run(worker, f"{host}:{port}", silence, credentials)
        return worker

    def run(self, worker: Worker, target: str, silence: float = 5.0, credentials: Any = None) -> None:
        async def run() -> str:
            worker.outlet = Outlet(
                target, worker.store, role="train", nodes=worker.nodes, worker_id=worker.id, credentials=credentials, silence=silence
            )
            return await worker.outlet.run(worker)

        worker.ended = asyncio.run_coroutine_threadsafe(run(), self.loop)
        self.running.append(worker.ended)

    def close(self) -> None:
        for hub in self.hubs:
            hub.stop("the test is over", True, 0.2)
        for proxy in self.proxies:
            self.do(proxy.stop())
        self.do(self._quiet())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    async def _quiet(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def event(hub: Hub, kind: type[E], seconds: float = 10.0) -> E:
    """The next event of this kind; others before it are passed over."""
    end = monotonic() + seconds
    while True:
        try:
            found = hub.events.get(timeout=max(end - monotonic(), 0.001))
        except Empty:
            raise AssertionError(f"no {kind.__name__} came") from None
        if isinstance(found, kind):
            return found


def events(hub: Hub) -> list[Event]:
    """Those that wait."""
    found = []
    while not hub.events.empty():
        found.append(hub.events.get())
    return found


def order(*jobs: int, objects: Sequence[Object] = (), kind: str = "train") -> Order:
    return Order(kind=kind, jobs=[Job(id=job, turn=1) for job in jobs], parts=[Part(name=str(i), object=o) for i, o in enumerate(objects)])
