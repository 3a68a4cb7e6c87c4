"""The introducer: tells workers of each other, keeps the books of the run that they report, and never sees a model."""

import json
from collections.abc import Callable, Mapping, Sequence
from queue import Empty
from typing import Any, ClassVar

import numpy as np
import torch

from fedsim.base.clock import Ints
from fedsim.base.errors import RunError, SettingError
from fedsim.base.rows import BUFFERS, Rows
from fedsim.base.text import counted
from fedsim.codecs import row_bytes
from fedsim.deploy.decisions import End
from fedsim.deploy.orders import Orders
from fedsim.deploy.reality import Reality
from fedsim.deploy.recorded import Recorded
from fedsim.deploy.remote import NAP, Remote, _some
from fedsim.federation.buffers import Buffers
from fedsim.federation.federation import Federation
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.run.building import Tasks, assemble
from fedsim.run.runfolder import RunWriter
from fedsim.run.runner import Run
from fedsim.scenario.loader import Loaded
from fedsim.settings.values import Floats
from fedsim.topology import Mixing
from fedsim.transport.hub import Hub
from fedsim.transport.messages_pb2 import Job, Order, Reply
from fedsim.transport.session import Came, Joined, Left

DIRECTORY = 1  # number of the order that introduces workers to each other
ENDS = ("rounds", "updates", "steps", "bytes")  # of which each worker knows by itself when they are reached


class Reported(Remote):
    """The remote field of peers: nothing is ordered; workers report which nodes' jobs are done, by round."""

    keeps: ClassVar[tuple[str, ...]] = Remote.keeps

    def __init__(self, worker: Any, nature: Reality, ledger: Any, peers: bool) -> None:
        super().__init__(worker, nature, ledger, peers)
        self.done: dict[tuple[int, int], tuple[str, bytes, int]] = {}  # by version and node: batch, worker, number of the report
        self.workers: dict[bytes, dict[str, Any]] = {}
        self.evaluations: dict[int, dict[str, Any]] = {}  # in their order
        self.coming: list[int] = []  # nodes that are there, and not in the record yet
        self.reports: set[int] = set()  # numbers of reports

    def verdict(self, job: int) -> str:
        return "kept" if job in self.reports else "open"

    # What workers say

    def await_report(self) -> None:
        """The next thing that happens; some time passes at most."""
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
            if node not in ended and (found := self.done.get((int(self.version[node]), node))):
                waited = max(0, now - int(self.started[node]))
                ends.append(End(now, node, int(self.job[node]), True, 0, waited, 0, found[0]))

    def _happened(self, event: Any, joined: list[int], left: list[int], ends: list[End]) -> None:
        match event:
            case Joined(worker, name, nodes, facts):
                self.say(f"{name}: nodes {_some(nodes)} joined")
                address = json.loads(facts).get("address", "")
                self.workers[worker] = {"id": worker.hex(), "name": name, "address": address, "nodes": [*nodes]}
                self.host |= dict.fromkeys(nodes, worker)
                self.coming += [node for node in nodes if not self.nature.presence.there[node]]
                if len(self.host) == len(self.job):
                    self.introduce()
            case Left(worker, nodes, why):
                self.say(f"nodes {_some(nodes)} lost: {why}")
            case Came(worker, reply, _):
                self._reported(worker, reply)

    def introduce(self) -> None:
        """Tells all of all, by their first nodes."""
        assert self.hub is not None
        book = sorted(self.workers.values(), key=lambda one: one["nodes"][0])
        for worker in self.workers:
            order = Order(kind="peers", jobs=[Job(id=DIRECTORY)], head=json.dumps({"workers": book, "silence": self.silence}).encode())
            self.hub.order(worker, order)

    def _reported(self, worker: bytes, reply: Reply) -> None:
        assert self.hub is not None
        said, [number] = json.loads(reply.head or b"{}"), reply.jobs
        if "done" in said:
            batch = f"{said['version']}-{min(said['done'])}"
            self.done |= {(said["version"], node): (batch, worker, number) for node in said["done"]}
            return
        if "failed" in said:
            raise RunError(said["failed"])
        if "evaluated" in said:
            self.evaluations[said["place"]] = said
        self._take_report(worker, number)

    def _take_report(self, worker: bytes, number: int) -> None:
        assert self.hub is not None
        if number != DIRECTORY:
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
                    self._take_report(worker, number)

    def cancel(self, now: int) -> None:
        Recorded.cancel(self, now)


class Books(Federation):
    """A federation without models: events, times and sums are kept, rows have no numbers."""

    buffers: Buffers | None = None

    def close_eyes(self) -> None:
        """From now on."""
        self.buffers = self.companion(Buffers)
        self.companions = {name: one for name, one in self.companions.items() if one is not self.buffers}
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


class Introduced(Run):
    """A run whose evaluations are made where the lowest node is."""

    fed: Books

    @property
    def field(self) -> Reported:
        assert isinstance(self.fed.flight, Reported)
        return self.fed.flight

    def _numbers(self, metrics: Sequence[Metric], view: View, record: Mapping[str, Any]) -> dict[str, float]:
        while len(self.records) not in self.field.evaluations:
            self.field.await_report()
        found = self.field.evaluations[len(self.records)]["evaluated"]
        return {name: value for name, value in found.items() if name not in record}

    def _own(self) -> dict[str, float]:
        return {}

    def models(self) -> str | None:
        found = self.field.evaluations.get(len(self.records) - 1)
        return found["model"] if found else None

    def keep_models(self, writer: RunWriter) -> None:
        """Nodes keep theirs."""


def build(loaded: Loaded, tasks: Tasks) -> Introduced:
    """A run of peers whose books are kept here. Raises SettingError where it can't be built or deployed."""
    stop, every, strategy = loaded.scenario.stop, loaded.scenario.evaluate.every, loaded.scenario.strategy
    for name, value in vars(stop).items():
        if value is not None and name not in ENDS:
            raise SettingError(f"stop.{name}", f"peers on real machines end by what each of them knows: {', '.join(ENDS)}")
    if every is not None and every.seconds:
        raise SettingError("evaluate.every", "peers on real machines have no clock in common; in rounds, such as `10 rounds`")
    if not strategy.schedule.rounds:
        raise SettingError("schedule", f"`{strategy.schedule.name}` can't be deployed yet; `gossip` can")
    run = assemble(loaded, tasks.get(loaded), Reality, Reported, Books, Introduced)
    _fits(run.fed)
    run.fed.close_eyes()
    return run


def _fits(fed: Federation) -> None:
    """Raises SettingError where one message a neighbour is not enough for a step."""
    strategy, codec, mixing = fed.strategy, fed.strategy.crosslink, fed.schedule.graph(fed)
    state = {name: rows + torch.rand_like(rows) for name, rows in fed.state.items()}
    assert mixing is not None
    if fed.schedule.topology.changes and codec.init({name: state[name][:1] for name in strategy.mixed}):
        raise SettingError("crosslink", f"`{codec.name}` remembers what a neighbour has heard, and neighbours change; use a graph that stays")
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
