"""A ClientApp at work: the messages of a worker's nodes one after the other, and what each node's Context remembers, on the disk."""

import json
import os
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsim.base.errors import FedsimError
from fedsim.base.files import write_json, writing
from fedsim.flower import private
from fedsim.flower.app import App, Config, given, load
from fedsim.flower.grid import node_id
from fedsim.transport.messages_pb2 import Job, Order, Reply
from fedsim.transport.naming import named


@dataclass
class Waiting:
    """A message that has not been worked on."""

    job: Job
    head: bytes
    content: Path
    came: float


class Works:
    """Messages that a server gave, until it says what became of the replies. `folder` keeps all that must outlive this process:

    `outbox/JOB` and `JOB.json`: replies that wait; `outbox/JOB.state`: the Context's state after them; `state/NODE`: what holds;
    `working`: the message that it is at.

    A node's next message waits until its last reply is settled: `kept`, and the state of after holds; `gone`, and it is as if the
    message had never come. As in Flower's deployment what a ClientApp changed before it raised stays; unlike there, all messages are
    worked on in one process, so modules keep what they cache.
    """

    def __init__(self, folder: Path, app: App, run: Mapping[str, Any], node_config: Config, died: bool = False) -> None:
        """`died`: the process before this one did, at the message in `working`."""
        self.folder, self.app, self.run, self.node_config = folder, app, run, node_config
        self.queue: list[Waiting] = []
        self.open: dict[int, tuple[int, Reply]] = {}  # jobs whose replies wait, with their nodes
        for place in ("outbox", "state"):
            with writing(folder / place):
                (folder / place).mkdir(parents=True, exist_ok=True)
        for file in self._outbox.glob("*.json"):
            about = json.loads(file.read_text())
            self.open[int(file.stem)] = about["node"], Reply.FromString(bytes.fromhex(about["reply"]))
        if died and self._working.exists():
            at = json.loads(self._working.read_text())
            one = Waiting(Job(id=at["job"], node=at["node"]), bytes.fromhex(at["head"]), self._working, monotonic())
            to = private.message(one.head, b"", 0.0)
            if one.job.id not in self.open:
                self._put(
                    one, private.answer(Message(Error(private.CRASHED, "the ClientApp ended its process"), reply_to=to)), None, one.came
                )
        self._working.unlink(missing_ok=True)

    @property
    def waiting(self) -> list[Waiting]:
        """Messages whose turn it is."""
        busy, turn = {node for node, _ in self.open.values()}, []
        for one in self.queue:
            if one.job.node not in busy:
                turn.append(one)
                busy.add(one.job.node)
        return turn

    def take(self, order: Order, files: Mapping[bytes, Path]) -> None:
        """A message."""
        known = {*order.done, *self.open, *(one.job.id for one in self.queue)}
        content = files[order.parts[0].object.hash]
        self.queue += [Waiting(job, order.head, content, monotonic()) for job in order.jobs if job.id not in known]

    def work(self) -> tuple[Reply, Path]:
        """The reply to a message, on the disk. Raises RunError, with `jobs`, where it can't be written."""
        one, began = self.waiting[0], monotonic()
        self.queue.remove(one)
        before = self._state(one.job.node)
        try:
            write_json(self._working, {"job": one.job.id, "node": one.job.node, "head": one.head.hex()})
            told, state = self._told(one, before)
            return self._put(one, told, state if state != before else None, began)
        except Exception as error:
            error.jobs = [one.job.id]  # type: ignore[attr-defined]
            raise

    def settle(self, kept: Iterable[int], gone: Iterable[int]) -> None:
        """What became of replies."""
        for job in kept:
            if job in self.open:
                with suppress(FileNotFoundError):
                    (self._outbox / f"{job}.state").replace(self.folder / "state" / str(self.open[job][0]))
        self.cancel((*kept, *gone))

    def cancel(self, jobs: Iterable[int]) -> None:
        """Nobody wants these any more."""
        wanted = {*jobs}
        self.queue = [one for one in self.queue if one.job.id not in wanted]
        for job in wanted & self.open.keys():
            del self.open[job]
            for suffix in (".json", ".state", ""):
                (self._outbox / f"{job}{suffix}").unlink(missing_ok=True)

    def pending(self) -> list[tuple[Reply, Path]]:
        """Replies that wait for a word of the server."""
        return [(reply, self._outbox / str(job)) for job, (_, reply) in self.open.items()]

    @property
    def _working(self) -> Path:
        return self.folder / "working"

    @property
    def _outbox(self) -> Path:
        return self.folder / "outbox"

    def _state(self, node: int) -> bytes:
        file = self.folder / "state" / str(node)
        return file.read_bytes() if file.exists() else b""

    def _told(self, one: Waiting, before: bytes) -> tuple[bytes, bytes]:
        """The reply, or the error, and the state after it."""
        node = one.job.node
        private.identify(self.run["id"], node_id(node))
        message = private.message(one.head, one.content.read_bytes(), monotonic() - one.came)
        config = {"partition-id": node, "num-partitions": self.run["nodes"]} | self.node_config
        context = Context(self.run["id"], node_id(node), config, private.unpacked(before), dict(self.run["config"]))
        if message.metadata.created_at + message.metadata.ttl <= time():
            return private.answer(Message(Error(private.EXPIRED, "the message has expired"), reply_to=message)), before
        code = private.LOAD
        try:
            app = load(self.app.client, self.app.folder)
            if not isinstance(app, ClientApp):
                raise TypeError(f"`{self.app.client}` is a {type(app).__name__}, no ClientApp")
            code = private.RAISED
            return private.answer(app(message, context)), private.packed(context.state)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed = Message(Error(code, f"{type(error)}:<'{error}'>"), reply_to=message)
            return private.answer(failed), private.packed(context.state) if isinstance(context.state, RecordDict) else before

    def _put(self, one: Waiting, told: bytes, state: bytes | None, began: float) -> tuple[Reply, Path]:
        file = self._outbox / str(one.job.id)
        for content, name in ((state, f"{file.name}.state"), (told, file.name)):
            if content is not None:
                with writing(file), (self._outbox / name).open("wb") as out:
                    out.write(content)
                    out.flush()
                    os.fsync(out.fileno())
        reply = Reply(jobs=[one.job.id], object=named(told), work=monotonic() - began, waited=began - one.came)
        write_json(file.with_suffix(".json"), {"reply": reply.SerializeToString().hex(), "node": one.job.node})
        self.open[one.job.id] = one.job.node, reply
        self._working.unlink(missing_ok=True)
        return reply, file


def prepare(
    folder: Path, scenario: dict[str, Any], nodes: list[int], app: str, code: Path, node_config: Config, died: bool, **_: object
) -> tuple[Works, dict[str, Any]]:
    """What works for a server, and what was found here. Raises FedsimError where the app is not here."""
    if "app" not in scenario:
        raise FedsimError("this server runs a scenario, no Flower app; join it without --app")
    mine = given(app, code)
    return Works(folder, mine, scenario, node_config, died), {"client": mine.client, "files": dict(mine.files), "whole": mine.whole}
