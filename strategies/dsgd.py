"""D-SGD: Swenson, Murray, Poor, Kar 2022, "Distributed Stochastic Gradient Descent: Nonconvexity, Nonsmoothness, and Convergence to Local
Minima", https://arxiv.org/abs/2003.02818; D-PSGD: Lian et al. 2017, https://arxiv.org/abs/1705.09056. Peers step and average."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from fedsim.part import setting
from fedsim.rows import Rows
from fedsim.schedule import Gossip, Schedule
from fedsim.strategy import Inbox, Strategy


@dataclass(frozen=True)
class Dsgd(Strategy):
    """adapt_then_combine: x <- W (x + update(x)); combine_then_adapt (D-PSGD): x <- W x + update(x), gradients at the old own model."""

    name: ClassVar[str] = "dsgd"
    source: ClassVar[str] = "Swenson et al. 2022"
    kind: ClassVar[str] = "peers"

    schedule: Schedule = field(default_factory=Gossip)
    order: Literal["adapt_then_combine", "combine_then_adapt"] = setting("adapt_then_combine", "mix after the own update or before it")

    @property
    def combine_first(self) -> bool:  # type: ignore[override]
        return self.order == "combine_then_adapt"

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"model": state["model"] + inbox.mean("update")}
