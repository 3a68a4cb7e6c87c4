"""A worker's federation of replicas: each worker holds the one state and takes in all messages itself, bit by bit as all others do."""

from typing import Any

import numpy as np
import torch

from fedsim.base.clock import Ints
from fedsim.base.errors import BrokenMessage, RunError
from fedsim.base.rows import Rows, model_hash
from fedsim.deploy.peers.member import Member
from fedsim.federation.federation import Federation
from fedsim.federation.messages import decoded, wire_of
from fedsim.schedule.news import News, joined
from fedsim.schedule.sampling import Free
from fedsim.settings.values import Floats

NOBODY = np.zeros(0, dtype=np.int64)


class Replica(Member):
    """Cohorts are drawn everywhere alike; own nodes of them work, and their messages go to all workers, with the hash of the state that
    they began from. A node without a message sends an empty one, so that all know who is still there."""

    cohort: Ints = NOBODY
    chances: Floats | None = None

    def free(self) -> Free:
        """Whoever was lost is asked once more: not all may know by then."""
        there = np.array([self.post.member(node, self.step - 1) for node in range(self.nodes)])
        return Free(self.flight.job, self.in_flight, None if there.all() else there)

    def send(self, nodes: Ints, chance: Floats | None = None, at: Ints | None = None) -> None:
        self.cohort, self.chances, first = nodes, chance, self.flight.serial
        mine = self.mine[nodes]
        Federation.send(self, nodes[mine], None if chance is None else chance[mine], at)
        self.flight.job[nodes[mine]] = first + np.flatnonzero(mine)  # numbers as where all work in one place
        self.flight.serial = first + len(nodes)

    def receive(self, *arguments: Any, **more: Any) -> News:
        news, codec, tag = Federation.receive(self, *arguments, **more), self.strategy.uplink, str(self.step)
        like = {name: rows[:1].cpu() for name, rows in self.flight.like.items()}
        state = bytes.fromhex(model_hash(*self.state.values()))
        parts = self.flight.taken(news.slot) if len(news.node) else {}
        said = dict.fromkeys(self.own.tolist(), state)
        for at, node in enumerate(news.node.tolist()):
            wire = wire_of(codec, {name: rows[at : at + 1].cpu() for name, rows in parts.items()})
            said[node] += b"".join(rows.contiguous().numpy().tobytes() for rows in wire.values())
        others = {worker for worker in self.post.host.values() if worker != self.post.host[int(self.own[0])]}
        self.post.say(tag, self.version, said, {worker: self.own.tolist() for worker in others})

        def read(message: bytes) -> tuple[bytes, Rows | None]:
            began, sent = message[: len(state)], message[len(state) :]
            try:
                return began, decoded(codec, sent, 1, like) if sent else None
            except (RuntimeError, ValueError) as error:
                raise BrokenMessage("a message of another size than this scenario has") from error

        came = self.post.hear(tag, np.flatnonzero(~self.mine).tolist(), read)
        self.step += 1
        self.post.report({"done": self.own.tolist(), "version": self.version})
        if differ := [node for node, (began, _) in came.items() if began != state]:
            raise RunError(f"round {self.round + 1}: node {differ[0]} has another state than this machine; its software may differ")
        return joined(news, self._posted({node: parts for node, (_, parts) in came.items() if parts and node in self.cohort}))

    def _posted(self, several: dict[int, Rows]) -> News:
        """Others' messages as news."""
        nodes = np.array([*several], dtype=np.int64)
        if not len(nodes):
            return News(nodes, nodes, nodes, nodes, np.zeros(0))
        names = next(iter(several.values()))
        parts = {name: torch.cat([one[name] for one in several.values()]).to(self.worker.device) for name in names}
        at = np.array([int(np.flatnonzero(self.cohort == node)[0]) for node in nodes])
        first = self.flight.serial - len(self.cohort)
        chance = np.full(len(nodes), np.nan) if self.chances is None else self.chances[at]
        return News(nodes, first + at, np.full(len(nodes), self.version), self.flight.post(parts, len(nodes)), chance)

    def merge(self, news: News, hearers: Ints | None = None) -> None:
        Federation.merge(self, news, hearers)
        self.ledger.used = 0

    def gather(self) -> bool:
        """All have the state; is this where the lowest node is?"""
        self.viewed, self.first = self.step, self._lowest(self.step)
        return bool(self.mine[self.first])

    def _show(self) -> None:
        """Nothing is sent."""
