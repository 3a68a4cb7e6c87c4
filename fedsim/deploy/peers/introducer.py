"""The introducer: tells workers of each other, keeps the books of the run that they report, and never sees a model."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from queue import Empty
from time import monotonic
from typing import Any, ClassVar

import numpy as np
import torch

from fedsim.base.clock import Ints
from fedsim.base.errors import RunError, SettingError
from fedsim.base.files import writing
from fedsim.base.rows import BUFFERS, Rows
from fedsim.codecs import row_bytes
from fedsim.deploy.decisions import End
from fedsim.deploy.peers.epochs import Epochs, Last
from fedsim.deploy.peers.letters import longest
from fedsim.deploy.peers.sealed import facts_of
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.deploy.remote import NAP, Remote, _some
from fedsim.federation.buffers import Buffers
from fedsim.federation.federation import Federation
from fedsim.federation.messages import MessageLog
from fedsim.federation.replicas import Replicas
from fedsim.method.replicated import Replicated
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.run.building import assemble
from fedsim.run.runfolder import RunWriter
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded
from fedsim.schedule.peers import Peers
from fedsim.settings.values import Floats
from fedsim.task.task import Task
from fedsim.topology import Mixing
from fedsim.transport.messages_pb2 import Job, Object, Order, Part, Reply
from fedsim.transport.outlet import LONGEST
from fedsim.transport.session import Came, Joined, Left

NEVER = 1 << 62
JOURNAL = "peers.jsonl"  # in the run's folder


class Reported(Remote):
    """The remote field of peers: nothing is ordered; workers report which nodes' jobs are done, by round."""

    keeps: ClassVar[tuple[str, ...]] = Remote.keeps

    def __init__(self, worker: Any, nature: Reality, ledger: Any, peers: bool) -> None:
        super().__init__(worker, nature, ledger, peers)
        self.done: dict[tuple[int, int], tuple[str, bytes, int]] = {}  # by version and node: batch, worker, number of the report
        self.workers: dict[bytes, dict[str, Any]] = {}
        self.evaluations: dict[int, dict[str, Any]] = {}  # in their order
        self.book: list[dict[str, Any]] = []  # of who was introduced
        self.coming: list[int] = []  # nodes that are there, and not in the record yet
        self.reports: set[int] = set()  # numbers of reports
        self.orders_sent: set[int] = set()
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
                case {"place": place, **found}:
                    self.evaluations.setdefault(place, {str(name): value for name, value in found.items()})

    def _wall(self) -> int:
        first, now = self.began is None, super()._wall()
        if first:  # those who work on meanwhile look for an introducer now and then only
            self.missing = dict.fromkeys(self.missing, monotonic() + max(self.silence, 3 * LONGEST))
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
        match event:
            case Joined(worker, name, nodes, facts):
                self.say(f"{name}: nodes {_some(nodes)} joined")
                if self.epochs.workers:
                    if worker not in self.epochs.live:
                        self._tell(worker, "out", {})
                        return
                    self.missing = {node: until for node, until in self.missing.items() if node not in nodes}
                    self.host |= dict.fromkeys(nodes, worker)
                    self._tell(worker, "peers", {"workers": self.book})
                    return
                found = json.loads(facts)
                about = {"id": worker.hex(), "name": name, "nodes": [*nodes]}
                self.workers[worker] = about | {"address": str(found.get("address", "")), "key": facts_of(found)}
                self.host |= dict.fromkeys(nodes, worker)
                self.coming += nodes
                if len(self.host) == len(self.job):
                    self.introduce()
            case Left(worker, nodes, why):
                self.say(f"nodes {_some(nodes)} lost: {why}")
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
        number = len(self.orders_sent)
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
        if "relay" in said:
            self.hub.desk.store.keep(reply.object.hash)
        self._settled(worker, number)
        if number in self.relays:
            sender, relayed, name = self.relays.pop(number)
            self.hub.desk.store.drop(name)
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
                    self.say(f"nodes {_some(sorted(new))} are out from round {self.epochs.gone[new[0]].round + 2} on")

    def _relay(self, sender: bytes, to: bytes, number: int, sealed: Object) -> None:
        """Hands on a letter between workers of which one can't be dialled; what it says is sealed."""
        assert self.hub is not None
        if (pair := {sender, to}) not in self.between:
            self.between.append(pair)
            self.say(f"relays between nodes {_some(self.workers[sender]['nodes'])} and {_some(self.workers[to]['nodes'])}")
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


class Books(Federation):
    """A federation without models: events, times and sums are kept, rows have no numbers."""

    buffers: Buffers | None = None

    def close_eyes(self) -> None:
        """From now on."""
        self.buffers = self.companion(Buffers)
        self.companions = {name: one for name, one in self.companions.items() if one is not self.buffers}
        if replicas := self.companion(Replicas):
            replicas.log = Blank(replicas.log.codec)
        self.state = {name: rows.reshape(len(rows), -1)[:, :0].clone() for name, rows in self.state.items()}

    def _change(self, change: Callable[[Rows], Rows], hearers: Ints | None) -> None:
        """There is nothing to change."""

    def mix(self, mixing: Mixing, hearers: Ints | None = None) -> None:
        who = np.arange(self.hearers) if hearers is None else hearers
        self._mixed(mixing, who, mixing.said * self.flight.peer_bytes)

    def renew(self, mixing: Mixing) -> None:
        if self.buffers and self.buffers.sent:
            sent = row_bytes({BUFFERS: self.buffers.rows})
            self._mixed(mixing, np.arange(self.hearers), mixing.said * sent)


class Blank(MessageLog):
    """The log of messages is where the replicas are."""

    def add(self, version: int, node: Ints, job: Ints, parts: Rows, state: Rows) -> None:
        """None has come here."""


class Introduced(Run):
    """A run whose evaluations are made where the lowest node is."""

    fed: Books
    letter = 0  # bytes of one, at most

    @property
    def field(self) -> Reported:
        assert isinstance(self.fed.flight, Reported)
        return self.fed.flight

    def _numbers(self, metrics: Sequence[Metric], view: View, record: Mapping[str, Any]) -> dict[str, float]:
        while len(self.records) not in self.field.evaluations:
            self.field.await_report()
        found, living = self.field.evaluations[len(self.records)], self.fed.living
        if found["living"] != ([*range(self.fed.nodes)] if living is None else living.tolist()):
            return {}  # somebody was lost just then
        return {name: value for name, value in found["evaluated"].items() if name not in record}

    def _own(self) -> dict[str, float]:
        return {}

    def attach(self, writer: RunWriter) -> None:
        super().attach(writer)
        self.field.recall()

    def models(self) -> str | None:
        found = self.field.evaluations.get(len(self.records) - 1)
        return found["model"] if found else None

    def keep_models(self, writer: RunWriter) -> None:
        """Nodes keep theirs."""


def apart(strategy: Strategy) -> bool:
    """Does it need no server: are nodes peers, or replicas that hear each other's messages?"""
    return strategy.schedule.peers or isinstance(strategy, Replicated)


def build(loaded: Loaded, task: Task) -> Introduced:
    """A run of peers whose books are kept here. Raises SettingError where it can't be built or deployed."""
    stop, every, strategy = loaded.scenario.stop, loaded.scenario.evaluate.every, loaded.scenario.strategy
    for name, value in vars(stop).items():
        if value is not None and name != "rounds":
            raise SettingError(f"stop.{name}", "peers on real machines end by what each of them knows: `stop.rounds`")
    if every is not None and every.seconds:
        raise SettingError("evaluate.every", "peers on real machines have no clock in common; in rounds, such as `10 rounds`")
    if not strategy.schedule.rounds:
        raise SettingError("schedule", f"`{strategy.schedule.name}` can't be deployed yet; `gossip` can")
    run = assemble(loaded, task, Reality, Reported, Books, Introduced)
    assert isinstance(run, Introduced)
    if strategy.schedule.peers:
        _fits(run.fed)
    elif not strategy.schedule.samples():
        raise SettingError("schedule", f"replicas of `{strategy.name}` wait for each other on real machines: without wait_for and deadline")
    run.letter = longest(run.fed)
    run.fed.close_eyes()
    return run


def _fits(fed: Federation) -> None:
    """Raises SettingError where one message a neighbour is not enough for a step."""
    strategy, codec, mixing = fed.strategy, fed.strategy.crosslink, fed.schedule.graph(fed)
    state = {name: rows + torch.rand_like(rows) for name, rows in fed.state.items()}
    assert isinstance(fed.schedule, Peers) and mixing is not None
    if fed.schedule.topology.changes and codec.init({name: state[name][:1] for name in strategy.mixed}):
        raise SettingError(
            "crosslink", f"`{codec.name}` remembers what a neighbour has heard, and neighbours change; use a graph that stays"
        )
    alone = mixing.weights.tolil()
    for other in range(1, fed.nodes):
        alone[other] = 0
        alone[other, other] = 1
    heard = {name: state[name] for name in strategy.mixed}
    with torch.no_grad():
        all_mix, one_mixes = (strategy.mix({**state}, heard, one) for one in (mixing, Mixing(alone.tocsr())))
    if any(not torch.allclose(all_mix[name][0], one_mixes[name][0]) for name in state):
        what = f"under `{strategy.name}` a node needs what its neighbours make of their neighbours' messages"
        raise SettingError("strategy", f"{what}, within one step, and on real machines hears only their own; `combine_then_adapt` may do")
