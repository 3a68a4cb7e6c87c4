"""FedAdam: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, "Adaptive Federated Optimization",
https://arxiv.org/abs/2003.00295, Algorithm 2: FedAdagrad that forgets old squares."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim import setting
from strategies.fedadagrad import FedAdagrad


@dataclass(frozen=True)
class FedAdam(FedAdagrad):
    """m <- momentum x m + (1 - momentum) x D; v <- decay x v + (1 - decay) x D^2; x <- x + server_lr x m / (sqrt(v) + tau)."""

    name: ClassVar[str] = "fedadam"

    decay: float = setting(0.99, "decay of the mean of squares (beta_2)", ge=0, lt=1)

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.decay * v + (1 - self.decay) * square
