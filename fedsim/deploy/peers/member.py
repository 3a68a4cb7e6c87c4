"""A worker's federation: rows of its own nodes are true, those of others are what was heard of them last."""

# n: nodes, m: own ones

import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.errors import BrokenMessage, FedsimError, blame
from fedsim.base.files import whole
from fedsim.base.keys import fold
from fedsim.base.rows import BUFFERS, Rows, as_sent, model_hash, parted
from fedsim.codecs import pack, row_bytes, unpack
from fedsim.deploy.peers.post import Post
from fedsim.federation.buffers import Buffers, statistics_of
from fedsim.federation.federation import Federation
from fedsim.federation.flight import Flight
from fedsim.federation.replicas import Replicas
from fedsim.metrics.view import TESTS
from fedsim.run.building import assemble
from fedsim.run.facts import log_facts
from fedsim.run.runner import Run
from fedsim.run.stops import awaits_word, reached
from fedsim.scenario.loader import Loaded
from fedsim.schedule.news import News, joined
from fedsim.settings.values import Floats, Population
from fedsim.task.task import Task
from fedsim.topology import Mixing
from fedsim.world import Nature, World


class Still(Nature):
    """Nobody comes or goes, nothing takes time: who is done is done."""

    def __init__(self, world: World, people: Population, seed: int, per_second: int) -> None:
        super().__init__(World(attackers=world.attackers), people, seed, per_second)
        self.left: Ints | None = None

    @property
    def living(self) -> Ints | None:
        return self.left


class Member(Federation):
    """Schedules see all nodes; only own ones work, merge and mix. `step` counts exchanges, in which all workers take part alike."""

    post: Post
    nature: Still
    step, viewed, first = 0, -1, -1  # `viewed`: the step of the last evaluation; `first`: the node where that was
    tests: Tensor | None = None  # float64 [n, 3] of what `View.told` has, where only nodes have test samples

    def enter(self, own: Sequence[int], post: Post) -> None:
        """These nodes are its own."""
        self.post = post
        self.mine = np.isin(np.arange(self.nodes), own)
        self.own = np.flatnonzero(self.mine)

    def send(self, nodes: Ints, chance: Floats | None = None, at: Ints | None = None) -> None:
        super().send(nodes[self.mine[nodes]], chance, at)

    def receive(self, *arguments: Any, **more: Any) -> News:
        """With news of others, which are taken in elsewhere."""
        news, others = super().receive(*arguments, **more), np.flatnonzero(~self.mine)
        none = np.full(len(others), -1)
        return joined(news, News(others, none, none + 1 + self.version, none, np.full(len(others), np.nan)))

    def merge(self, news: News, hearers: Ints | None = None) -> None:
        super().merge(news.take(np.flatnonzero(self.mine[news.node])), self.own)
        self.ledger.used = 0  # nobody reads the events here

    def mix(self, mixing: Mixing, hearers: Ints | None = None) -> None:
        everyone, buffers = np.arange(self.nodes), self.companion(Buffers)
        parts = {name: self.state[name] for name in self.strategy.mixed}
        statistics, whole, step = {BUFFERS: buffers.rows} if buffers and buffers.sent else {}, mixing, self.step
        heard = self._heard(parts, statistics, self.among(whole, step))
        mixing = self.among(whole, step)  # of those who were lost meanwhile nobody has heard
        self.post.report({"done": self.own.tolist(), "version": self.current})  # and it has arrived
        with torch.no_grad():
            self._keep(self.strategy.mix(self.state, heard, mixing))
        self._mixed(mixing, everyone, mixing.said * self.flight.peer_bytes)

    @property
    def current(self) -> int:
        """The round of which a mixing step is part."""
        return self.version - (not self.strategy.combine_first)

    def among(self, mixing: Mixing, step: int) -> Mixing:
        """Without nodes that are lost by then."""
        return mixing.among(np.flatnonzero([self.post.member(node, step) for node in range(self.nodes)]), self.strategy.stochastic)

    def renew(self, mixing: Mixing) -> None:
        models, buffers = self.strategy.model(self.state), self.companion(Buffers)
        if buffers:
            for node in self.own.tolist():
                buffers.anew(node, models[node], self.round, self.version)
            if buffers.sent:
                rows, step = {BUFFERS: buffers.rows}, self.step
                self._exchange({BUFFERS: buffers.rows[self._ids(self.own)]}, mixing, rows)
                self._mixed(self.among(mixing, step), np.arange(self.nodes), mixing.said * row_bytes(rows))

    def gather(self) -> bool:
        """The states of all come to where the lowest node is that takes part; is that here?"""
        buffers, step = self.companion(Buffers), self.step
        rows = {f"state {name}": rows for name, rows in self.state.items()} | ({BUFFERS: buffers.rows} if buffers else {})
        rows |= {} if self.tests is None else {"tests": self.tests}
        self.view, self.step = {node: message(rows, node) for node in self.own.tolist()}, step + 1
        self.viewed, self.first = step, self._lowest(step)
        if not self.mine[self.first]:
            self._show()
            return False
        came = self.post.hear(f"{step}>{self.first}", np.flatnonzero(~self.mine).tolist(), lambda packed: opened(packed, rows))
        for node, found in came.items():
            for name, row in found.items():
                rows[name][node] = row
        there = np.sort([*self.own, *came])
        self.nature.left = None if len(there) == self.nodes else there
        return True

    def _lowest(self, step: int) -> int:
        return next(node for node in range(self.nodes) if self.post.member(node, step))

    def _show(self) -> None:
        self.post.say(f"{self.viewed}>{self.first}", self.version - 1, self.view, {self.post.host[self.first]: self.view})

    # Rows of others

    def _keep(self, after: Mapping[str, Tensor]) -> None:
        at = self._ids(self.own)
        for name, rows in after.items():
            if rows is not self.state[name]:
                self.state[name].index_copy_(0, at, rows[at])

    def _heard(self, parts: Rows, statistics: Rows, mixing: Mixing) -> Rows:
        """Parts [n, ...] as the other ends decode them, of own nodes and those that they hear; statistics go as they are."""
        at, codec, memories = self._ids(self.own), self.cross.codec, self.cross.memories
        mine = {name: rows[at] for name, rows in parts.items()}
        told = {name: rows[at] for name, rows in statistics.items()}
        if codec.lossless:
            self._exchange(mine | told, mixing, parts | statistics)
            return parts

        def memory(nodes: Ints) -> Rows:
            return memories.get(nodes, lambda new: codec.init({name: rows[: len(new)] for name, rows in parts.items()}), at.device)

        def take(nodes: Ints, wire: Rows, kept: Rows, keys: Tensor) -> None:
            came, kept = codec.decode(wire, kept, keys)
            memories.put(nodes, kept)
            for name, rows in as_sent(came, parts).items():
                heard[name].index_copy_(0, self._ids(nodes), rows)

        def keys(nodes: Ints) -> Tensor:
            return fold(self.cross.key, self.version, self._ids(nodes))

        heard = {name: rows.clone() for name, rows in parts.items()}
        kept = memory(self.own)
        wire = codec.encode(mine, kept, keys(self.own))
        take(self.own, wire, kept, keys(self.own))
        nodes, came = self._exchange(wire | told, mixing, statistics)
        if len(nodes):
            take(nodes, parted(came)[0], memory(nodes), keys(nodes))
        return heard

    def _exchange(self, wire: Rows, mixing: Mixing, into: Rows) -> tuple[Ints, Rows]:
        """Own nodes' rows [m, ...] go to those who hear them; the nodes that own ones hear, and their rows. Of the names that `into`
        [n, ...] has, they are put there."""
        hearer, sender = mixing.edges
        to: dict[int, set[int]] = {}
        for node, ear in zip(*(ends[self.mine[sender] & ~self.mine[hearer]].tolist() for ends in (sender, hearer)), strict=True):
            to.setdefault(self.post.host[ear], set()).add(node)
        told = {int(node): message(wire, at) for at, node in enumerate(self.own) if any(node in some for some in to.values())}
        tag, self.step = str(self.step), self.step + 1
        self.post.say(tag, self.current, told, to)
        sought = np.unique(sender[self.mine[hearer] & ~self.mine[sender]]).tolist()
        heard = self.post.hear(tag, sought, lambda packed: opened(packed, wire))
        nodes, several = np.array([*heard], dtype=np.int64), [*heard.values()]
        came = {name: torch.stack([one[name] for one in several]).to(rows.device) for name, rows in wire.items()} if several else {}
        for name, rows in came.items():
            if name in into:
                into[name].index_copy_(0, self._ids(nodes), rows)
        return nodes, came


def message(rows: Rows, at: int) -> bytes:
    """A row, packed."""
    return pack({name: part[at].cpu() for name, part in rows.items()})


def opened(packed: bytes, like: Rows) -> Rows:
    """A message; its parts are those of a row of `like`. Raises BrokenMessage."""
    found = unpack(packed)
    if {name: (part.dtype, part.shape) for name, part in found.items()} != {
        name: (rows.dtype, rows.shape[1:]) for name, rows in like.items()
    }:
        raise BrokenMessage("a message of other parts than this scenario has")
    return found


class Part(Run):
    """A worker's part of a run: evaluated where the lowest node is."""

    fed: Member
    place = 0  # of the next evaluation
    over = False  # the models will not change any more
    why = ""  # that it ends after the last evaluation

    def _measure(self) -> None:
        self.fed.flush()
        place, self.place = self.place, self.place + 1
        found = super()._peers_tests()  # of others there are no samples here
        self.fed.tests = found[TESTS].T.contiguous() if found else None
        if self.fed.gather():
            self._evaluate(place)
        else:
            self.measured, self.evaluated_round = (self.fed.version, self.fed.now), self.fed.round
        if awaits_word(self.stop) and not (self.over or self.reason):
            while self.fed.post.verdict[0] < place:
                self.fed.post.read()
            self.why = self.fed.post.verdict[1]

    def _peers_tests(self) -> dict[str, Tensor]:
        return {} if self.fed.tests is None else {TESTS: self.fed.tests.T}

    def ended(self) -> str:
        """By rounds, or by the introducer's word, who has seen all evaluations."""
        return self.why or reached(self.stop, self.so_far, ("rounds",))

    def overdue(self) -> bool:
        return False

    def _evaluate(self, place: int) -> None:
        super()._measure()
        living = [*range(self.fed.nodes)] if self.fed.living is None else self.fed.living.tolist()
        self.fed.post.report({"evaluated": self.records[-1], "place": place, "model": self.models(), "living": living})

    def _changed(self) -> None:
        """Where the last evaluation was is nobody any more: it is made elsewhere if the models are still those of then."""
        fed = self.fed
        if fed.first < 0 or fed.post.member(fed.first, fed.viewed):
            return
        fed.first = fed._lowest(fed.viewed)
        if not fed.mine[fed.first]:
            fed._show()
        elif not self.over:
            fed.post.report({"evaluated": {}, "place": self.place - 1, "model": None, "living": []})
        else:
            self.place -= 1
            fed.step = fed.viewed
            self._measure()

    def _leave(self, folder: Path) -> dict[int, str]:
        """Leaves own nodes' models in the worker's folder; their hashes."""
        fed, home = self.fed, self.fed.home[self.fed.own]
        models, statistics = fed.strategy.model(fed.state)[home], statistics_of(fed)[home]
        rows = fed.task.layout.views(models) | fed.task.buffers.views(statistics)
        with whole(folder / "model.safetensors") as draft:
            safetensors.torch.save_file(
                {name: part.cpu().contiguous() for name, part in rows.items()}, draft, {"nodes": str(fed.own.tolist())}
            )
        return {node: model_hash(models[at : at + 1], statistics[at : at + 1]) for at, node in enumerate(fed.own.tolist())}

    def play(self, pipe: Connection, folder: Path, own: Sequence[int]) -> None:
        """From the introduction to the end; until the other end of the pipe is gone."""
        post = Post(pipe, folder)
        self.fed.enter(own, post)
        post.changed = self._changed
        if replicas := self.fed.companion(Replicas):
            replicas.log.open(log_facts(self.facts), folder / "messages.log")
        try:
            while not post.host:
                post.read()
            if self.fed.run() or self.measured != (self.fed.version, self.fed.now):
                self.over = True
                self._measure()
            self.over = True
            hashes = self._leave(folder)
            self.fed.flush()
            post.report({"over": self.reason, "models": hashes})
            while True:
                post.read()
        except (EOFError, OSError):
            return
        except Exception as error:
            post.report({"failed": str(error) if isinstance(error, FedsimError) else blame(error)})
            if not isinstance(error, FedsimError):
                pipe.send(("log", traceback.format_exc()))


def join(loaded: Loaded, task: Task, kind: type[Member]) -> Part:
    """A part of a run. Raises SettingError where it can't be built."""
    part = assemble(loaded, task, Still, Flight, kind, Part)
    assert isinstance(part, Part)
    return part
