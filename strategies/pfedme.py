"""pFedMe: Dinh, Tran, Nguyen 2020, "Personalized Federated Learning with Moreau Envelopes", https://arxiv.org/abs/2006.08848, Algorithm 1:
a client's own model minimises its loss held to a local model, which is then pulled towards it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim import Local, Rows, setting
from fedsim.method.inbox import Weights
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class PFedMe(FedAvg):
    """A step: on one batch `inner` steps theta <- theta - own_lr (grad F_i(theta) + pull (theta - w)); then w <- w - lr pull (w - theta).

    The inner steps begin at w. `train` gives the number of outer steps, the batch and lr (eta); `server_lr` is the paper's beta, and as
    there all clients weigh the same by default. The client's own model is the last theta.
    """

    name: ClassVar[str] = "pfedme"
    source: ClassVar[str] = "Dinh et al. 2020"

    weights: Weights = setting("uniform", "weight of a client in the mean update: the same for all, as in the paper, or by samples")
    pull: float = setting(15.0, "strength that holds a client's own model to the local one (lambda)", gt=0)
    inner: int = setting(5, "steps towards a client's own model in each step (K)", ge=1)
    own_lr: float = setting(0.01, "of those steps", gt=0)

    def __post_init__(self) -> None:
        if not self.train.plain:
            raise ValueError(f"`{self.name}` knows plain steps only; leave out train.optimizer, momentum, weight_decay and clip")

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return self.inner

    def start_local(self, x: Tensor) -> Rows:
        return {"model": x.clone()}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start = received["model"]
        x, own = start.clone(), start.clone()
        for batch, w, theta in local.batches(x, own):
            theta.copy_(w)
            for _ in range(self.inner):
                slope = batch.gradient(theta, keep=False).add_(theta - w, alpha=self.pull)
                theta.sub_(slope, alpha=self.own_lr)
            local.step(w, self.pull * (w - theta))
        return {"update": x - start}, {"model": own}

    def personal(self, received: Rows, memory: Rows, task: Task) -> Tensor:
        return memory["model"]
