"""Codecs with memory in whole federations: up, down and across, and what becomes of memory on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tools import classification, durations, events, models, quadratics, run, steps
from torch import Tensor

from fedsim.base.rows import Rows
from fedsim.codecs import Codec, Identity, row_bytes
from fedsim.federation.federation import Federation
from fedsim.method.strategy import Strategy
from fedsim.schedule import Buffered, Gossip, Pairwise, Rounds, Schedule
from fedsim.settings.values import Count, PerNode
from fedsim.world import Faults, World
from strategies.dsgd import Dsgd
from strategies.fedavg import FedAvg

# A codec that is run but changes nothing, and the one that is not run


@dataclass(frozen=True)
class Through(Codec):
    """Not lossless by its word only: encoded, decoded, with a memory that counts messages."""

    def init(self, parts: Rows) -> Rows:
        return {"messages": torch.zeros(len(next(iter(parts.values()))))}

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        return {name: rows.clone() for name, rows in wire.items()}, {"messages": memory["messages"] + 1}


def under(codec: Codec, schedule: Schedule) -> Strategy:
    kind: type[Strategy] = Dsgd if schedule.peers else FedAvg
    return kind(train=steps(3, 0.2, batch=4), schedule=schedule, uplink=codec, downlink=codec, crosslink=codec)


SCHEDULES = [Rounds(cohort=Count(3)), Rounds(wait_for=2, late="keep"), Buffered(2, Count(4)), Gossip(), Pairwise()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["cohorts", "late", "buffered", "gossip", "pairwise"])
def test_identity_is_no_codec_in_bits(schedule: Schedule) -> None:
    task, world = classification([4, 9, 6, 5, 8]), durations(1, 2, 3, 4, 5)
    plain = run(task, under(Identity(), schedule), 6, world=world)
    through = run(task, under(Through(), schedule), 6, world=world)
    assert torch.equal(models(plain), models(through))
    assert plain.ledger.totals() == through.ledger.totals()
    assert {name: column.tolist() for name, column in plain.ledger.columns().items()} == {
        name: column.tolist() for name, column in through.ledger.columns().items()
    }


def counted(memory: Any, nodes: int) -> list[int]:
    """Messages of each link, as `Through` counts them."""
    rows = memory.get(np.arange(nodes), lambda new: {"messages": torch.zeros(len(new))})
    return [int(n) for n in rows["messages"]]


# Error feedback that delivers the estimate: g += C(x - g), C rounds to quarters. All numbers stay short in binary, so loops agree in bits


@dataclass(frozen=True)
class Quarters(Codec):
    """Richtárik et al. 2021, EF21 with a rounding compressor: only the change since the last message travels, as int8 quarters."""

    def init(self, parts: Rows) -> Rows:
        return {f"known {name}": torch.zeros_like(rows) for name, rows in parts.items()}

    def encode(self, parts: Rows, memory: Rows, key: Tensor) -> Rows:
        return {name: (4 * (rows - memory[f"known {name}"])).floor().to(torch.int8) for name, rows in parts.items()}

    def decode(self, wire: Rows, memory: Rows, key: Tensor) -> tuple[Rows, Rows]:
        parts = {name: memory[f"known {name}"] + rows / 4 for name, rows in wire.items()}
        return parts, {f"known {name}": rows for name, rows in parts.items()}


def quarters(change: float) -> float:
    return float(np.floor(4 * change)) / 4


B = [8.0, -3.5, 2.25, 1.0]  # centres of 1/2 (w - b)^2
LR = 0.5
TRAIN = steps(1, LR)


def known(fed: Federation, links: Any) -> list[float]:
    """What each link remembers, 0 where it never carried anything."""
    name = "update" if links is fed.flight.links else "model"
    rows = links.get(np.arange(fed.nodes), lambda new: {f"known {name}": torch.zeros(len(new), 1, dtype=torch.float64)})
    return rows[f"known {name}"][:, 0].tolist()  # type: ignore[no-any-return]


def test_error_feedback_up_is_the_plain_loop() -> None:
    fed = run(quadratics(B), FedAvg(train=TRAIN, schedule=Rounds(cohort=Count()), uplink=Quarters()), 8)
    x, g, path = 0.0, [0.0] * 4, [0.0]
    for _ in range(8):
        for i in range(4):
            g[i] += quarters(LR * (B[i] - x) - g[i])
        x += sum(g) / 4
        path.append(x)
    assert models(fed)[:, 0, 0].tolist() == path
    assert known(fed, fed.flight.links) == g
    assert fed.ledger.bytes_up == 32 * row_bytes({"update": torch.zeros(1, 1, dtype=torch.int8)})


def test_error_feedback_down_is_the_plain_loop() -> None:
    """A memory for each node that heard: two of four are asked at a time."""
    strategy = FedAvg(train=TRAIN, schedule=Rounds(cohort=Count(2)), downlink=Quarters())
    fed = run(quadratics(B), strategy, 8)
    asked = events(fed, "dispatch")["node"].reshape(8, 2).tolist()
    assert len({tuple(pair) for pair in asked}) > 3
    x, h, path = 0.0, [0.0] * 4, [0.0]
    for pair in asked:
        for i in pair:
            h[i] += quarters(x - h[i])
        x += sum(LR * (B[i] - h[i]) for i in pair) / 2
        path.append(x)
    assert models(fed)[:, 0, 0].tolist() == path
    assert known(fed, fed.down.memories) == h


@pytest.mark.parametrize("order", ["adapt_then_combine", "combine_then_adapt"])
def test_error_feedback_across_is_the_plain_loop(order: Any) -> None:
    """Three peers on a ring hear each other's estimates, and have their own models as they are."""
    fed = run(quadratics(B[:3]), Dsgd(train=TRAIN, order=order, crosslink=Quarters()), 6)
    x, g, path = [0.0] * 3, [0.0] * 3, [[0.0] * 3]
    for _ in range(6):
        step = [LR * (B[i] - x[i]) for i in range(3)]
        if order == "adapt_then_combine":
            x = [a + b for a, b in zip(x, step, strict=True)]
        for i in range(3):
            g[i] += quarters(x[i] - g[i])
        x = [(x[i] + sum(g) - g[i]) / 3 for i in range(3)]
        if order == "combine_then_adapt":
            x = [a + b for a, b in zip(x, step, strict=True)]
        path.append(x)
    assert torch.allclose(models(fed)[..., 0], torch.tensor(path, dtype=torch.float64), rtol=0, atol=1e-13)
    assert known(fed, fed.cross.memories) == pytest.approx(g, abs=1e-13)
    assert fed.ledger.bytes_cross == 6 * 6 * row_bytes({"model": torch.zeros(1, 1, dtype=torch.int8)})
    assert (fed.ledger.bytes_up, fed.ledger.bytes_down) == (0, 0)


def test_links_across_belong_to_the_pair_that_talks() -> None:
    fed = run(quadratics(B), Dsgd(train=TRAIN, schedule=Pairwise(), crosslink=Through()), 2, world=durations(1, "1.3", "1.7", "2.9"))
    mixed = events(fed, "mix")["node"]
    assert counted(fed.cross.memories, 4) == np.bincount(mixed, minlength=4).tolist()


def arrivals(fed: Federation) -> Iterator[list[int]]:
    """Senders of each merge."""
    table = events(fed, "merge")
    for version in range(1, fed.version + 1):
        yield [int(node) for node in table["node"][table["version"] == version] if node >= 0]


def replay(fed: Federation) -> tuple[list[float], list[float], list[float]]:
    """The plain loop of synchronous rounds, told only whose updates arrived: path, and memories up and down."""
    x, g, h, path = 0.0, [0.0] * fed.nodes, [0.0] * fed.nodes, [0.0]
    asked = events(fed, "dispatch")
    for version, who in enumerate(arrivals(fed)):
        for i in asked["node"][asked["version"] == version]:
            h[i] += quarters(x - h[i])  # down: kept when sent
        for i in who:
            g[i] += quarters(LR * (B[i] - h[i]) - g[i])  # up: kept when it arrives
        x += sum(g[i] for i in who) / max(1, len(who))
        path.append(x)
    return path, g, h


@dataclass(frozen=True)
class Hasty(Schedule):
    """All start, two are merged, the rest is cancelled although it was computed along."""

    name: ClassVar[str] = "hasty"

    def run(self, fed: Federation) -> None:
        while fed.running():
            fed.send(fed.sample(Rounds().sampling, Count(3)).nodes)
            fed.merge(fed.receive(1, ahead=True))
            assert (fed.flight.reply[fed.flight.job >= 0] >= 0).all()
            fed.cancel()


@pytest.mark.parametrize(
    ("schedule", "faults"),
    [
        (Rounds(cohort=Count(3), wait_for=1), Faults()),
        (Hasty(), Faults()),
        (Rounds(cohort=Count()), Faults(crash=PerNode(0.4))),
        (Rounds(cohort=Count()), Faults(lost=PerNode(0.4))),
        (Rounds(cohort=Count(3), wait_for=1), Faults(crash=PerNode(0.2), lost=PerNode(0.3))),
    ],
    ids=["late", "computed and cancelled", "crash", "lost", "all"],
)
def test_memory_of_what_does_not_arrive_is_forgotten(schedule: Schedule, faults: Faults) -> None:
    strategy = FedAvg(train=TRAIN, schedule=schedule, uplink=Quarters(), downlink=Quarters())
    world = World(compute=durations("1", "1.1", "1.2", "1.3").compute, faults=faults)
    fed = run(quadratics(B), strategy, 8, world=world)
    path, g, h = replay(fed)
    assert fed.ledger.dropped > 4
    assert models(fed)[:, 0, 0].tolist() == path
    assert known(fed, fed.flight.links) == g
    assert known(fed, fed.down.memories) == h
    assert not (fed.flight.replies.blocks or fed.flight.after.blocks or fed.flight.mail.blocks)


def test_late_updates_bring_their_memory_when_they_arrive() -> None:
    """Jobs of 1 s and 2.5 s, each merged alone: node 1's is the third."""
    strategy = FedAvg(train=TRAIN, schedule=Buffered(1), uplink=Through())
    fed = run(quadratics([1.0, 2.0]), strategy, 2, world=durations(1, "2.5"))
    assert fed.flight.reply[1] >= 0  # computed along with the other's, and under way
    assert counted(fed.flight.links, 2) == [2, 0]
    fed = run(quadratics([1.0, 2.0]), strategy, 3, world=durations(1, "2.5"))
    assert counted(fed.flight.links, 2) == [2, 1]


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_memory_does_not_depend_on_what_is_computed_together(chunk: int) -> None:
    strategy = FedAvg(train=TRAIN, schedule=Buffered(2, Count(3)), uplink=Quarters(), downlink=Quarters())
    world = World(compute=durations("1", "1.1", "1.7", "0.3").compute, faults=Faults(crash=PerNode(0.1), lost=PerNode(0.1)))
    fed, one = (run(quadratics(B), strategy, 12, world=world, chunk=size) for size in (chunk, 4))
    assert torch.equal(models(fed), models(one))
    assert known(fed, fed.flight.links) == known(one, one.flight.links)
    assert known(fed, fed.down.memories) == known(one, one.down.memories)
