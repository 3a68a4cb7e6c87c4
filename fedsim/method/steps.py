"""What a local step is made of: its batch, at which point gradients are taken, and how models move; functions of tensors alone."""

# m: rows at work, d: parameters, B: samples a batch

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fedsim.base.keys import fold
from fedsim.base.rows import BUFFERS, Layout, Step, shrink, subtract
from fedsim.gradients.plan import Plan
from fedsim.gradients.samples import Samples
from fedsim.method.clipping import Clip
from fedsim.method.optimizers import Optimizer
from fedsim.method.train import Train
from fedsim.task.loss import MASK

Given = Mapping[str, Tensor]  # what a step reads beside its batch, a row a job, or one row for all


@dataclass(frozen=True)
class Batch:
    """Samples for the rows still at work: inputs [m, B, ...], targets [m, B, ...], weight [m, B] (0 is padding).

    `buffers` [m, b] are the models' running statistics, which gradients renew, and `mask` bool [m, C] the nodes' classes, or None.
    """

    plan: Plan
    inputs: Tensor
    targets: Tensor
    weight: Tensor
    job: Tensor  # keys of the jobs
    number: int | Tensor  # of the step
    buffers: Tensor | None = None
    mask: Tensor | None = None
    samples: Tensor | None = None  # int64 [m, B]: their numbers in the task; None where steps are recorded, or samples are nobody's

    def _samples(self, keep: bool) -> Samples:
        extra = {"key": self.key} if self.plan.task.keyed else {}
        if self.buffers is not None:
            extra[BUFFERS] = self.buffers if keep else self.buffers.clone()
        extra |= {} if self.mask is None else {MASK: self.mask}
        return Samples(self.inputs, self.targets, self.weight, extra)

    @property
    def key(self) -> Tensor:
        """int64 [m]: a key for each row of this step."""
        return fold(self.job, "step", self.number)

    def gradient(self, x: Tensor, keep: bool = True) -> Tensor:
        """Gradient of the strategy's loss at x [m, d], a row a job; [m, d]. Without `keep` running statistics stay as they are.

        Asked twice, a model with dropout leaves out the same units.
        """
        return self.plan.gradient(x, self._samples(keep))

    def descend(self, x: Tensor, lr: Step, keep: Step = 1.0, at: Tensor | None = None) -> None:
        """x <- keep x x - lr x gradient, in place; lr and keep may be [m, 1]. Up to rounding as with `gradient`, without a copy of it.

        The gradient is that at `at` [m, d] if it is given, and then leaves running statistics as they are.
        """
        self.plan.descend(x, lr, self._samples(keep=at is None), keep, at)

    def loss(self, x: Tensor) -> Tensor:
        """The strategy's loss at x [m, d], forward only; [m]."""
        return self.plan.loss(x, self._samples(keep=True))

    def outputs(self, x: Tensor) -> Tensor:
        """What models x [m, d] make of the samples, in evaluation mode, forward only; [m, B, ...]."""
        return self.plan.outputs(x, self._samples(keep=True))

    def input_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[m, B]: loss of each sample at x [m, d], 0 for padding; [m, B, ...]: the gradient of its own loss with respect to the sample.

        Of the task's loss in evaluation mode: without dropout, BatchNorm by its running statistics, which stay as they are.
        """
        return self.plan.input_gradient(x, self._samples(keep=True))

    def twice(self) -> "Batch":
        """The same batch for two models of each row, [2 m, d]: those of all rows, and then those of all rows again."""
        rows = ((field.name, getattr(self, field.name)) for field in fields(self))
        return self.with_(**{name: torch.cat([one, one]) for name, one in rows if isinstance(one, Tensor) and one.dim()})

    def with_(self, **changes: Tensor) -> "Batch":
        """The same batch with other inputs, targets or weights."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ascent:
    """Gradients at a point a little uphill, where a flat valley is still flat (SAM: Foret et al. 2021, arXiv 2010.01412).

    e = radius x g1 / |g1| (or radius x g1 where not `normalised`), g2 = gradient at y + e, and (1 - mix) x g1 + mix x g2 is used. The
    same samples and dropout in both; running statistics come from the first alone. radius 0 is the gradient itself.
    """

    radius: float
    normalised: bool = True
    mix: float = 1.0

    def gradient(self, batch: Batch, y: Tensor) -> Tensor:
        """[m, d] at y [m, d]."""
        first = batch.gradient(y)
        if not self:
            return first
        second = batch.gradient(self._uphill(y, first, torch.empty_like(first)), keep=False)
        return second if self.mix == 1 else torch.lerp(first, second, self.mix)

    def descend(self, batch: Batch, y: Tensor, lr: Step, keep: Step) -> None:
        """y <- keep x y - lr x that, in place."""
        first = batch.gradient(y)
        at = self._uphill(y, first, first if self.mix == 1 else torch.empty_like(first))
        if self.mix < 1:
            shrink(y, keep)
            subtract(y, lr * (1 - self.mix), first)
        batch.descend(y, lr * self.mix, keep if self.mix == 1 else 1.0, at)

    def __bool__(self) -> bool:
        """Is anything else than the gradient itself used?"""
        return self.radius > 0 and self.mix > 0

    def _uphill(self, y: Tensor, first: Tensor, out: Tensor) -> Tensor:
        if not self.normalised:
            return torch.add(y, first, alpha=self.radius, out=out)
        length = torch.linalg.vector_norm(first, dim=-1, keepdim=True)
        return torch.addcmul(y, first, self.radius / length.clamp(min=1e-12), out=out)


@dataclass(frozen=True)
class Slide:
    """y <- keep x y - lr x gradient + along x `same`, in place. What is None is given instead, one a job [m, 1]."""

    ascent: Ascent | None
    lr: float | None
    keep: float | None
    along: float | None

    def __call__(self, batch: Batch, y: Tensor, given: Given) -> None:
        rate, kept = given["lr"] if self.lr is None else self.lr, given["keep"] if self.keep is None else self.keep
        if self.ascent:
            self.ascent.descend(batch, y, rate, kept)
        else:
            batch.descend(y, rate, kept)
        if "same" in given:
            y.add_(given["same"], alpha=self.along) if self.along is not None else y.addcmul_(given["same"], given["along"])


@dataclass(frozen=True)
class Careful:
    """The optimizer's step with scale x gradient + `drift`, clipped as a whole, then with weight decay, pull to the `anchor` and momentum.

    In place, also the optimizer's moments. What is None is given instead, one a job [m, 1] (`scale` [m, d]).
    """

    ascent: Ascent | None
    scale: float | None
    lr: float | None
    pull: float | None
    clip: Clip | None
    weight_decay: float
    momentum: float
    optimizer: Optimizer
    layout: Layout  # of the models; empty where nothing is clipped

    @classmethod
    def of(
        cls, train: Train, layout: Layout, lr: Step, pull: Step = 0.0, scale: float | Tensor = 1.0, ascent: Ascent | None = None
    ) -> "Careful":
        """As `train` has it."""
        own = Layout({}) if train.clip is None else layout
        scaled, rate, pulled = (None if isinstance(one, Tensor) else one for one in (scale, lr, pull))
        return cls(ascent, scaled, rate, pulled, train.clip, train.weight_decay, train.momentum, train.optimizer, own)

    def __call__(self, batch: Batch, y: Tensor, given: Given) -> None:
        slope = self.ascent.gradient(batch, y) if self.ascent else batch.gradient(y)
        if self.scale != 1:
            slope = (given["scale"] if self.scale is None else self.scale) * slope
        self.step(y, slope + given["drift"] if "drift" in given else slope, given)

    def step(self, y: Tensor, gradient: Tensor, given: Given) -> None:
        """The same along a gradient [m, d] that is known."""
        if self.clip is not None:
            gradient = self.clip.cut(gradient, given, self.layout)
        decay = self.weight_decay if self.optimizer.decoupled else 0.0
        if self.weight_decay and not decay:
            gradient = gradient + self.weight_decay * y
        if "anchor" in given and self.pull != 0:
            gradient = gradient + (given["pull"] if self.pull is None else self.pull) * (y - given["anchor"])
        if self.momentum:
            gradient = given["velocity"].mul_(self.momentum).add_(gradient)
        share = None if self.clip is None else self.clip.share(given)
        before = y if share is None else y.clone()
        self.optimizer.move(y, gradient, given, given["lr"] if self.lr is None else self.lr, decay)
        if share is not None:
            y.sub_((1 - share).to(y.dtype) * (y - before))


Move = Slide | Careful
