"""A worker's training: waiting jobs of its nodes as rows of one matrix, and what its nodes remember, on its disk."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from errno import ENOSPC
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

import numpy as np
import torch

from fedsim.base.clock import Ints
from fedsim.base.devices import sent
from fedsim.base.errors import HostError
from fedsim.base.files import write_json, writing
from fedsim.base.rows import Rows
from fedsim.deploy.answering import Answering
from fedsim.deploy.packing import KNOWN, LACKS, PACKED, messages, numbers, out_of_bytes, wired
from fedsim.federation.federation import Federation
from fedsim.federation.work import Work
from fedsim.run import checkpoint
from fedsim.transport.messages_pb2 import Object, Order, Reply
from fedsim.transport.naming import Naming, file_name
from fedsim.transport.wire import EVALUATE

T = TypeVar("T")
PAUSE = 1.0  # seconds between tries to write to a full disk


class Trainer(Work):
    """Jobs that a server gave, until it says what became of their replies. `folder` keeps all that must outlive this process:

    `outbox/JOB` and `JOB.json`: replies that wait, by the first of their jobs; `memory/JOB.checkpoint`: what nodes remember after them;
    `kept.jsonl`: whose memories hold.
    """

    def __init__(self, fed: Federation, folder: Path) -> None:
        super().__init__(fed.worker)
        self.like, self.folder = fed.flight.like, folder
        self.down = fed.down
        self.down.said = {name: rows[:1].clone() for name, rows in fed.strategy.broadcast(fed.state).items()}
        self.decoded = np.zeros(len(self.job), dtype=np.int64)  # the turn of each node whose message was decoded last
        self.lacking: list[int] = []  # jobs whose message follows on one that is not here
        self.worker.carry = wired
        self.todo: list[int] = []  # nodes whose jobs are not computed
        self.batch: dict[int, int] = {}  # of each job whose reply waits, the batch
        self.open: dict[int, dict[int, int]] = {}  # of each batch, the jobs that are not settled, with their nodes
        self.began: dict[int, tuple[float, float]] = {}  # when a node's job came, and how long that took
        self.holds: dict[int, int] = {}  # of each node that remembers, the batch that its memory is from
        self.uses: Counter[int] = Counter()  # how many nodes' memories are from a batch
        self.questions = Answering(self, lambda jobs: self.settle(jobs, []))
        self.say: Callable[[str], None] = lambda text: None  # of what people should know
        self._recall()

    # Jobs

    def take(self, order: Order, files: Mapping[bytes, Path]) -> None:
        """Jobs to do, but for those that are done with; or a question."""
        if order.kind == EVALUATE:
            return self.questions.take(order, files)
        mine = [at for at, job in enumerate(order.jobs) if job.id not in order.done and self.job[job.node] != job.id]
        if not mine:
            return None
        self.cancel(int(self.job[order.jobs[at].node]) for at in mine)  # who has a new job has no old one
        if not (mine := self._following(order, mine)):
            return None
        columns = ((job.node, job.id, job.turn, job.round, job.version) for job in (order.jobs[at] for at in mine))
        nodes, jobs, turns, rounds, versions = (np.array(column, dtype=np.int64) for column in zip(*columns, strict=True))
        each = any(part.each for part in order.parts)
        parts: Rows = {}
        for part in order.parts:
            rows = numbers(files[part.object.hash], part.dtype, part.shape)
            rows = rows[mine] if part.each and len(mine) < len(rows) else rows
            rows = rows if part.name == PACKED else sent(rows, self.worker.device)
            parts[part.name] = rows.expand(len(mine), *rows.shape[1:]) if each else rows
        heard = self._opened(parts, nodes, turns, versions)
        self.job[nodes], self.turn[nodes], self.round[nodes], self.version[nodes] = jobs, turns, rounds, versions
        self.heard[nodes] = self.mail.post(heard, len(nodes), None if each else np.zeros(len(mine), dtype=np.int64))
        self.reply[nodes], self.kept[nodes] = -1, -1
        self.count += len(nodes)
        self.todo += nodes.tolist()
        self.began |= dict.fromkeys(nodes.tolist(), (monotonic(), order.took))
        return None

    def _following(self, order: Order, mine: Sequence[int]) -> list[int]:
        """Of these jobs those whose message can be decoded here; of the others the server hears that it can't."""
        if all(part.name != PACKED for part in order.parts) or not self.down.follows:
            return [*mine]
        there = [at for at in mine if self.decoded[order.jobs[at].node] == order.jobs[at].turn - 1]
        self.lacking += [order.jobs[at].id for at in mine if at not in there]
        return there

    def _opened(self, parts: Rows, nodes: Ints, turns: Ints, versions: Ints) -> Rows:
        """What nodes [m] hear, of parts [1 or m, ...] of which one may be packed, and others what the next message follows on."""
        known = {name.removeprefix(KNOWN): parts.pop(name) for name in [*parts] if name.startswith(KNOWN)}
        self.down.memories.put(nodes, known)
        packed = parts.pop(PACKED, None)
        if packed is not None:
            wire = {name: sent(rows, self.worker.device) for name, rows in out_of_bytes(packed).items()}
            parts |= self.down.decoded(wire, nodes[: len(packed)], versions[: len(packed)])
        if known or packed is not None:
            self.decoded[nodes] = turns
        return parts

    @property
    def waiting(self) -> bool:
        """Is there something to do?"""
        return bool(self.todo or self.questions.open or self.lacking)

    def work(self) -> tuple[Reply, Path | None]:
        """Says what it lacks, answers a question, or trains what waits, at most a chunk: the reply, on the disk with what nodes remember
        after it. Raises RunError where a strategy's or model's code does, with `jobs` of whom.
        """
        if self.lacking:
            jobs, self.lacking = self.lacking, []
            return Reply(jobs=jobs, head=LACKS), None
        if self.questions.open:
            return self.questions.answer(), None
        nodes, self.todo = np.sort(np.array(self.todo[: self.worker.chunk])), self.todo[self.worker.chunk :]
        jobs, began = self.job[nodes].tolist(), monotonic()
        try:
            self.compute(nodes)
        except Exception as error:
            self._release(nodes)
            error.jobs = jobs  # type: ignore[attr-defined]
            raise
        came = [self.began.pop(node) for node in nodes.tolist()]
        times = {"down": max(took for _, took in came), "work": monotonic() - began, "waited": began - min(at for at, _ in came)}
        return self._lasting(lambda: self._put(nodes, jobs, times))

    def _put(self, nodes: Ints, jobs: list[int], times: dict[str, float]) -> tuple[Reply, Path]:
        """A reply, and what its nodes remember, on the disk. Raises RunError where they can't be; then it is as if nothing had been."""
        batch = jobs[0]
        kept = self.after.take(self.kept[nodes]) if self.kept[nodes[0]] >= 0 else {}
        if kept:
            checkpoint.write(self._memory(batch), {"nodes": nodes.tolist()}, checkpoint.State(*_tree(kept)))
        pieces, sizes = messages(self.replies.take(self.reply[nodes]), len(nodes))
        hash, file = Naming(), self.folder / "outbox" / str(batch)
        file.parent.mkdir(parents=True, exist_ok=True)
        with writing(file), file.open("wb", buffering=1 << 20) as out:
            for piece in pieces:
                hash.update(piece)
                out.write(piece)
            object = Object(hash=hash.digest(), size=out.tell())
        found = Reply(jobs=jobs, object=object, head=json.dumps({"sizes": sizes}).encode(), **times)
        write_json(file.with_suffix(".json"), {"reply": found.SerializeToString().hex(), "nodes": nodes.tolist(), "remembers": bool(kept)})
        self.batch |= dict.fromkeys(jobs, batch)
        self.open[batch] = dict(zip(jobs, nodes.tolist(), strict=True))
        return found, file

    def settle(self, kept: Iterable[int], gone: Iterable[int]) -> None:
        """What became of jobs: nodes' memories of after hold, or are forgotten with the job."""
        kept = [job for job in kept if job in self.batch]
        nodes = np.array([self.open[self.batch[job]][job] for job in kept], dtype=np.int64)
        if len(nodes) and self.kept[nodes[0]] >= 0:
            lines = "".join(json.dumps([node, self.batch[job]]) + "\n" for node, job in zip(nodes.tolist(), kept, strict=True))
            self._lasting(lambda: self._note(lines.encode()))
            new = {node: self.batch[job] for node, job in zip(nodes.tolist(), kept, strict=True)}
            old = [self.holds[node] for node in new if node in self.holds]
            self.holds |= new
            self.uses.update(new.values())
            self.uses.subtract(old)
            self._tidy(old)
        if len(nodes):
            self.free(self.home(nodes).slot)
        self._close(kept)
        self.cancel(gone)

    def cancel(self, jobs: Iterable[int]) -> None:
        """Nobody wants these any more."""
        wanted = {job for job in jobs if job >= 0}
        self.questions.cancel(wanted)
        self.lacking = [job for job in self.lacking if job not in wanted]
        nodes = np.flatnonzero(np.isin(self.job, list(wanted)))
        self._release(nodes)
        self._close([job for job in wanted if job in self.batch])

    def pending(self) -> list[tuple[Reply, Path]]:
        """Replies that wait for a word of the server."""
        return [(self._told(batch)[0], self.folder / "outbox" / str(batch)) for batch in self.open]

    def _release(self, nodes: Ints) -> None:
        gone = {*nodes.tolist()}
        self.todo = [node for node in self.todo if node not in gone]
        self.forget(nodes)

    def _close(self, jobs: Sequence[int]) -> None:
        """Jobs are settled; of batches without others only what nodes remember from them stays."""
        for job in jobs:
            batch = self.batch.pop(job)
            del self.open[batch][job]
            if not self.open[batch]:
                del self.open[batch]
                for file in (self.folder / "outbox" / str(batch), self.folder / "outbox" / f"{batch}.json"):
                    file.unlink(missing_ok=True)
                self._tidy([batch])

    def _tidy(self, batches: Iterable[int]) -> None:
        """Of these batches, what nobody remembers and nobody may come to remember."""
        for batch in batches:
            if self.uses[batch] <= 0 and batch not in self.open:
                del self.uses[batch]
                self._memory(batch).unlink(missing_ok=True)

    # The disk

    def _lasting(self, write: Callable[[], T]) -> T:
        """Writes as soon as the disk has room for it."""
        said = False
        while True:
            try:
                return write()
            except HostError as error:
                if not said:
                    self.say(f"{self.folder}: {error}; goes on when there is room")
                said = True
                sleep(PAUSE)

    def _note(self, lines: bytes) -> None:
        """Lines at the end of `kept.jsonl`: all, or none. Raises RunError where they can't be written."""
        file = self.folder / "kept.jsonl"
        with writing(file), file.open("ab", buffering=0) as out:
            size = out.tell()
            try:
                if out.write(lines) < len(lines):
                    raise OSError(ENOSPC, "")
                os.fsync(out.fileno())
            except OSError:
                out.truncate(size)
                raise

    def _memory(self, batch: int) -> Path:
        return self.folder / "memory" / f"{batch}.checkpoint"

    def _told(self, batch: int) -> tuple[Reply, list[int], bool]:
        about = json.loads((self.folder / "outbox" / f"{batch}.json").read_text())
        return Reply.FromString(bytes.fromhex(about["reply"])), about["nodes"], about["remembers"]

    def _recall(self) -> None:
        """What was kept before this process began."""
        log = self.folder / "kept.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        if lines and not lines[-1].endswith(b"\n"):  # it was cut short, and what follows needs a line of its own
            with writing(log):
                os.truncate(log, sum(map(len, lines[:-1])))
            del lines[-1]
        self.holds = dict(map(json.loads, lines))
        self.uses = Counter(self.holds.values())
        for batch in dict.fromkeys(self.holds.values()):
            about, rows = self._read(batch)
            mine = [at for at, node in enumerate(about) if self.holds.get(node) == batch]
            self._hold(np.array(about)[mine], {name: part[mine] for name, part in rows.items()})
        for file in sorted((self.folder / "outbox").glob("*.json")):
            batch = int(file.stem)
            reply, nodes, remembers = self._told(batch)
            if not _whole(self.folder / "outbox" / str(batch), reply.object):
                file.unlink()  # the machine stopped before it was on the disk: the jobs are asked for again
                continue
            settled = [job for job, node in zip(reply.jobs, nodes, strict=True) if self.holds.get(node) == batch]
            self.open[batch] = {job: node for job, node in zip(reply.jobs, nodes, strict=True) if job not in settled}
            self.batch |= dict.fromkeys(self.open[batch], batch)
            every = np.array(nodes)
            self.job[every], self.reply[every] = list(reply.jobs), self.replies.post({}, len(nodes))
            self.count += len(nodes)
            if remembers:
                self.kept[every] = self.after.post(self._read(batch)[1], len(nodes))
            self._release(every[np.isin(self.job[every], settled)])
        self._tidy(int(file.stem) for file in (self.folder / "memory").glob("*.checkpoint"))

    def _read(self, batch: int) -> tuple[list[int], Rows]:
        about, state = checkpoint.read(self._memory(batch))
        return about["nodes"], dict(zip(state.tree["names"], state.arrays, strict=True))

    def _hold(self, nodes: Ints, rows: Rows) -> None:
        for prefix, memories in (("memory ", self.memory), ("link ", self.links)):
            memories.put(nodes, {name.removeprefix(prefix): part for name, part in rows.items() if name.startswith(prefix)})


def _tree(rows: Rows) -> tuple[dict[str, list[str]], list[torch.Tensor]]:
    return {"names": list(rows)}, [*rows.values()]


def _whole(file: Path, wanted: Object) -> bool:
    return file.exists() and file.stat().st_size == wanted.size and file_name(file) == wanted.hash
