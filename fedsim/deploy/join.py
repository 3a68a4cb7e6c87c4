"""`fedsim join`: one machine that hosts nodes: the network in this process, training in another."""

import asyncio
import json
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

from fedsim.base.crashes import ending
from fedsim.base.errors import FedsimError, HostError
from fedsim.base.files import writing
from fedsim.base.text import counted
from fedsim.deploy.peers.wire import Peers
from fedsim.deploy.training import start
from fedsim.transport.messages_pb2 import Order, Reply, Welcome
from fedsim.transport.objects import Store
from fedsim.transport.outlet import Outlet
from fedsim.transport.probe import explain


@dataclass
class Machine:
    """What a worker is told on its command line. `folder` keeps its identity, its nodes' memories and replies that wait."""

    target: str
    nodes: str
    folder: Path
    code: Path
    data: Path | None = None
    device: str | None = None
    listen: str = ""  # among peers: where others reach this worker
    address: str = ""  # how they call that, if otherwise

    @property
    def identity(self) -> bytes:
        """16 bytes that stay the same for as long as the folder is there."""
        file = self.folder / "worker"
        if not file.exists():
            with writing(file):
                self.folder.mkdir(parents=True, exist_ok=True)
                file.write_text(secrets.token_hex(16) + "\n")
        return bytes.fromhex(file.read_text().strip())


class Hands:
    """What a worker does with what its server says."""

    def __init__(self, machine: Machine, say: Callable[[str], None], store: Store, identity: Any) -> None:
        self.machine, self.say = machine, say
        self.store, self.identity = store, identity
        self.peers: Peers | None = None
        self.outlet: Outlet
        self.child: Any = None
        self.pipe: Connection
        self.found: dict[str, Any] = {}
        self.waiting: dict[int, tuple[Reply, Path | None]] = {}  # replies that are not settled, by their first job
        self.arrived: dict[int, float] = {}  # when a job's order was taken
        self.jobs, self.seconds = 0, 0.0  # done, and how long that took
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loop = asyncio.get_running_loop()

    async def welcome(self, welcome: Welcome) -> bytes:
        """Starts training's process; what it found."""
        scenario, nodes = json.loads(welcome.scenario), list(welcome.nodes)
        setup = {"folder": str(self.machine.folder / welcome.run), "scenario": scenario, "code": str(self.machine.code)}
        setup |= {"device": self.machine.device, "nodes": nodes, "data": str(self.machine.data.resolve()) if self.machine.data else ""}
        self.child, self.pipe = start(setup)
        self.say(f"preparing {welcome.run} for {counted(len(nodes), 'node')}")
        found = await asyncio.to_thread(self._receive)
        if found is None or found[0] == "refused":
            why = found[1] if found else f"training's process {ending(self._code())}"
            return json.dumps({"refused": why}).encode()
        if "letter" in found[1]:
            self.peers = Peers(self, welcome, found[1])
        self.found = found[1] | {"nodes": nodes, "run": welcome.run}
        for raw, file in found[2]:
            self._keep(Reply.FromString(raw), Path(file))
        threading.Thread(target=self._hear, name="fedsim trainer's words", daemon=True).start()
        return json.dumps(found[1]).encode()

    def pending(self) -> Iterable[tuple[Reply, Path | None]]:
        """Replies that are not settled."""
        return [*self.waiting.values()]

    def order(self, order: Order, paths: dict[bytes, Path]) -> None:
        """Jobs to do."""
        if self.peers:
            return self.peers.order(order, paths)
        now = monotonic()
        self.arrived |= {job.id: now for job in order.jobs if job.id not in order.done}
        self.tell("order", order.SerializeToString(), {name: str(path) for name, path in paths.items()})

    def cancel(self, jobs: Sequence[int]) -> None:
        """Nobody waits for these any more."""
        self._settled(jobs)
        self.tell("cancel", [*jobs])

    def settled(self, kept: Sequence[int], gone: Sequence[int]) -> None:
        """What became of replies."""
        self._settled((*kept, *gone))
        if self.peers:
            return self.peers.settled((*kept, *gone))
        self.tell("settle", [*kept], [*gone])

    def state(self, text: str) -> None:
        """How it stands."""
        self.say(text)

    def _settled(self, jobs: Iterable[int]) -> None:
        done = set(jobs)
        for first, (reply, _) in [*self.waiting.items()]:
            left = [job for job in reply.jobs if job not in done]
            self.arrived = {job: at for job, at in self.arrived.items() if job not in done}
            if not left:
                del self.waiting[first]

    def _keep(self, reply: Reply, file: Path | None) -> None:
        self.waiting[reply.jobs[0]] = reply, file

    def tell(self, *message: Any) -> None:
        """Training's process hears it."""
        with suppress(OSError):  # `_hear` finds out
            self.pipe.send(message)

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def _code(self) -> int | None:
        self.child.join(5)
        code: int | None = self.child.exitcode
        return code

    def _hear(self) -> None:
        """What training says, in a thread, until its process ends."""
        while (message := self._receive()) is not None:
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._heard, *message)
        with suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._died, HostError(f"training's process {ending(self._code())}"))

    def _died(self, error: HostError) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    def close(self) -> None:
        """Ends training's process."""
        if self.child is not None:
            self.child.kill()
            self.pipe.close()

    def _heard(self, what: str, *arguments: Any) -> None:
        if what == "log":
            self.say(arguments[0])
            return
        if self.peers:
            return self.peers.heard(what, *arguments)
        reply, file = Reply.FromString(arguments[0]), Path(arguments[1]) if arguments[1] else None
        self.jobs, self.seconds = self.jobs + len(reply.jobs), self.seconds + reply.work
        self.reply(reply, file)

    def reply(self, reply: Reply, file: Path | None = None) -> None:
        """Hands a reply over until it is settled."""
        self._keep(reply, file)
        task = asyncio.ensure_future(self.outlet.reply(reply, file))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def work(machine: Machine, identity: Any, say: Callable[[str], None], stops: Sequence[int] = ()) -> str:
    """Works until the run is over or one of the signals `stops` comes; why it ended. Raises FedsimError where the server refuses or
    training dies."""
    store = Store(machine.folder / "objects")
    hands = Hands(machine, say, store, identity)
    outlet = hands.outlet = Outlet(
        machine.target,
        store,
        role="train",
        nodes=machine.nodes,
        worker_id=machine.identity,
        credentials=identity.credentials(),
        metadata=identity.metadata(),
        explain=partial(explain, machine.target, identity, 2.0),
    )
    running = asyncio.ensure_future(outlet.run(hands))
    for number in stops:
        asyncio.get_running_loop().add_signal_handler(number, lambda: asyncio.ensure_future(outlet.drain("its worker was stopped by hand")))
    try:
        await asyncio.wait((running, hands.broken), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            hands.broken.result()
        return running.result()
    finally:
        running.cancel()
        hands.broken.cancel()
        if hands.peers:
            await hands.peers.mesh.close("its work is done")
        hands.close()


def join(machine: Machine, identity: Any, say: Callable[[str], None]) -> str:
    """Hosts nodes until the run is over; why it ended. Raises FedsimError where it can't."""
    if machine.data and not machine.data.is_dir():
        raise FedsimError(f"--data {machine.data}: there is no such folder")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return asyncio.run(work(machine, identity, say, (signal.SIGINT, signal.SIGTERM)))
