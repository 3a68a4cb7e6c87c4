"""The network of a worker among workers: a stream to each other one, over which letters go both ways until they have arrived."""

import asyncio
import os
import threading
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import monotonic, time
from typing import Any

from fedsim.base.errors import BrokenMessage, FedsimError
from fedsim.base.files import writing
from fedsim.deploy.peers import letters
from fedsim.deploy.peers.door import ROLE, Door, Neighbour
from fedsim.deploy.peers.line import Line, Owner
from fedsim.deploy.peers.sealed import Seals
from fedsim.transport.hub import Hub
from fedsim.transport.identity import ServerIdentity, WorkerIdentity
from fedsim.transport.limits import Limits
from fedsim.transport.messages_pb2 import Job, Object, Order, Part, Reply, Welcome
from fedsim.transport.nodes import Nodes
from fedsim.transport.objects import Store
from fedsim.transport.outlet import Outlet
from fedsim.transport.session import Came, Joined, Left

PATIENCE = 10.0  # seconds after which who can't be dialled is reached over the introducer
PLACES = 16  # bits of a worker's place in a letter's number


class Mesh:
    """Of two workers the one with the lower first node dials. Letters have numbers that are theirs alone: even ones from who dials.

    `owner` is called in the loop: with each letter's file, once, which is its own from then on; with the place of a worker that has got
    one; with who was not there for the time of silence; and with sealed letters to be relayed to who can't be dialled.
    """

    def __init__(self, me: bytes, run: str, store: Store, identity: WorkerIdentity, silence: float, most: int, owner: Owner) -> None:
        self.me, self.store, self.identity, self.silence, self.owner = me, store, identity, silence, owner
        self.seals = Seals(me, run, identity)
        self.loop, self.door = asyncio.get_running_loop(), Door(run)
        self.number = count(int(time()) << 12)  # others than before a restart
        self.most, self.place = most, 0
        self.lines: dict[bytes, Line] = {}
        self.order: list[Neighbour] = []
        self.got: set[int] = set()
        self.uses: defaultdict[Path, int] = defaultdict(int)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.hub: Hub | None = None

    def listen(self, where: str) -> str:
        """The address. Raises FedsimError for one that can't be had."""
        own = self.identity
        serving = ServerIdentity.plain(own.exposed) if own.insecure else ServerIdentity(own.pair, own.ca)
        serving.check(where)
        if not own.insecure and own.pair is None:
            raise FedsimError("peers show each other certificates, and a token is none: join with --certificate FILE of `fedsim certs`")
        self.hub = Hub(
            self.store,
            self.door,
            listen=[where],
            credentials=serving.credentials(),
            identify=serving.identify,
            verdict=self._verdict,
            silence=self.silence,
            limits=replace(Limits(), expected=lambda job: self.most),
        )
        [address] = self.hub.start()
        threading.Thread(target=self._listen, name="fedsim mesh", daemon=True).start()
        return address

    def open(self, workers: Sequence[Neighbour]) -> None:
        """Dials those whom this one dials. The others dial it."""
        if self.order:
            return  # an introducer that was started again
        self.order, self.places = [*workers], {one.id: at for at, one in enumerate(workers)}
        self.place = self.places[self.me]
        for at, one in enumerate(workers):
            if one.id == self.me:
                continue
            line = self.lines[one.id] = Line(one)
            if at > self.place:
                override = () if self.identity.insecure else (("grpc.ssl_target_name_override", one.name),)
                line.outlet = Outlet(
                    one.address,
                    self.store,
                    role=ROLE,
                    nodes=str(Nodes.of(workers[self.place].nodes)),
                    worker_id=self.me,
                    credentials=self.identity.credentials(),
                    silence=self.silence,
                    options=override,
                )
                self._do(line.outlet.run(Ear(self, line)))
        self.door.known = {one.id: one for one in workers}
        self._do(self._watch())

    def shut(self, nodes: Iterable[int]) -> None:
        """Nobody listens any more to the workers of these nodes; what was heard of them comes from others."""
        for line in self.lines.values():
            if not line.shut and not {*line.who.nodes}.isdisjoint(nodes):
                line.shut = True
                if line.outlet:
                    self._do(line.outlet.drain("it was silent for too long"))
                self._forget(line, [*line.waiting])

    async def _watch(self) -> None:
        """Tells of workers that are away for the time of silence, once; who could never be dialled is spoken to over the introducer."""
        while True:
            await asyncio.sleep(self.silence / 20)
            for line in self.lines.values():
                away = 0.0 if line.since is None else monotonic() - line.since
                if not line.reached and not line.relayed and away > min(PATIENCE, self.silence / 4):
                    line.since, line.relayed = None, True
                    self.owner.relay(line.who.id, *self._sealed(line, None))
                    self._repeat(line)
                elif away > self.silence:
                    line.since = None
                    self.owner.silent(line.who.id)

    def _sealed(self, line: Line, number: int | None) -> tuple[int, Object]:
        """A letter, or with None an empty one, that only the other end can open."""
        letter = b"" if number is None else line.waiting[number][1].read_bytes()
        number = self._next(line) if number is None else number
        key = self.seals.known(line.who.id, line.who.nodes, line.who.key)
        return number, self.store.put(self.seals.seal(letter, line.who.id, key, number))

    def _repeat(self, line: Line) -> None:
        for number in [*line.waiting]:
            self._post(line, number)

    def relayed(self, worker: bytes, number: int, sealed: Path) -> None:
        """A letter has come over the introducer; the other can't dial this one, or this one not the other."""
        line = self.lines[worker]
        key = self.seals.known(worker, line.who.nodes, line.who.key)
        letter = self.seals.open(sealed, worker, key, number)
        if not (line.joined or line.reached or line.relayed):
            line.since, line.relayed = None, True
            self._repeat(line)
        if letter:
            file = self.store.folder / f"opened-{number}"
            with writing(file):
                file.write_bytes(letter)
            self.take(line, number, file)
            file.unlink()

    def _next(self, line: Line) -> int:
        return next(self.number) << PLACES + 1 | self.place << 1 | (line.outlet is None)

    def send(self, file: Path, to: Iterable[int]) -> None:
        """A letter to workers by their places; the file is the mesh's from now on."""
        content = self.store.adopt(file)
        path = self.store.path(content.hash)
        for place in to:
            line = self.lines[self.order[place].id]
            if line.shut:
                continue
            number = self._next(line)
            line.waiting[number] = content, path
            self.uses[path] += 1
            self._post(line, number)

    @property
    def waiting(self) -> int:
        """Letters that have not arrived yet."""
        return sum(len(line.waiting) for line in self.lines.values())

    async def close(self, reason: str) -> None:
        """Says goodbye to all."""
        for line in self.lines.values():
            if line.outlet:
                self._do(line.outlet.drain(reason))
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=2)
        for task in self.tasks:
            task.cancel()
        if self.hub:
            await asyncio.to_thread(self.hub.stop, reason, True, 1.0)
            self.hub.events.put(None)  # type: ignore[arg-type]

    # Both ends

    def _post(self, line: Line, number: int) -> None:
        content, path = line.waiting[number]
        if line.relayed:
            self.owner.relay(line.who.id, *self._sealed(line, number))
        elif line.outlet:
            self._do(line.outlet.reply(Reply(jobs=[number], object=content), path))
        elif self.hub and line.joined:
            self.hub.order(line.who.id, Order(kind="letter", jobs=[Job(id=number)], parts=[Part(name="letter", object=content)]))

    def arrived(self, line: Line, numbers: Iterable[int]) -> None:
        """The other end has these."""
        for number in numbers:
            line.acks.pop(number, None)
            if number in line.waiting:
                self._forget(line, [number])
                self.owner.arrived(self.places[line.who.id])

    def _forget(self, line: Line, numbers: Iterable[int]) -> None:
        for number in numbers:
            content, path = line.waiting.pop(number)
            self.uses[path] -= 1
            if not self.uses[path]:
                del self.uses[path]
                self.store.drop(content.hash)

    def take(self, line: Line, number: int, file: Path) -> bool:
        """A letter has come; whether it is good."""
        if number not in self.got and not line.shut:
            self.got.add(number)
            inbox = self.store.folder / f"letter-{number}"
            os.link(file, inbox)
            try:
                allowed = {*line.who.nodes}.union(*(other.who.nodes for other in self.lines.values() if other.shut))
                if other := [node for node, _ in letters.head(inbox)["messages"] if node not in allowed]:
                    raise BrokenMessage(f"{line.who.name} speaks for node {other[0]}, which is none of its own")
            except BrokenMessage:
                inbox.unlink()
                return False
            self.owner.letter(inbox)
        return True

    def _verdict(self, number: int) -> str:
        return "kept" if number & 1 or number in self.got else "open"

    def _listen(self) -> None:
        assert self.hub
        while event := self.hub.events.get():
            with suppress(RuntimeError):  # the loop has ended
                self.loop.call_soon_threadsafe(self._happened, event)

    def _happened(self, event: Any) -> None:
        assert self.hub
        line = self.lines.get(event.worker)
        match event:
            case Left() if line:
                line.joined = False
                self.owner.silent(line.who.id)
            case Joined() if line:
                line.joined, line.relayed = True, False
                self._repeat(line)
            case Came(worker, reply, file) if line:
                if file is not None:
                    self.take(line, reply.jobs[0], file)
                    self.store.drop(reply.object.hash)
                else:
                    self.arrived(line, reply.jobs)
                self.hub.settle(worker, reply.jobs, [])

    def _do(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()


class Ear:
    """What is done with what comes on a stream that this worker opened."""

    def __init__(self, mesh: Mesh, line: Line) -> None:
        self.mesh, self.line = mesh, line

    def welcome(self, welcome: Welcome) -> bytes:
        return b""

    async def order(self, order: Order, paths: dict[bytes, Path]) -> None:
        """A letter."""
        [job], [(name, file)] = order.jobs, paths.items()
        self.mesh.take(self.line, job.id, file)
        self.mesh.store.drop(name)
        self.line.acks[job.id] = Reply(jobs=[job.id])
        assert self.line.outlet
        self.mesh._do(self.line.outlet.reply(self.line.acks[job.id]))

    def cancel(self, jobs: Sequence[int]) -> None:
        """Nothing is cancelled here."""

    def settled(self, kept: Sequence[int], gone: Sequence[int]) -> None:
        """These have arrived."""
        self.mesh.arrived(self.line, (*kept, *gone))

    def pending(self) -> list[tuple[Reply, Path | None]]:
        """What has not."""
        letters = [(Reply(jobs=[number], object=content), path) for number, (content, path) in self.line.waiting.items()]
        return [*letters, *((reply, None) for reply in self.line.acks.values())]

    def state(self, text: str) -> None:
        """How long it is away."""
        if text.startswith("connected"):
            self.line.since, self.line.reached, self.line.relayed = None, True, False
        elif self.line.since is None and not (self.line.shut or self.line.relayed):
            self.line.since = monotonic()
