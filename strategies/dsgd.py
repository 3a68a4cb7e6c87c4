"""D-SGD: Swenson, Murray, Poor, Kar 2022, "Distributed Stochastic Gradient Descent: Nonconvexity, Nonsmoothness, and Convergence to Local
Minima", https://arxiv.org/abs/2003.02818; D-PSGD: Lian et al. 2017, https://arxiv.org/abs/1705.09056. Peers step and average.

Annealing: Swenson, Kar, Poor, Moura 2019, "Annealing for Distributed Global Optimization", https://arxiv.org/abs/1903.07258."""

# m: jobs, d: parameters

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Schedule, Strategy, setting
from fedsim.base.clock import Ints
from fedsim.base.keys import fold, normal
from fedsim.schedule import Gossip
from fedsim.settings.values import Floats


@dataclass(frozen=True)
class Dsgd(Strategy):
    """adapt_then_combine: x <- W (x + update(x)); combine_then_adapt (D-PSGD): x <- W x + update(x), gradients at the old own model.

    The papers' recursion is combine_then_adapt with `train.steps: 1`, a rate alpha_k that falls, `lr: {name: power, ...}`, and the topology
    `laplacian` (W_k = I - beta_k L), or weights `max_degree` (beta = 1 / (1 + the largest degree)). Where a loss has corners
    (`absolute_error`, `hinge`) gradients are Clarke subgradients. With annealing, noise joins each update.
    """

    name: ClassVar[str] = "dsgd"
    source: ClassVar[str] = "Swenson et al. 2022"
    kind: ClassVar[str] = "peers"

    schedule: Schedule = field(default_factory=Gossip)
    order: Literal["adapt_then_combine", "combine_then_adapt"] = setting("adapt_then_combine", "mix after the own update or before it")

    annealing: float = setting(0.0, "c_g: gamma_k w joins the update of round k, w normal, gamma_k = c_g / sqrt(k log log k)", ge=0)

    @property
    def combine_first(self) -> bool:  # type: ignore[override]
        return self.order == "combine_then_adapt"

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        parts, memory = super().local_update(received, memory, local)
        return ({"update": parts["update"] + self.noise(parts["update"], local)} if self.annealing else parts), memory

    def noise(self, like: Tensor, local: Local) -> Tensor:
        """[m, d]: gamma_k w of jobs in their rounds."""
        gamma = torch.from_numpy(self.annealing * gammas(local.rounds + 1)).to(like)[:, None]
        return gamma * normal(fold(local.key, "annealing"), like.shape[1]).to(like)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        return state | {"model": state["model"] + inbox.mean("update")}


def gammas(k: Ints) -> Floats:
    """1 / sqrt(k log log k) of rounds from 1; log log k is no number above 0 before k = 3, whose value stands for the first two."""
    k = np.maximum(k, 3)
    return np.asarray(1 / np.sqrt(k * np.log(np.log(k))))
