"""Clipping of local gradients: to a length, or by what earlier ones were like."""

# k: jobs at work (one row each), d: parameters, T: tensors of a model

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.base.rows import Layout, Rows, norm
from fedsim.method.optimizers import Adam, Optimizer
from fedsim.settings.part import Part, setting


class Clip(Part):
    """Gets the gradient of a step as the method has it: before weight decay and pulls. What it knows of earlier steps lies with the
    optimizer's moments, and is remembered by nodes where those are (`state: keep`)."""

    slot: ClassVar[str] = "clip"
    default: ClassVar[str] = "norm"
    bare: ClassVar[tuple[str, str]] = ("norm", "length")
    learns: ClassVar[bool] = False  # has it moments of its own?

    def check(self, optimizer: Optimizer, keeps: bool) -> None:
        """Raises SettingError where it can't work with an optimizer, or with moments that nodes don't keep."""

    def moments(self, x: Tensor, layout: Layout) -> Rows:
        """Of jobs before their first step, whose models are x [k, d]; [k, ...] each, under names of `moments.MOMENTS`."""
        return {}

    def begins(self, steps: float) -> str:
        """A warning `key: ...` where what it is for begins later than so many steps, all that are counted together."""
        return ""

    def cut(self, slope: Tensor, moments: Mapping[str, Tensor], layout: Layout) -> Tensor:
        """[k, d]: the gradient [k, d] clipped. These rows' moments are written in place."""
        raise NotImplementedError

    def share(self, moments: Mapping[str, Tensor]) -> Tensor | None:
        """[k, 1]: how much of the optimizer's step is taken; None: all of it. Asked after `cut`, before the step."""
        return None


@dataclass(frozen=True)
class Norm(Clip):
    """A gradient that is longer is shortened to this length; written as a bare number."""

    brief: ClassVar[str] = "length"

    length: float = setting(help="greatest length of a gradient", gt=0)

    def cut(self, slope: Tensor, moments: Mapping[str, Tensor], layout: Layout) -> Tensor:
        return slope * (self.length / norm(slope).clamp(min=1e-30)).clamp(max=1)


@dataclass(frozen=True)
class AdaGc(Clip):
    """A tensor's gradient g is shortened to `ratio` times its norm so far: gamma <- decay x gamma + (1 - decay) x |g as clipped|.

    In the first `warmup` steps the whole gradient is shortened to `length` instead, and gamma is the least norm of the tensor's part of it.
    A tensor without a gradient has no norm yet: zeros leave gamma as it is, else it would never move again. Steps are counted in a job, or
    over a node's jobs where it keeps its moments. Of the paper the rule and the constants, from a description of it; not its code.
    """

    name: ClassVar[str] = "adagc"
    source: ClassVar[str] = "Wang et al. 2025 (AdaGC), arXiv 2502.11034"
    learns: ClassVar[bool] = True

    ratio: float = setting(1.05, "greatest norm of a tensor's gradient, in gammas (lambda_rel)", gt=0)
    decay: float = setting(0.98, "of gamma: weight of the past (beta)", ge=0, lt=1)
    warmup: int = setting(100, "steps with one clip for all tensors", ge=0, le=10**9)
    length: float = setting(1.0, "greatest norm of the whole gradient in these (lambda_abs)", gt=0)

    def begins(self, steps: float) -> str:
        if steps > self.warmup:
            return ""
        return f"warmup: {self.warmup} steps, of which {steps:.3g} come together: tensors are never clipped by their own norms"

    def moments(self, x: Tensor, layout: Layout) -> Rows:
        return {"norms": x.new_zeros(len(x), len(layout.names)), "normed": torch.zeros(len(x), 1, device=x.device)}

    def cut(self, slope: Tensor, moments: Mapping[str, Tensor], layout: Layout) -> Tensor:
        gamma, steps, parts = moments["norms"], moments["normed"], list(layout.slices.values())
        norms = torch.cat([norm(slope[:, part]) for part in parts], 1)  # [k, T]
        early, known, few = steps < self.warmup, gamma > 0, 1e-30
        whole = (self.length / norm(norms).clamp(min=few)).clamp(max=1)
        own = torch.where(known, (self.ratio * gamma / norms.clamp(min=few)).clamp(max=1), 1.0)
        factor = torch.where(early, whole, own)
        after = factor * norms
        new = torch.where(early, torch.minimum(gamma, after), self.decay * gamma + (1 - self.decay) * after)
        gamma.copy_(torch.where(after > 0, torch.where(known, new, after), gamma))
        steps.add_(1)
        return torch.cat([factor[:, at, None] * slope[:, part] for at, part in enumerate(parts)], 1)


@dataclass(frozen=True)
class Spam(Clip):
    """A number g of the gradient with g^2 > threshold x v becomes sign(g) sqrt(threshold x v), v being Adam's second moment so far.

    Adam begins anew every so many steps of a node, with moments of 0, and then for `warmup` steps takes a share of each step that rises
    from 1 % to all of it along a cosine; also when the node first works. It needs `optimizer: adam` (or adamw) and `state: keep`. A v of 0
    clips nothing. Of the paper the rule and its constants; `wait` is from a copy of the authors' code, which waits about as long.
    """

    source: ClassVar[str] = "Huang et al. 2025 (SPAM), arXiv 2501.06842"

    threshold: float = setting(5000.0, "greatest g^2, in v (theta)", gt=0)
    every: int = setting(500, "steps after which Adam's moments are 0 again", ge=1, le=10**9)
    warmup: int = setting(150, "steps after that whose length rises", ge=0, le=10**9)
    wait: int = setting(20, "steps after that in which nothing is clipped: v is young", ge=0, le=10**9)

    def check(self, optimizer: Optimizer, keeps: bool) -> None:
        if not isinstance(optimizer, Adam):
            raise SettingError("clip", f"`{self.name}` clips by Adam's moments: `optimizer: adam` is due, not `{optimizer.name}`")
        if not keeps:
            raise SettingError("clip", f"`{self.name}` counts a node's steps over its jobs: `state: keep` is due")

    def begins(self, steps: float) -> str:
        if steps > self.warmup:
            return ""
        return f"warmup: {self.warmup} steps, and a client takes about {steps:.3g} in this run: none of them is a whole one"

    def cut(self, slope: Tensor, moments: Mapping[str, Tensor], layout: Layout) -> Tensor:
        square, steps = moments["square"], moments["steps"]
        again = steps >= self.every
        for one in (moments["mean"], square, steps):
            one.masked_fill_(again, 0)
        most = (self.threshold * square).sqrt()
        spike = (slope.abs() > most) & (square > 0) & (steps >= self.wait)
        return torch.where(spike, slope.sign() * most, slope)

    def share(self, moments: Mapping[str, Tensor]) -> Tensor | None:
        if not self.warmup:
            return None
        way = moments["steps"].double().clamp(max=self.warmup) / self.warmup
        return 1 - 0.99 * (1 + (pi * way).cos()) / 2
