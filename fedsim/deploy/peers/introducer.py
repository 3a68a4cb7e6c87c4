"""The introducer: it keeps the books of a run whose workers need no server."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.errors import SettingError
from fedsim.base.rows import BUFFERS, Rows
from fedsim.codecs import row_bytes
from fedsim.deploy.peers.letters import longest
from fedsim.deploy.peers.reported import Reported
from fedsim.deploy.reality import Reality
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
from fedsim.run.stops import DECIDED, awaits_word, reached
from fedsim.scenario.loader import Loaded
from fedsim.schedule.peers import Peers
from fedsim.task.task import Task
from fedsim.topology import Mixing


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
    """A run whose evaluations are made where the lowest node is. Where they may end it, or the host's time may, workers wait after each
    for a word from here, so that all of them end after the same one."""

    fed: Books
    letter = 0  # bytes of one, at most
    verdict = ""  # why it ends after the last evaluation

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

    def _peers_tests(self) -> dict[str, Tensor]:
        return {}

    def _measure(self) -> None:
        super()._measure()
        if awaits_word(self.stop) and not self.reason:
            self.verdict = self.field.decide(len(self.records) - 1, reached(self.stop, self.so_far))

    def ended(self) -> str:
        return self.verdict or reached(self.stop, self.so_far, ("rounds",))

    def overdue(self) -> bool:
        """That is seen at evaluations."""
        return False

    def attach(self, writer: RunWriter) -> None:
        super().attach(writer)
        self.field.recall()

    def models(self) -> str | None:
        found = self.field.evaluations.get(len(self.records) - 1)
        return found["model"] if found else None

    def keep_models(self, writer: RunWriter) -> None:
        """Nodes keep theirs."""


def without_server(strategy: Strategy) -> bool:
    """Does it need no server: are nodes peers, or replicas that hear each other's messages?"""
    return strategy.schedule.peers or isinstance(strategy, Replicated)


def build(loaded: Loaded, task: Task) -> Introduced:
    """A run of peers whose books are kept here. Raises SettingError where it can't be built or deployed."""
    stop, every, strategy = loaded.scenario.stop, loaded.scenario.evaluate.every, loaded.scenario.strategy
    for name, value in vars(stop).items():
        if value is not None and name not in ("rounds", *DECIDED):
            raise SettingError(f"stop.{name}", f"peers on real machines can't end by it; by `stop.rounds`, {', '.join(DECIDED)} they can")
    if stop.patience and stop.patience.seconds:
        raise SettingError("stop.patience", "peers on real machines have no clock in common; in rounds, such as `10 rounds`")
    if loaded.scenario.evaluate.best and not stop.patience:
        raise SettingError("evaluate.best", "peers on real machines keep their last models only")
    if task.elsewhere and isinstance(strategy, Replicated):
        what = (
            f"all take in the same messages of `{strategy.name}`, by how many samples each node has, and of `own` ones only it knows that"
        )
        raise SettingError("task.partition", f"{what}; `gossip` can do without")
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
