"""FedYogi: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, "Adaptive Federated Optimization",
https://arxiv.org/abs/2003.00295, Algorithm 2: FedAdam whose second moment changes by an amount that does not depend on itself."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from strategies.fedadam import FedAdam


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """As FedAdam, with v <- v - (1 - decay) x D^2 x sign(v - D^2)."""

    name: ClassVar[str] = "fedyogi"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.decay) * square * (v - square).sign()
