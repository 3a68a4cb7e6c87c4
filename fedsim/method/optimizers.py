"""Optimizers of local training: what a step makes of a slope, and the moments that it needs, stacked a row a job."""

# k: jobs at work (one row each), d: parameters

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.base.rows import Rows, Step, shrink, subtract
from fedsim.settings.part import Part, setting

FUSED = ("cpu",)  # devices on which a step is torch's own, in one pass


class Optimizer(Part):
    """Gets the slope of a step: gradient, weight decay, pulls and drifts in one sum. `moments` hold what it knows of earlier steps."""

    slot: ClassVar[str] = "optimizer"
    default: ClassVar[str] = "sgd"
    lr: ClassVar[float] = 0.05  # defaults of `train`
    weight_decay: ClassVar[float] = 0.0
    decoupled: ClassVar[bool] = False  # is weight decay no part of the slope?

    def moments(self, x: Tensor) -> Rows:
        """Of jobs before their first step, whose models are x [k, d]; [k, ...] each, under names of `moments.MOMENTS`."""
        return {}

    def move(self, x: Tensor, slope: Tensor, moments: Mapping[str, Tensor], lr: Step, decay: float = 0.0) -> None:
        """One step of x [k, d], in place, with these rows' moments; lr may be [k, 1]. `decay`: weight decay beside the slope."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sgd(Optimizer):
    """x <- x - lr x slope; with `train.momentum` the slope is the velocity."""

    def move(self, x: Tensor, slope: Tensor, moments: Mapping[str, Tensor], lr: Step, decay: float = 0.0) -> None:
        subtract(x, lr, slope)


@dataclass(frozen=True)
class Adam(Optimizer):
    """x <- x - lr m / (sqrt(v) + eps): m and v are moving means of the slope and its square, each over its weights so far."""

    source: ClassVar[str] = "Kingma and Ba 2015, arXiv 1412.6980"
    lr: ClassVar[float] = 0.001

    beta1: float = setting(0.9, "of m: weight of the past", ge=0, lt=1)
    beta2: float = setting(0.999, "of v: weight of the past", ge=0, lt=1)
    eps: float = setting(1e-8, "added to the root of v", ge=0)

    def moments(self, x: Tensor) -> Rows:
        return {"mean": x.new_zeros(x.shape), "square": x.new_zeros(x.shape), "steps": torch.zeros(len(x), 1, device=x.device)}

    def move(self, x: Tensor, slope: Tensor, moments: Mapping[str, Tensor], lr: Step, decay: float = 0.0) -> None:
        m, v, steps = moments["mean"], moments["square"], moments["steps"].add_(1)
        if x.device.type in FUSED:
            given = {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps, "weight_decay": decay, "amsgrad": False}
            return fused(torch._fused_adamw_ if decay else torch._fused_adam_, lr, given, x, slope, m, v, None, steps)
        shrink(x, 1 - lr * decay)
        m.lerp_(slope, 1 - self.beta1)
        v.mul_(self.beta2).addcmul_(slope, slope, value=1 - self.beta2)
        t = steps.double()  # 1 - 0.999 has few digits
        size, root = lr / (1 - self.beta1**t), (1 - self.beta2**t).sqrt()
        subtract(x, size.to(x.dtype), m / (v.sqrt() / root.to(x.dtype)).add_(self.eps))
        return None


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weight decay shrinks the model by lr x weight_decay before each step, beside the slope; 0.01 by default."""

    name: ClassVar[str] = "adamw"
    source: ClassVar[str] = "Loshchilov and Hutter 2019, arXiv 1711.05101"
    weight_decay: ClassVar[float] = 0.01
    decoupled: ClassVar[bool] = True


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """x <- x - lr slope / (sqrt(sum of squared slopes) + eps)."""

    source: ClassVar[str] = "Duchi, Hazan and Singer 2011"
    lr: ClassVar[float] = 0.01

    eps: float = setting(1e-10, "added to the root of the sum", ge=0)

    def moments(self, x: Tensor) -> Rows:
        return {"square": x.new_zeros(x.shape)}

    def move(self, x: Tensor, slope: Tensor, moments: Mapping[str, Tensor], lr: Step, decay: float = 0.0) -> None:
        v = moments["square"]
        if x.device.type in FUSED:
            given = {"lr_decay": 0.0, "eps": self.eps, "weight_decay": 0.0}
            return fused(torch._fused_adagrad_, lr, given, x, slope, v, torch.ones(len(x), 1))  # which step it is says nothing
        v.addcmul_(slope, slope)
        subtract(x, lr, slope / v.sqrt().add_(self.eps))
        return None


def fused(step: Callable[..., Any], lr: Step, settings: Mapping[str, Any], *rows: Tensor | None) -> None:
    """Torch's own step on a CPU, in one pass, of which each row of x [k, d], slope and moments is a parameter; None: it has none such.

    A row's bits are its own whatever rows stand beside it, because each is a tensor to torch.
    """
    each = [() if one is None else (one.contiguous() if at == 1 else one).unbind() for at, one in enumerate(rows)]
    if isinstance(lr, float):
        step(*each, lr=lr, maximize=False, **settings)
        return
    rates = lr.flatten().tolist()
    for rate in dict.fromkeys(rates):  # torch's step has one rate for all
        mine = [at for at, one in enumerate(rates) if one == rate]
        step(*([part[at] for at in mine] if part else () for part in each), lr=rate, maximize=False, **settings)
