"""Sketched federated learning: Song, Wang, Yu, Zhang 2023, "Sketching for First Order Method: Efficient Algorithm for Low-Bandwidth Channel
and Vulnerability" (ICML), https://arxiv.org/abs/2210.08371: the iterative loop, as reconstructed from the abstract."""

# m: clients, k: messages, d: parameters, s: numbers of a sketch

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Schedule, setting
from fedsim.base.errors import SettingError
from fedsim.codecs import Sketch, Srht
from fedsim.federation.link import fitting
from fedsim.method.inbox import State, Weights
from fedsim.schedule import Rounds
from fedsim.task.task import Task
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Sketched(FedAvg):
    """u: K local steps from w; y_c = R (u - w) goes up, y = server_lr x mean of y_c comes down, and all step: w <- w + R' y.

    R (s x d, E R'R = I) follows from the round's key, which all know, so s numbers travel each way. Steps are right in the mean, but longer
    by the sketch's gain 1 + a (d/s with `srht`): on a loss with curvature L they diverge where lr L (1 + a) > 2, so `train.lr` has
    to shrink with s. A client that joins or missed rounds hears all y since then, or w where that is less. With `fresh: false` w never
    leaves the s dimensions of the one R, and in general never comes to the optimum.
    """

    name: ClassVar[str] = "sketched"
    source: ClassVar[str] = "Song et al. 2023"
    one_hearer: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=Rounds)
    weights: Weights = setting("uniform", "weight of a client in the mean: the same for all, as in the paper, or by samples")
    sketch: Sketch = setting(Srht(), "R: which, and how many numbers (s); `fresh` is another one each round")

    def __post_init__(self) -> None:
        if not self.schedule.rounds or self.schedule.staleness_limit() != 0:
            raise SettingError("schedule", "sketches of different rounds don't add up: `sketched` needs `rounds` with `late: drop`")
        if not self.downlink.lossless:
            raise SettingError("downlink", "under `sketched` clients hear the mean of the sketches as the server made it")

    def start(self, x: Tensor, task: Task) -> State:
        if task.buffers.size:
            raise SettingError("task.model", "has running statistics, which a sketch of the models' steps has not")
        with fitting("strategy.sketch"):
            like = self.packet({"model": x})
        if self.sketch.fresh and self.uplink.init(like):
            cure = "use a codec without memory, or `strategy.sketch.fresh: false`"
            raise SettingError("uplink", f"what `{self.uplink.name}` remembers is of another sketch each round; {cure}")
        return super().start(x, task)

    def packet(self, state: Rows) -> Rows:
        w = state["model"]
        return {"sketch": w.new_zeros(1, self.sketch.kept(w.shape[1]), dtype=torch.float32)}

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        start = received["model"]
        return {"sketch": self.exposed(local.descend(start) - start, local.shared[:1])}, memory

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        y, w = self.server_lr * self.mean(inbox, "sketch"), state["model"]
        return state | {"model": w + self.sketch.restore((y,), w.shape[1], inbox.shared[:1]).to(w.dtype)}

    def exposed(self, gradient: Tensor, shared: Tensor) -> Tensor:
        """[k, s]: what a message of one local step with gradients [k, d] tells whoever knows the round's keys, int64 [k] or [1]."""
        return self.sketch.squeeze(gradient, shared)[0]
