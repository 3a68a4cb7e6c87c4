"""MoFedSAM: Qu, Li, Duan, Liu, Tang, Lu 2022, "Generalized Federated Learning via Sharpness Aware Minimization" (ICML),
https://arxiv.org/abs/2206.02618, Algorithm 1 with momentum: FedCM with FedSAM's gradients."""

from dataclasses import dataclass
from typing import ClassVar

from fedsim import setting
from fedsim.method.local import Ascent
from strategies.fedcm import FedCm


@dataclass(frozen=True)
class MoFedSam(FedCm):
    """w <- w - lr (fresh x g2 + (1 - fresh) m), g2 the gradient at w + ascent x g1 / |g1|, m as in FedCM."""

    name: ClassVar[str] = "mofedsam"
    source: ClassVar[str] = "Qu et al. 2022"

    ascent: float = setting(0.1, "length of the ascent step (rho); 0 is FedCM", ge=0)
    normalised: bool = setting(True, "divide the first gradient by its length, or not")

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return 2 if self.ascent > 0 else 1

    def ascending(self) -> Ascent | None:
        return Ascent(self.ascent, self.normalised)
