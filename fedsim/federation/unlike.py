"""Nodes with different models under one server, which is a hearer for each architecture: what they may do, and how much they send."""

# h: architectures, n: nodes

import numpy as np

from fedsim.base.errors import SettingError
from fedsim.base.rows import Rows
from fedsim.engines.stacks import Stacks
from fedsim.federation.federation import Federation
from fedsim.federation.link import Link, fitting
from fedsim.method.strategy import Strategy
from fedsim.task.architectures import MODEL, cut, filled
from fedsim.task.task import Task


def check(strategy: Strategy, task: Task) -> None:
    """Raises SettingError, naming the group, where the method or what is around it can't do with different models."""
    if not task.architectures:
        return
    key, group = next((one.key, one.group) for one in reversed(task.architectures) if one.key != MODEL)
    if not strategy.architectures:
        what = f"group `{group}` has a model of its own, and `{strategy.name}` averages weights of models that are alike"
        raise SettingError(key, f"{what}; fedmd and feddf exchange outputs on public data (`task.public`)")
    if strategy.train.keeps:
        raise SettingError(
            "train.state", f"`{strategy.train.state}` is for nodes whose models are alike: group `{group}` has one of its own"
        )
    if strategy.privacy is not None:
        raise SettingError("privacy", f"not where nodes have different models: group `{group}` has one of its own")


def measure(fed: Federation) -> Rows:
    """Learns the sizes of each architecture's messages from one job of each that leaves no trace; one of the replies, parts [1, ...]."""
    worker, task = fed.worker, fed.task
    assert isinstance(worker, Stacks)
    if fed.nature.machine is not None:
        raise SettingError("world.hosts", "machines share what all hear, and groups have models of their own")
    state, replies, sizes = fed.fresh(), list[Rows](), list[tuple[int, int, int]]()
    told = fed.strategy.broadcast(state)
    for kind, (one, alone) in enumerate(zip(worker.each, task.stacks, strict=True)):
        size = alone.layout.size
        heard = {name: rows[kind : kind + 1] for name, rows in told.items()}
        mine = cut(heard, task.width, size)
        if _shapes(mine) != _shapes(heard):
            _as_they_are(fed)
        with fitting("uplink"):
            replies.append(fed.flight.probe(heard, np.flatnonzero(task.home == kind)))
            up = Link(one.strategy.uplink, "uplink", fed.seed, 0).sizes(cut(replies[-1], task.width, size))
        remembers = filled(one.strategy.uplink.init(cut(replies[-1], task.width, size)), size, task.width)
        if _shapes(remembers) != _shapes(worker.strategy.uplink.init(replies[-1])):
            what = f"`{one.strategy.uplink.name}` remembers unlike things of models of different lengths"
            raise SettingError("uplink", f"{what}, and groups have models of their own")
        sizes.append((fed.down.size(mine), *up))
    if any(_shapes(one) != _shapes(replies[0]) for one in replies):
        raise SettingError("strategy", f"messages of `{fed.strategy.name}` differ in more than the length of models")
    fed.down_bytes, fed.flight.first_bytes, fed.flight.up_bytes = np.array(sizes).T[:, task.home]
    fed.flight.effort = fed.strategy.effort(state, task) or fed.flight.effort
    return replies[0]


def _as_they_are(fed: Federation) -> None:
    """Raises SettingError where something would be done to models of different lengths together."""
    if not fed.strategy.downlink.lossless:
        raise SettingError("downlink", "models of different lengths travel as they are: `identity` is due where groups have their own")
    if fed.nature.liars is not None and fed.nature.liars.attackers.forges:
        what = f"`{fed.nature.liars.attackers.name}` forges messages that are alike, and groups have models of their own"
        raise SettingError("world.attackers", what)


def _shapes(rows: Rows) -> dict[str, list[int]]:
    return {name: list(part.shape[1:]) for name, part in rows.items()}
