"""One connection of a worker: the stream, from hello to its end, and what is done beside it."""

import asyncio
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import grpc

from fedsim.transport.bulk import Bulk
from fedsim.transport.handler import Handler, Lost, Over, Refused, aside, called
from fedsim.transport.messages_pb2 import Bye, FromServer, FromWorker, Hello, Object, Order, Ready, Reply, Welcome
from fedsim.transport.messages_pb2_grpc import FedsimStub
from fedsim.transport.nodes import AUTO, Nodes
from fedsim.transport.objects import Store
from fedsim.transport.pulse import Line, Pulse, nap
from fedsim.transport.wire import OPTIONS, SESSION, beat_every


@dataclass
class Waiting:
    """A reply that is not settled."""

    reply: Reply
    file: Path | None
    announced: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def done(self) -> None:
        if not self.announced.done():
            self.announced.set_result(None)


class Keep:
    """What a worker keeps from one connection to the next."""

    handler: Handler

    def __init__(
        self,
        target: str,
        store: Store,
        hello: Hello,
        credentials: Any,
        metadata: Iterable[tuple[str, str]],
        silence: float,
        options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        """`options`: of gRPC, beside the usual ones."""
        self.target, self.store, self.hello, self.options = target, store, hello, tuple(options)
        self.credentials, self.metadata, self.silence = credentials, tuple(metadata), silence
        self.known: set[int] = set()  # jobs handed over or answered, that are not settled
        self.replies: dict[tuple[int, ...], Waiting] = {}
        self.draining: str | None = None
        self._prepared: tuple[bytes, asyncio.Future[bytes]] | None = None

    async def facts(self, welcome: Welcome) -> bytes:
        """What the handler found for such a welcome; it works on while connections come and go, also where a server that was started again
        spells the same run's scenario in another way."""
        key = Welcome(run=welcome.run, nodes=welcome.nodes).SerializeToString()
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = key, asyncio.ensure_future(aside(self.handler.welcome, welcome))
        return await asyncio.shield(self._prepared[1])

    def forget(self, jobs: Iterable[int]) -> list[int]:
        """These jobs are settled or cancelled; those of them that were known still."""
        found = [job for job in jobs if job in self.known]
        self.known.difference_update(found)
        for key in [key for key in self.replies if self.known.isdisjoint(key)]:
            self.replies.pop(key).done()
        return found

    def channel(self) -> Any:
        """A connection of its own."""
        options = (*OPTIONS, *self.options, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        if self.credentials:
            return grpc.aio.secure_channel(self.target, self.credentials, options=options)
        return grpc.aio.insecure_channel(self.target, options=options)


class Connection:
    """One stream, from hello to its end."""

    def __init__(self, keep: Keep) -> None:
        self.keep = keep
        self.pulse = Pulse()
        self.silence = keep.silence
        self.line: Line[FromWorker] = Line(self.pulse, lambda beat: FromWorker(beat=beat))
        self.admitted = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tasks: set[asyncio.Task[None]] = set()
        self.sending: dict[tuple[int, ...], asyncio.Task[None]] = {}
        self.fetching: dict[asyncio.Task[None], list[int]] = {}  # jobs of orders whose objects are on their way

    async def run(self) -> None:
        """Raises Lost, Refused or Over at its end, or what the handler raised."""
        keep = self.keep
        async with keep.channel() as control:
            self.call = FedsimStub(control).Session(metadata=keep.metadata)
            self.line.post(FromWorker(hello=keep.hello))
            self._do(self._speak())
            self._do(self._listen())
            self._do(self._watch())
            try:
                await self.failed
            except grpc.aio.AioRpcError as error:
                raise Lost(error.details() or error.code().name.lower()) from error
            except (grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise Lost("the stream ended") from error
            finally:
                self.ended.set_result(None)
                for task in self.tasks:
                    task.cancel()
                await asyncio.gather(*self.tasks, return_exceptions=True)

    def leave(self, bye: Bye) -> None:
        if self.admitted:
            self.line.end(FromWorker(bye=bye))
        elif not self.failed.done():
            self.failed.set_exception(Lost(bye.reason))

    def _do(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Something beside; the connection ends with its error."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self.failed.done():
            self.failed.set_exception(error)

    async def _speak(self) -> None:
        with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):  # the reading end knows why
            await self.line.run(self.call.write, lambda: beat_every(self.silence))
            await self.call.done_writing()

    async def _watch(self) -> None:
        while self.pulse.silent < self.silence:
            self.pulse.forgive(await nap(self.silence / 20))
        raise Lost(f"nothing was heard for {self.silence:g} s")

    async def _listen(self) -> None:
        keep = self.keep
        while isinstance(message := await self.call.read(), FromServer):
            self.pulse.move()
            match message.WhichOneof("what"):
                case "beat":
                    self.line.heard(message.beat)
                case "welcome":
                    self._do(self._prepare(message.welcome))
                case "admitted":
                    await self._admitted()
                case "order":
                    self._order(message.order)
                case "cancel":
                    if jobs := self._forget(message.cancel.jobs):
                        await called(keep.handler.cancel, jobs)
                case "settled":
                    kept, gone = self._forget(message.settled.kept), self._forget(message.settled.gone)
                    if kept or gone:
                        await called(keep.handler.settled, kept, gone)
                case "refusal":
                    raise Refused(message.refusal)
                case "bye" if message.bye.drained:
                    raise Over(message.bye.reason, message.bye.failed)
                case "bye":
                    raise Lost(message.bye.reason)
        if keep.draining is not None:
            raise Over(keep.draining)
        status = await self.call.code()
        raise Lost(await self.call.details() or ("the server ended the stream" if status is grpc.StatusCode.OK else status.name.lower()))

    def _forget(self, jobs: Iterable[int]) -> list[int]:
        """Forgets jobs, and ends what is done for no others; those that were known."""
        found = self.keep.forget(jobs)
        for key in [key for key in self.sending if key not in self.keep.replies]:
            self.sending.pop(key).cancel()
        for task, those in self.fetching.items():
            if self.keep.known.isdisjoint(those):
                task.cancel()
        return found

    async def _prepare(self, welcome: Welcome) -> None:
        keep = self.keep
        self.silence, keep.hello.run = welcome.silence, welcome.run
        if keep.hello.nodes == AUTO:  # what a server gave it once it asks the next one for
            keep.hello.nodes = str(Nodes.of(welcome.nodes))
        self.line.post(FromWorker(beat=self.pulse.beat()))  # from now on as often as this silence asks
        self.bulk = Bulk(
            keep.channel,
            keep.store,
            (*keep.metadata, (SESSION, welcome.session.decode())),
            welcome.silence,
            self.pulse,
            lambda text: called(keep.handler.state, text),
        )
        self._do(self.bulk.run())
        self.line.post(FromWorker(ready=Ready(facts=await keep.facts(welcome))))

    async def _admitted(self) -> None:
        keep = self.keep
        for reply, file in await called(keep.handler.pending):
            keep.replies.setdefault(tuple(reply.jobs), Waiting(reply, file))
            keep.known.update(reply.jobs)
        self.admitted = True
        for waiting in keep.replies.values():
            self.deliver(waiting)
        await called(keep.handler.state, f"connected to {keep.target}")

    def _order(self, order: Order) -> None:
        """Sees to an order, unless all of it is known."""
        known = self.keep.known
        order.done.extend([job.id for job in order.jobs if job.id in known and job.id not in order.done])
        fresh = [job.id for job in order.jobs if job.id not in order.done]
        if fresh:
            known.update(fresh)
            task = self._do(self._hand_over(order, fresh))
            self.fetching[task] = fresh
            task.add_done_callback(self.fetching.pop)

    async def _hand_over(self, order: Order, fresh: list[int]) -> None:
        """Fetches what an order needs and gives it to the handler; where that fails the order is as if it had not come."""
        keep, pinned, handed, began = self.keep, list[bytes](), False, monotonic()

        async def fetch(wanted: Object) -> None:
            if await self.bulk.fetch(wanted):
                pinned.append(wanted.hash)

        try:
            objects = {part.object.hash: part.object for part in order.parts}
            await asyncio.gather(*map(fetch, objects.values()))
            order.took = monotonic() - began
            order.done.extend([job for job in fresh if job not in keep.known])
            handed = len(pinned) == len(objects) and len(order.done) < len(order.jobs)
        finally:
            if not handed:
                keep.known.difference_update(fresh)
            for name in pinned:
                if handed:
                    keep.store.keep(name)
                keep.store.unpin(name)
        if handed:
            files = {name: keep.store.path(name) for name in pinned}
            await asyncio.shield(asyncio.ensure_future(called(keep.handler.order, order, files)))

    def deliver(self, waiting: Waiting) -> None:
        """Uploads and announces a reply, as soon as this connection may."""
        key = tuple(waiting.reply.jobs)
        if self.admitted and key not in self.sending:
            self.sending[key] = self._do(self._deliver(waiting))

    async def _deliver(self, waiting: Waiting) -> None:
        if waiting.file:
            await self.bulk.upload(waiting.reply.object, waiting.file, waiting.reply.jobs)
        if tuple(waiting.reply.jobs) in self.keep.replies:
            self.line.post(FromWorker(reply=waiting.reply))
        waiting.done()
