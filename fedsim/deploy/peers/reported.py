"""The field of an introducer: it tells workers of each other and hears which jobs are done; it never sees a model."""

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty
from time import monotonic, time
from typing import Any, ClassVar

import numpy as np

from fedsim.base.clock import Ints
from fedsim.base.errors import RunError
from fedsim.base.files import writing
from fedsim.base.rows import Rows
from fedsim.deploy.decisions import End
from fedsim.deploy.peers.epochs import Epochs, Last
from fedsim.deploy.peers.sealed import facts_of
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.deploy.remote import NAP, Remote
from fedsim.settings.values import Floats
from fedsim.transport.messages_pb2 import Job, Object, Order, Part, Reply
from fedsim.transport.nodes import Nodes
from fedsim.transport.session import Came, Joined, Left

NEVER = 1 << 62
RETURN = 120.0  # seconds that an introducer that was started again waits for a worker
JOURNAL = "peers.jsonl"  # in the run's folder


class Reported(Remote):
    """The remote field of peers: nothing is ordered; workers report which nodes' jobs are done, by round."""

    keeps: ClassVar[tuple[str, ...]] = Remote.keeps

    def __init__(self, worker: Any, nature: Reality, ledger: Any, peers: bool) -> None:
        super().__init__(worker, nature, ledger, peers)
        self.done: dict[tuple[int, int], tuple[str, bytes, int]] = {}  # by version and node: batch, worker, number of the report
        self.workers: dict[bytes, dict[str, Any]] = {}
        self.evaluations: dict[int, dict[str, Any]] = {}  # in their order
        self.ended: set[bytes] = set()  # workers that have kept their models
        self.verdicts: dict[int, str] = {}  # after evaluations: why it ends, "" where it goes on
        self.book: list[dict[str, Any]] = []  # of who was introduced
        self.coming: list[int] = []  # nodes that are there, and not in the record yet
        self.reports: set[int] = set()  # numbers of reports
        self.orders_sent: set[int] = set()
        self.first = int(time() * 1000) << 10  # of their numbers, which are others than before a restart: workers know those
        self.epochs = Epochs(self._tell)
        self.relays: dict[int, tuple[bytes, int, bytes]] = {}  # by the number of the order: sender, number, content
        self.between: list[set[bytes]] = []  # whose letters are relayed

    def verdict(self, job: int) -> str:
        return "kept" if job in self.reports else "open"

    # What workers say

    @property
    def journal(self) -> Path:
        """What was decided and evaluated, for an introducer that is started again."""
        assert self.ledger.folder is not None
        return self.ledger.folder.parent / JOURNAL

    def note(self, what: Mapping[str, Any]) -> None:
        """A line of the journal; it is on the disk when this returns."""
        with writing(self.journal), self.journal.open("a") as out:
            out.write(json.dumps(what) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def recall(self) -> None:
        """What an introducer before noted."""
        for line in self.journal.read_text().splitlines(keepends=True) if self.journal.exists() else []:
            match json.loads(line) if line.endswith("\n") else {}:
                case {"workers": book}:
                    self._know(book)
                case {"out": who, "gone": gone}:
                    self.epochs.out = [bytes.fromhex(one) for one in who]
                    self.epochs.gone = {int(node): Last(*last) for node, last in gone.items()}
                case {"verdict": place, "why": why}:
                    self.verdicts[place] = why
                case {"ended": worker}:
                    self.ended.add(bytes.fromhex(worker))
                case {"place": place, **found}:
                    self.evaluations.setdefault(place, {str(name): value for name, value in found.items()})

    def decide(self, place: int, why: str) -> str:
        """Workers hear whether it ends after an evaluation, and why; what an introducer before has decided stays. Where none has come back
        to this one yet, they hear it when they do."""
        if place not in self.verdicts:
            self.verdicts[place] = why
            self.note({"verdict": place, "why": why})
        for worker in self.epochs.live if self.began is not None else ():
            self._tell_verdict(worker)
        return self.verdicts[place]

    def farewell(self) -> None:
        """Waits until all workers that are left have kept their models; not for those of whom nothing is heard any more."""
        late = monotonic() + (self.silence if self.began is not None else max(self.silence, RETURN))
        with suppress(RunError):
            while not self.ended.issuperset(self.epochs.live) and monotonic() < late:
                self.await_report()

    @property
    def without(self) -> Collection[int]:
        return self.epochs.gone.keys()

    def _tell_verdict(self, worker: bytes) -> None:
        """The last one: nobody waits for an earlier one."""
        if self.verdicts:
            self._tell(worker, "verdict", {"place": max(self.verdicts), "why": self.verdicts[max(self.verdicts)]})

    def _wall(self) -> int:
        first, now = self.began is None, super()._wall()
        if first:  # those who work on meanwhile look for an introducer now and then only
            self.missing = dict.fromkeys(self.missing, monotonic() + max(self.silence, RETURN))
        return now

    def await_report(self) -> None:
        """The next thing that happens; some time passes at most."""
        self._wall()
        assert self.hub is not None
        try:
            self._happened(self.hub.events.get(timeout=NAP), [], [], [])
        except Empty:
            self.idle()

    def _drain(self, joined: list[int], left: list[int], ends: list[End]) -> None:
        super()._drain(joined, left, ends)
        joined += self.coming
        self.coming = []
        ended, now = {end.node for end in (*self.pending, *ends)}, self._wall()
        for node in np.flatnonzero(self.job >= 0).tolist():
            if node in ended:
                continue
            version, job, gone = int(self.version[node]), int(self.job[node]), self.epochs.gone.get(node)
            whole = version <= (NEVER if gone is None else gone.round)
            if not whole or gone or (version, node) in self.done:
                batch = self.done.get((version, node), (f"{version}-{node}",))[0]
                ends.append(End(now, node, job, whole, 0, max(0, now - int(self.started[node])), 0, batch))
        round = int(self.version[self.job >= 0].max(initial=-1))
        left += [node for node, gone in self.epochs.gone.items() if self.nature.presence.there[node] and gone.round < round]

    def _happened(self, event: Any, joined: list[int], left: list[int], ends: list[End]) -> None:
        if not isinstance(event, Came):
            self.told_of(event)
        match event:
            case Joined(worker, name, nodes, facts):
                if self.epochs.workers:
                    if worker not in self.epochs.live:
                        self._tell(worker, "out", {})
                        return
                    self.missing = {node: until for node, until in self.missing.items() if node not in nodes}
                    self.host |= dict.fromkeys(nodes, worker)
                    self._tell(worker, "peers", {"workers": self.book})
                    self._tell_verdict(worker)
                    return
                found = json.loads(facts)
                about = {"id": worker.hex(), "name": name, "nodes": [*nodes]}
                self.workers[worker] = about | {"address": str(found.get("address", "")), "key": facts_of(found)}
                self.host |= dict.fromkeys(nodes, worker)
                self.coming += nodes
                if len(self.host) == len(self.job):
                    self.introduce()
            case Left(worker, nodes, _):
                if self.epochs.workers:
                    self._lost(worker)
                else:
                    self.workers.pop(worker, None)
                    self.host = {node: host for node, host in self.host.items() if host != worker}
                    self.coming = [node for node in self.coming if node not in nodes]
            case Came(worker, reply, _):
                self._reported(worker, reply)

    def introduce(self) -> None:
        """Tells all of all, by their first nodes."""
        book = sorted(self.workers.values(), key=lambda one: one["nodes"][0])
        self.note({"workers": book})
        self._know(book)
        for worker in self.epochs.workers:
            self._tell(worker, "peers", {"workers": book})

    def _know(self, book: list[dict[str, Any]]) -> None:
        self.book = book
        self.workers = {bytes.fromhex(one["id"]): one for one in book}
        self.epochs.workers = {worker: one["nodes"] for worker, one in self.workers.items()}

    def _gone(self, nodes: Iterable[int], why: str, left: list[int], ends: list[End]) -> None:
        for worker in [worker for worker, mine in self.epochs.workers.items() if not {*mine}.isdisjoint(nodes)]:
            self._lost(worker)

    def _lost(self, worker: bytes) -> None:
        self.epochs.lost(worker)
        if not self.epochs.live:
            raise RunError("no worker is left")

    def _tell(self, worker: bytes, kind: str, what: Mapping[str, Any], parts: Sequence[Part] = ()) -> int:
        """Something that a worker hears even if it is away for a while."""
        assert self.hub is not None
        number = self.first + len(self.orders_sent)
        self.orders_sent.add(number)
        self.hub.order(worker, Order(kind=kind, jobs=[Job(id=number)], head=json.dumps(what).encode(), parts=parts))
        return number

    def _reported(self, worker: bytes, reply: Reply) -> None:
        assert self.hub is not None
        said, [number] = json.loads(reply.head or b"{}"), reply.jobs
        if "done" in said:
            version, nodes = said["version"], np.array(said["done"])
            if ((self.version[nodes] > version) | ((self.version[nodes] == version) & (self.job[nodes] < 0))).all():
                self._settled(worker, number)  # an introducer before knew
                return
            batch = f"{version}-{min(said['done'])}"
            self.done |= {(said["version"], node): (batch, worker, number) for node in said["done"]}
            return
        if "place" in said and said["place"] not in self.evaluations:
            self.evaluations[said["place"]] = said
            self.note(said)
        if "over" in said and worker not in self.ended:
            self.ended.add(worker)
            self.note({"ended": worker.hex()})
        if "relay" in said:
            self.orders.store.keep(reply.object.hash)
        self._settled(worker, number)
        if number in self.relays:
            sender, relayed, name = self.relays.pop(number)
            self.orders.store.drop(name)
            self._tell(sender, "arrived", {"worker": worker.hex(), "number": relayed})
        match said:
            case {"relay": to, "number": relayed}:
                self._relay(worker, bytes.fromhex(to), relayed, reply.object)
            case {"failed": why}:
                raise RunError(why)
            case {"over": _, "models": models}:
                for node, model in models.items():
                    self.say(f"node {node} is done: model {model[:8]}")
            case {"silent": who} if worker in self.epochs.live:
                self.epochs.suspect(bytes.fromhex(who), worker)
            case {"suspect": asked, "last": last}:
                if new := self.epochs.answer(asked, last):
                    self.note({"out": [one.hex() for one in self.epochs.out], "gone": self.epochs.gone})
                    self.say(f"nodes {Nodes.of(sorted(new))} are out from round {self.epochs.gone[new[0]].round + 2} on")

    def _relay(self, sender: bytes, to: bytes, number: int, sealed: Object) -> None:
        """Hands on a letter between workers of which one can't be dialled; what it says is sealed."""
        assert self.hub is not None
        if (pair := {sender, to}) not in self.between:
            self.between.append(pair)
            self.say(f"relays between nodes {Nodes.of(self.workers[sender]['nodes'])} and {Nodes.of(self.workers[to]['nodes'])}")
        order = self._tell(to, "relay", {"from": sender.hex(), "number": number}, [Part(name="letter", object=sealed)])
        self.relays[order] = sender, number, sealed.hash

    def _settled(self, worker: bytes, number: int) -> None:
        assert self.hub is not None
        if number not in self.orders_sent:
            self.reports.add(number)
        self.hub.settle(worker, [number], [])

    # Jobs

    def start(self, nodes: Ints, at: Ints, heard: Rows, row: Ints, down: Ints, version: int, round: int, chance: Floats | None) -> None:
        Recorded.start(self, nodes, at, heard, row, down, version, round, chance)

    def bring(self, ends: Sequence[End]) -> None:
        nodes = np.array([end.node for end in ends], dtype=np.int64)
        if len(nodes):
            self.mail.release(self.heard[nodes])
            self.reply[nodes] = self.replies.post({}, len(nodes))

    def _settle(self, ends: Sequence[End]) -> None:
        for end in ends:
            if found := self.done.pop((int(end.batch.partition("-")[0]), end.node), None):
                _, worker, number = found
                if number not in self.reports:
                    self._settled(worker, number)

    def cancel(self, now: int) -> None:
        Recorded.cancel(self, now)
