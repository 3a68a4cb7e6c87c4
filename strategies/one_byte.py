"""One byte per gradient: Zelikman, Huang, Liang, Haber, Goodman 2023, "Just One Byte (per gradient)", https://arxiv.org/abs/2306.10015;
with one machine MeZO: Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", https://arxiv.org/abs/2305.17333."""

# m: machines, J: probes a machine and round, N: probes merged, d: parameters

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim import Inbox, Local, Rows, Schedule, setting
from fedsim.base.errors import RunError
from fedsim.base.keys import fold, normal
from fedsim.codecs import Codec
from fedsim.codecs.scalar import Log8Byte
from fedsim.method.local import Batch
from fedsim.method.replicated import Replicated
from fedsim.schedule import Rounds
from fedsim.settings.values import Constant, Count, Curve

TOGETHER = 1 << 19  # numbers of directions that are in memory at once


@dataclass(frozen=True)
class OneByte(Replicated):
    """p = (loss(w + eps z) - loss(w - eps z)) / (2 eps) travels; all rebuild z from round and probe and step: w <- w - lr/N sum p z.

    z is normal. Probe j of machine i is probe i J + j of its round, which decides its z and its minibatch, and the order of summation.
    """

    name: ClassVar[str] = "one_byte"
    source: ClassVar[str] = "Zelikman et al. 2023"
    forward_only: ClassVar[bool] = True

    schedule: Schedule = field(default_factory=lambda: Rounds(cohort=Count()))
    uplink: Codec = field(default_factory=Log8Byte)
    probes: int = setting(1, "probes of a machine each round (J)", ge=1)
    epsilon: float = setting(1e-3, "how far a probe looks (eps), in directions of standard normal numbers", gt=0)
    lr: Curve = setting(Constant(1e-3), "step (eta), by round if it changes")
    batch: int | Literal["all"] = setting(64, "samples a probe", ge=1)
    normalise: Literal["mean", "sqrt"] = setting("mean", "divide the sum by N, or by its root (released code; steps grow with machines)")

    def __post_init__(self) -> None:
        self.trained(self.probes, self.batch, self.lr)

    @property
    def copies(self) -> int:
        return 2 * self.probes

    def local_update(self, received: Rows, memory: Rows, local: Local) -> tuple[Rows, Rows]:
        x, keys, round = received["model"], self.keys(local.shared, local.nodes), int(local.rounds[0])
        one = {name: rows[0] for name, rows in received.items()}  # all have the same
        job = torch.arange(len(x), device=x.device)
        found = []
        for at, key in together(job.repeat_interleave(self.probes), keys, x.shape[1]):
            z, _ = self.directions(key, one, round)
            found.append(self.slope(x[at], self.epsilon, local.drawn(at, fold(key, "batch")), z))
        slopes = torch.cat(found).view(len(job), self.probes)
        if (broken := slopes.isnan().nonzero()).numel():
            row, number = broken[0].tolist()
            where = f"round {int(local.rounds[row]) + 1}: machine {int(local.nodes[row])}, probe {number}"
            raise RunError(f"{where}: the loss is not a number; a smaller `strategy.lr` may help")
        return {"slopes": slopes}, memory

    def keys(self, shared: Tensor, nodes: Tensor) -> Tensor:
        """int64 [m J]: of the probes of machines, in the one order of all replicas."""
        number = nodes[:, None] * self.probes + torch.arange(self.probes, device=nodes.device)
        return fold(shared[:, None], "probe", number).flatten()

    def directions(self, key: Tensor, state: Rows, round: int) -> tuple[Tensor, Tensor]:
        """[k, d] twice: along which probes with keys [k] look, and along which their steps go. `state` is one replica's."""
        z = normal(key, len(state["model"])).to(state["model"].dtype)
        return z, z

    @staticmethod
    def slope(x: Tensor, epsilon: float, batch: Batch, z: Tensor) -> Tensor:
        """[k]: derivatives at x [k, d] along z, by central differences of one batch; x stays as it is."""
        ahead, behind = batch.twice().loss(torch.cat([torch.add(x, z, alpha=epsilon), torch.sub(x, z, alpha=epsilon)])).chunk(2)
        return (ahead - behind) / (2 * epsilon)

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        slopes = inbox["slopes"].flatten().double()
        lr = float(self.lr.at(torch.tensor([inbox.round]).numpy())[0])
        steps = slopes * (lr / (len(slopes) if self.normalise == "mean" else len(slopes) ** 0.5))
        x = state["model"][0]
        for step, key in together(steps, self.keys(inbox.shared, inbox.sender), len(x)):
            _, ways = self.directions(key, {name: rows[0] for name, rows in state.items()}, inbox.round)
            for one, way in zip(step.tolist(), ways, strict=True):
                x.sub_(way, alpha=one)
        return state


def together(values: Tensor, keys: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and keys [N], as many at once as memory has room for directions of `size` numbers."""
    count = max(1, TOGETHER // size)
    return zip(torch.split(values, count), torch.split(keys, count), strict=True)
