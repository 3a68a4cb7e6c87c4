"""FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, "Federated Optimization in Heterogeneous Networks",
https://arxiv.org/abs/1812.06127, Algorithm 2: local training is held near the global model."""

from dataclasses import dataclass
from typing import ClassVar

from fedsim import Local, Rows, setting
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg on the local loss plus pull/2 times the squared distance to the server's model; pull = 0 is FedAvg."""

    name: ClassVar[str] = "fedprox"
    source: ClassVar[str] = "Li et al. 2020"

    pull: float = setting(0.01, "strength of the proximal term (mu)", ge=0)

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start = received["model"]
        return {"update": local.descend(start, anchor=start, pull=self.pull) - start}, memory
