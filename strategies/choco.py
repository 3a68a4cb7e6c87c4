"""CHOCO-SGD: Koloskova, Stich, Jaggi 2019, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication"
(ICML), https://arxiv.org/abs/1902.00340, Algorithm 2: D-SGD whose peers send little and remember much."""

from dataclasses import dataclass, field
from typing import ClassVar

from fedsim import Inbox, Rows, Schedule, Strategy, setting
from fedsim.codecs import Codec, Ef21, TopK
from fedsim.schedule import Gossip
from fedsim.topology import Mixing


@dataclass(frozen=True)
class Choco(Strategy):
    """x <- x + update; xhat <- xhat + Q(x - xhat) is what travels and all remember; x <- x + step sum_j w_ij (xhat_j - xhat_i).

    xhat is what the crosslink codec delivers: `ef21` around any contractive Q. Without a codec and with step 1 it is D-SGD. The paper's
    step for Q with |Q(v) - v|^2 <= (1 - alpha) |v|^2 is `theory(alpha, gap, beta)`; in practice larger ones are tuned.
    """

    name: ClassVar[str] = "choco"
    source: ClassVar[str] = "Koloskova et al. 2019"
    kind: ClassVar[str] = "peers"
    symmetric: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Gossip)
    crosslink: Codec = field(default_factory=lambda: Ef21(TopK(fraction=0.05)))
    step: float = setting(0.3, "consensus step (gamma)", gt=0, le=1)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"model": state["model"] + inbox.mean("update")}

    def mix(self, state: Rows, heard: Rows, mixing: Mixing) -> Rows:
        known = heard["model"]
        return state | {"model": state["model"] + self.step * (mixing @ known - known)}


def theory(alpha: float, gap: float, beta: float) -> float:
    """The paper's consensus step (Theorem 2): spectral gap delta of W, beta = |I - W|_2."""
    return gap**2 * alpha / (16 * gap + gap**2 + 4 * beta**2 + 2 * gap * beta**2 - 8 * gap * alpha)
