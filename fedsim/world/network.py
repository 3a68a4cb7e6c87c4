"""Seconds of travel: settings, and the packets that are lost on the way."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedsim.base.clock import Ints
from fedsim.base.keys import interior
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Bytes, Floats, PerNode, Rate, Share, Time
from fedsim.world.compute import NOTHING

NEVER: PerNode[float] = PerNode(0.0)
MOST_LOST = 0.999  # of packets: each is sent a thousand times on average


class PacketLoss(Part):
    """Which packets get lost. They are sent again until they arrive, so a message costs more time and bytes; it never fails."""

    slot: ClassVar[str] = "packet_loss"
    default: ClassVar[str] = "independent"
    bare: ClassVar[tuple[str, str]] = ("independent", "chance")


@dataclass(frozen=True)
class Independent(PacketLoss):
    """Each packet by the same chance, written as a bare share; a packet is sent 1 / (1 - chance) times on average."""

    chance: PerNode[Share] = setting(help="chance that a packet gets lost", ge=0, le=MOST_LOST)


@dataclass(frozen=True)
class GilbertElliottLoss(PacketLoss):
    """A good and a bad state of a node's link, over its own jobs; both messages of a job meet the same state."""

    name: ClassVar[str] = "gilbert_elliott"
    source: ClassVar[str] = "Elliott 1963"

    enter: PerNode[Share] = setting(help="chance a job that the link turns bad", ge=0, le=1)
    leave: PerNode[Share] = setting(help="chance a job that it turns good", ge=0, le=1)
    bad: PerNode[Share] = setting(help="chance that a packet gets lost in the bad state", ge=0, le=MOST_LOST)
    good: PerNode[Share] = setting(NEVER, "chance that a packet gets lost in the good state", ge=0, le=MOST_LOST)


@dataclass(frozen=True)
class Network(Part):
    """Seconds of travel = latency + bytes / rate, each way; bytes count again for packets that are sent again."""

    slot: ClassVar[str] = "network"
    name: ClassVar[str] = "standard"
    default: ClassVar[str] = "standard"

    up: PerNode[Rate] | None = setting(None, "rate of sending; by default without limit", ge=1)
    down: PerNode[Rate] | None = setting(None, "rate of receiving; by default without limit", ge=1)
    latency: PerNode[Time] = setting(NOTHING, "one way, paid in each direction", ge=0)
    loss: PacketLoss | None = setting(None, "packets lost and sent again: a share, or a part")
    packet: Bytes = setting(1500, "longest packet; a message is cut into equal ones", gt=0)
    server_up: Rate | None = setting(None, "rate at which the server receives, shared max-min fairly by all who send to it", ge=1)
    server_down: Rate | None = setting(None, "rate at which the server sends, shared likewise by all who receive", ge=1)


def again(keys: Tensor, packets: Ints, chance: Floats) -> Ints:
    """int64 [m]: how many packets are sent again until all of `packets` [m] are through, each transmission lost with `chance` [m] < 1.

    Negative binomial, by inverting its distribution function I_{1-p}(packets, k + 1) at one keyed number: exact to float64, whatever
    the size of the message.
    """
    from scipy.special import betainc

    u = interior(keys, 1)[:, 0].numpy()
    mean = packets * chance / (1 - chance)
    low = np.full(len(packets), -1, dtype=np.int64)
    high = (mean + 10 * np.sqrt(mean / (1 - chance)) + 10).astype(np.int64)

    def reached(k: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        found: np.ndarray[tuple[int], np.dtype[np.bool_]] = betainc(np.maximum(packets, 1), k + 1.0, 1 - chance) >= u
        return found

    while not (enough := reached(high)).all():
        high = np.where(enough, high, 2 * high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        below = reached(np.maximum(middle, 0)) & (middle >= 0)
        low, high = np.where(below, low, middle), np.where(below, middle, high)
    return np.where((packets > 0) & (chance > 0), high, 0)
