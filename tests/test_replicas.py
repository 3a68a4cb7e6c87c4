"""What replicas are billed, and keys that a job and its hearer share."""

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from tools import durations, events, quadratics, quick, steps

from fedsim.base.errors import SettingError
from fedsim.base.keys import normal
from fedsim.base.rows import Rows
from fedsim.codecs import Codec, Float16, pack
from fedsim.codecs.scalar import Log8Byte
from fedsim.method.inbox import Inbox
from fedsim.method.local import Local
from fedsim.method.replicated import Replicated
from fedsim.schedule import Buffered, Gossip, Rounds, Schedule
from fedsim.settings.values import Count
from fedsim.world import World
from fedsim.world.availability import Timetable

ALL = Rounds(cohort=Count())


@dataclass(frozen=True)
class Shared(Replicated):
    """Sends one number, drawn by the shared key; the merge checks that it can draw it too."""

    name: ClassVar[str] = "shared"
    uplink: Codec = field(default_factory=Log8Byte)
    schedule: Schedule = field(default_factory=lambda: ALL)

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        assert len(local.nodes) == 1 or received["model"].stride(0) == 0, "one row for all"
        return {"number": normal(local.shared, 1).sign()}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        assert torch.equal(inbox["number"], normal(inbox.shared, 1).sign())
        return state | {"model": state["model"] + inbox.round}


def shared(catch_up: Any, world: World, rounds: int, nodes: int = 4, **settings: Any) -> Any:
    return quick(quadratics([1.0] * nodes), Shared(train=steps(), catch_up=catch_up, **settings), rounds, world)


def down(fed: Any) -> list[list[int]]:
    """Bytes that nodes hear, a list a round."""
    table = events(fed, "dispatch")
    return [table["bytes_down"][table["version"] == version].tolist() for version in range(fed.version)]


def test_nodes_hear_the_messages_of_the_others_and_no_model() -> None:
    fed = shared("weights", World(), 3)
    assert down(fed) == [[0] * 4, [3] * 4, [3] * 4]
    assert fed.ledger.bytes_up == 12
    assert fed.state["model"].item() == 0 + 1 + 2


@pytest.mark.parametrize(("catch_up", "first"), [("replay", 3 * 2), ("weights", len(pack({"model": torch.zeros(1, dtype=torch.float64)})))])
def test_who_joins_hears_the_state_or_the_log(catch_up: str, first: int) -> None:
    # rounds of 1 s; node 2 comes after 3 rounds of two messages each, node 1 goes after five rounds
    table = Timetable(joins={"2": Fraction(5, 2)}, leaves={"1": Fraction(9, 2)})
    fed = shared(catch_up, World(compute=durations(1, 1, 1).compute, availability=table), 6, nodes=3)
    assert down(fed) == [[0, 0], [1, 1], [1, 1], [1, 1, first], [2, 2, 2], [2, 2]]


def test_one_machine_hears_nothing() -> None:
    assert down(shared("weights", World(), 3, nodes=1)) == [[0], [0], [0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": Buffered(size=2)}, "schedule: `shared` needs replicas that are equal"),
        ({"schedule": Rounds(late="keep")}, "schedule: `shared` needs replicas that are equal"),
        ({"schedule": Gossip()}, "merges at a server"),
        ({"downlink": Float16()}, "downlink: under `shared` nodes hear each other's messages"),
    ],
)
def test_what_has_no_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        shared("weights", durations(1, 1, 1, 1), 1, **settings)
