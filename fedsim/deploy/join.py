"""`fedsim join`: one machine that hosts nodes: the network in this process, training in another."""

import asyncio
import json
import secrets
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, ClassVar

from fedsim.base.errors import FedsimError
from fedsim.base.files import writing
from fedsim.base.text import counted
from fedsim.base.visible import is_folder_name, one_line
from fedsim.deploy.crew import Crew, Died
from fedsim.deploy.peers.wire import Peers
from fedsim.deploy.saying import Saying
from fedsim.deploy.training import prepare
from fedsim.transport.messages_pb2 import Order, Reply, Welcome
from fedsim.transport.objects import Store
from fedsim.transport.outlet import Outlet
from fedsim.transport.probe import explain

SHOWN = 0.5  # seconds between looks at how it stands
SPARE = 4  # objects that are kept though no job needs them: what was heard last is mostly heard again


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
    patience: float = inf  # seconds that it looks for a server while it has nothing to do
    role: ClassVar[str] = "train"

    def setup(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """What training's process is told; `prepare` makes a trainer of the rest."""
        data = self.data.resolve() if self.data else None
        return {"prepare": prepare, "scenario": scenario, "code": self.code, "data": data, "device": None}

    @property
    def devices(self) -> list[str | None]:
        """Of each process of training, what computes; None: as the scenario says."""
        return [device.strip() or None for device in (self.device or "").split(",")]

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

    def __init__(self, machine: Machine, store: Store, identity: Any, say: Callable[[str], None]) -> None:
        self.machine, self.store, self.identity, self.say = machine, store, identity, say
        self.peers: Peers | None = None
        self.saying = Saying(say, lambda: self.outlet)
        self.outlet: Outlet
        self.crew: Crew | None = None
        self.found: dict[str, Any] = {}
        self.waiting: dict[int, tuple[Reply, Path | None]] = {}  # replies that are not settled, by their first job
        self.needs: dict[int, tuple[bytes, ...]] = {}  # objects of jobs that were ordered and are not settled
        self.spare: dict[bytes, None] = {}  # objects that no job needs, the oldest first
        self.broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.loop = asyncio.get_running_loop()

    @property
    def busy(self) -> bool:
        """Is there work that needs no server?"""
        return bool(self.saying.todo or (self.peers and self.peers.busy))

    async def welcome(self, welcome: Welcome) -> bytes:
        """Starts training; what it found."""
        nodes = list(welcome.nodes)
        if not is_folder_name(welcome.run):
            raise FedsimError(f"the server's run has a name that no folder may have: {one_line(welcome.run)}")
        setup = self.machine.setup(json.loads(welcome.scenario)) | {"folder": self.machine.folder / welcome.run, "nodes": nodes}
        self.say(f"preparing {welcome.run} for {counted(len(nodes), 'node')}")
        try:
            self.crew = Crew(setup, self.machine.devices)
            facts, waiting = await asyncio.to_thread(self.crew.found)
        except FedsimError as error:
            return json.dumps({"refused": str(error)}).encode()
        if "letter" in facts:
            self.peers = Peers(self, welcome, facts)
        self.found = facts | {"nodes": nodes, "run": welcome.run}
        self.saying.found(welcome.run, nodes, facts)
        for raw, file in waiting:
            self._keep(Reply.FromString(raw), Path(file))
        self.crew.listen(self._heard, self._died)
        return json.dumps(facts).encode()

    def pending(self) -> Iterable[tuple[Reply, Path | None]]:
        """Replies that are not settled."""
        return [*self.waiting.values()]

    def order(self, order: Order, paths: dict[bytes, Path]) -> None:
        """Jobs to do."""
        if self.peers:
            return self.peers.order(order, paths)
        self.saying.ordered(order)
        self.needs |= {job.id: tuple(paths) for job in order.jobs if job.id not in order.done}
        self.spare = {name: None for name in self.spare if name not in paths}
        if self.crew:
            self.crew.order(order, {name: str(path) for name, path in paths.items()})

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
        self.saying.state(text)

    def _settled(self, jobs: Iterable[int]) -> None:
        done = set(jobs)
        self.saying.settled(done)
        for first, (reply, _) in [*self.waiting.items()]:
            left = [job for job in reply.jobs if job not in done]
            if not left:
                del self.waiting[first]
        free = {name: None for job in done for name in self.needs.pop(job, ())}
        needed = {name for names in self.needs.values() for name in names}
        self.spare |= {name: None for name in free if name not in needed}
        for name in [*self.spare][:-SPARE]:
            del self.spare[name]
            self.store.drop(name)

    def _keep(self, reply: Reply, file: Path | None) -> None:
        self.waiting[reply.jobs[0]] = reply, file

    def tell(self, *message: Any) -> None:
        """Training hears it."""
        if self.crew:
            self.crew.tell(*message)

    def _died(self, error: Died) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    def close(self) -> None:
        """Ends training."""
        if self.crew:
            self.crew.close()

    def _heard(self, what: str, *arguments: Any) -> None:
        if what == "log":
            self.say(arguments[0])
            return
        if self.peers:
            return self.peers.heard(what, *arguments)
        reply, file = Reply.FromString(arguments[0]), Path(arguments[1]) if arguments[1] else None
        if self.needs.keys().isdisjoint(reply.jobs):
            return  # cancelled meanwhile: training throws it away
        self.saying.replied(reply)
        self.reply(reply, file)

    def reply(self, reply: Reply, file: Path | None = None) -> None:
        """Hands a reply over until it is settled."""
        self._keep(reply, file)
        task = asyncio.ensure_future(self.outlet.reply(reply, file))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def work(
    machine: Machine,
    identity: Any,
    say: Callable[[str], None],
    stops: Sequence[int] = (),
    show: Callable[[str], None] = lambda line: None,
) -> str:
    """Works until the run is over or one of the signals `stops` comes; why it ended. `show` is told ever anew how it stands.

    Raises FedsimError where the server refuses or training dies, RunError where the run has failed.
    """
    say(f"connecting to {machine.target}")
    store = Store(machine.folder / "objects")
    hands = Hands(machine, store, identity, say)
    outlet = hands.outlet = Outlet(
        machine.target,
        store,
        role=machine.role,
        nodes=machine.nodes,
        worker_id=machine.identity,
        credentials=identity.credentials(),
        metadata=identity.metadata(),
        explain=partial(explain, machine.target, identity, 2.0, ending=True),
        patience=machine.patience,
        busy=lambda: hands.busy,
    )
    running, showing = asyncio.ensure_future(outlet.run(hands)), asyncio.ensure_future(_show(hands.saying, show))
    for number in stops:
        asyncio.get_running_loop().add_signal_handler(number, lambda: asyncio.ensure_future(outlet.drain("its worker was stopped by hand")))
    try:
        await asyncio.wait((running, hands.broken), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            hands.broken.result()
        return running.result()
    finally:
        running.cancel()
        showing.cancel()
        hands.broken.cancel()
        if hands.peers:
            await hands.peers.mesh.close("its work is done")
        hands.close()


async def _show(saying: Saying, show: Callable[[str], None]) -> None:
    while True:
        show(saying.line())
        await asyncio.sleep(SHOWN)


def join(machine: Machine, identity: Any, say: Callable[[str], None], show: Callable[[str], None] = lambda line: None) -> str:
    """Hosts nodes until the run is over; why it ended. Raises FedsimError where it can't."""
    if machine.data and not machine.data.is_dir():
        raise FedsimError(f"--data {machine.data}: there is no such folder")
    return asyncio.run(work(machine, identity, say, (signal.SIGINT, signal.SIGTERM), show))
