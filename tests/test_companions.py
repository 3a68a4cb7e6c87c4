"""What rides along with a federation is told of every verb, and may change what passes through, without a word of it in the core."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from tools import federation, quadratics, spread, steps
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.rows import Rows
from fedsim.federation.federation import Federation
from fedsim.federation.health import Health
from fedsim.method.companion import Companion, Merged
from fedsim.method.inbox import Inbox
from fedsim.run.checkpoint import collect, restore
from fedsim.schedule import Gossip, Rounds
from fedsim.schedule.news import News
from fedsim.settings.values import Count
from fedsim.topology.mixing import Mixing
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg


class Diary(Companion):
    """Writes down what it is told."""

    keeps: ClassVar[tuple[str, ...]] = ("merges",)

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.merges = 0

    def told(self, parts: Rows, nodes: Tensor, rows: int) -> Rows:
        self.lines.append(f"told {nodes.tolist()}, {rows} row")
        return parts

    def billed(self, nodes: Ints, version: int, size: Ints) -> Ints:
        return size + 1000

    def begun(self, nodes: Ints) -> None:
        self.lines.append(f"begun {nodes.tolist()}")

    def arrived(self, nodes: Tensor, parts: Callable[[], Rows]) -> None:
        self.lines.append(f"arrived {nodes.tolist()} {parts()['update'][:, 0].tolist()}")

    def merged(self, merged: Merged) -> None:
        self.merges += 1
        self.lines.append(f"merged {merged.version} {merged.news.node.tolist()} {merged.models[:, 0].tolist()}")

    def mixed(self, mixing: Mixing, at: Tensor) -> None:
        self.lines.append(f"mixed {at.tolist()}")


class Halved(Companion):
    """The strategy sees half of each message."""

    def seen(self, inbox: Inbox, news: News, version: int) -> Inbox:
        return replace(inbox, parts={name: rows / 2 for name, rows in inbox.parts.items()})


def one_step(rounds: int, *riders: Companion, peers: bool = False) -> Federation:
    """Two nodes with (w - 4)^2 / 2 and (w - 8)^2 / 2, one step of rate 1 from 0: updates 4 and 8."""
    strategy = Dsgd(train=steps(1, 1.0), schedule=Gossip()) if peers else FedAvg(train=steps(1, 1.0), schedule=Rounds(Count()))
    fed = federation(quadratics([4.0, 8.0]), strategy, rounds, spread(50, 2), plan="looped")
    for rider in riders:
        fed.ride(rider)
    fed.run()
    return fed


def test_a_companion_is_told_of_every_verb_in_order():
    diary = Diary()
    fed = one_step(1, diary)
    assert diary.lines == ["told [0, 1], 1 row", "begun [0, 1]", "arrived [1, 0] [8.0, 4.0]", "merged 0 [0, 1] [6.0]"]
    bare = one_step(1)
    assert fed.ledger.bytes_down - bare.ledger.bytes_down == 2000, "two nodes, a thousand bytes each"


def test_peers_tell_it_of_their_mixing():
    diary = Diary()
    one_step(1, diary, peers=True)
    assert diary.lines[-2:] == ["merged 0 [0, 1] [4.0, 8.0]", "mixed [0, 1]"]
    assert diary.lines[:2] == ["told [0, 1], 2 row", "begun [0, 1]"]


def test_a_companion_may_change_what_passes():
    fed = one_step(1, Halved())
    assert fed.state["model"].tolist() == [[3.0]]


def test_of_two_companions_of_one_name_none_is_lost_in_silence():
    with pytest.raises(AssertionError, match="a Halved rides along already"):
        one_step(1, Halved(), Halved())


def test_companions_are_found_by_kind_and_kept_in_checkpoints():
    diary = Diary()
    half, rest = one_step(2, diary), one_step(0, Diary())
    assert half.companion(Diary) is diary and half.companion(Halved) is None and half.companion(Health)
    restore(rest, collect(half))
    kept = rest.companion(Diary)
    assert kept is not None and kept.merges == 2 and torch.equal(rest.state["model"], half.state["model"])
    assert np.array_equal(rest.flight.job, half.flight.job)
