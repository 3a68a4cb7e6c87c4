"""FedSAM: Qu, Li, Duan, Liu, Tang, Lu 2022, "Generalized Federated Learning via Sharpness Aware Minimization" (ICML),
https://arxiv.org/abs/2206.02618, Algorithm 1: local gradients are taken a little uphill."""

from dataclasses import dataclass
from typing import ClassVar

from fedsim import Local, Rows, setting
from fedsim.method.inbox import Weights
from fedsim.method.local import Ascent
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedSam(FedAvg):
    """w <- w - lr x gradient at w + ascent x g / |g|, g the gradient at w on the same batch; the server is FedAvg's."""

    name: ClassVar[str] = "fedsam"
    source: ClassVar[str] = "Qu et al. 2022"

    weights: Weights = setting("uniform", "weight of a client in the mean update: the same for all, as in the paper, or by samples")
    ascent: float = setting(0.1, "length of the ascent step (rho); 0 is FedAvg", ge=0)
    normalised: bool = setting(True, "divide the first gradient by its length, or not")

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return 2 if self.ascent > 0 else 1

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start = received["model"]
        return {"update": local.descend(start, ascent=Ascent(self.ascent, self.normalised)) - start}, memory
