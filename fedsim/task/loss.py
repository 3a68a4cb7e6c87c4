"""Losses: what training makes small, one number a sample."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedsim.base.errors import SettingError
from fedsim.settings.part import Part, setting

MASK = "mask"


class Loss(Part):
    """One loss per sample from a model's outputs [B, ...] and the targets [B]. `classes` tells whether targets are class numbers.

    A loss of one's own whose call takes a third argument, `mask`, is given in training which classes the node has, bool [C]; nowhere else,
    so it needs a default: `def __call__(self, outputs, targets, mask=None)`.
    """

    slot: ClassVar[str] = "loss"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.task.losses",)
    default: ClassVar[str] = "cross_entropy"
    classes: ClassVar[bool] = True
    labels: ClassVar[bool] = False  # without classes: is each output a yes or no, and each target 1 or 0?
    differentiable: ClassVar[bool] = True  # has it a gradient that says which way is down?
    curvature: ClassVar[float | None] = None  # greatest second derivative along any direction of a sample's outputs, where it has one

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """float32 [B]"""
        raise NotImplementedError

    def outputs(self, classes: int) -> int:
        """How many a model gives for so many classes, 2 or more. Raises SettingError where the loss does not take them."""
        return classes

    def check(self, targets: Tensor) -> None:
        """Raises SettingError where it does not take these targets, as training has them."""

    def penalty_of(self, params: Mapping[str, Tensor]) -> Tensor | None:
        """One number that a model's parameters add to the loss of each sample (of weight 1); None: nothing, at no cost."""
        return None

    @property
    def penalty_curvature(self) -> float:
        """Greatest second derivative of that number along any direction of the parameters."""
        return 0.0

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """bool [B]: is the class with the largest output the right one? Of sequences [B, L] the share of right ones, float32 [B].

        None where there are no classes.
        """
        if not self.classes:
            return None
        right = self.predicted(outputs) == targets
        return right if targets.dim() == 1 else mean_of_places(right, targets)

    def predicted(self, outputs: Tensor) -> Tensor:
        """The class with the largest output, int64 [B], or [B, L] of sequences; of `labels` which are there, bool [B, outputs]."""
        return outputs > 0 if self.labels else outputs.argmax(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """float64 [B, C], or [B, L, C] of sequences: of each class, softmax of the outputs; of `labels` [B, outputs], each by itself."""
        return outputs.double().sigmoid() if self.labels else outputs.double().softmax(-1)


def total(task: Any, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """A task's loss on one batch: outputs [B, ...], weight [B] (0 is padding)."""
    loss: Tensor = (weight * task.loss(outputs, targets)).sum()
    return loss


def takes_mask(loss: Callable[..., Any]) -> bool:
    """Does it want to know which classes a node has?"""
    return MASK in signature(loss).parameters


def mean_of_places(values: Tensor, targets: Tensor) -> Tensor:
    """[B]: mean of values [B, L] over the places that have a target."""
    valid = targets >= 0
    return (values * valid).sum(-1) / valid.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-log softmax(outputs) of the right class, in nats; targets are class numbers, or next tokens [B, L], over which it is averaged."""

    curvature: ClassVar[float] = 1 / 2

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.dim() > 1:
            return mean_of_places(self.each(outputs, targets.clamp(min=0)), targets)
        return self.each(outputs, targets)

    @staticmethod
    def each(outputs: Tensor, targets: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return _CrossEntropy.forward(outputs, targets)
        losses: Tensor = _CrossEntropy.apply(outputs, targets)  # type: ignore[no-untyped-call]
        return losses


class _CrossEntropy(torch.autograd.Function):
    """In plain operations, and with the gradient softmax(outputs) - onehot(targets) said as such: over few classes log_softmax and its
    gradient take 2.6 times as long, and a gradient found by the chain rule has twice the operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(outputs: Tensor, targets: Tensor) -> Tensor:
        shifted = outputs - outputs.amax(-1, keepdim=True)
        return shifted.exp().sum(-1).log() - shifted.gather(-1, targets[..., None])[..., 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        outputs, targets = ctx.saved_tensors
        if outputs.device.type == "cpu":
            exponentials = (outputs - outputs.amax(-1, keepdim=True)).exp()
            shares, right = exponentials / exponentials.sum(-1, keepdim=True), targets[..., None]
            minus = torch.full((1,), -1.0, dtype=shares.dtype, device=shares.device).expand(right.shape)
            less = shares.scatter_add(-1, right, minus)
        else:  # one launch, not five; and two, where sums by index that are the same each time sort first, some twenty
            right = targets[..., None] == torch.arange(outputs.shape[-1], device=outputs.device)
            less = outputs.softmax(-1).add(right, alpha=-1)
        return less * slopes[0][..., None], None


_CrossEntropy.forward.__signature__ = signature(_CrossEntropy.forward)  # type: ignore[attr-defined]  # else torch works it out at each call


@dataclass(frozen=True)
class ErrorRate(Loss):
    """1 where the class with the largest output is wrong, else 0: accuracy itself, for methods that need no gradient."""

    differentiable: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        right = self.correct(outputs, targets)
        assert right is not None
        return 1 - right.to(outputs.dtype)


@dataclass(frozen=True)
class SquaredError(Loss):
    """Squared distance of outputs and targets, summed over a sample's outputs; targets are numbers, [B] or [B, outputs]."""

    classes: ClassVar[bool] = False
    curvature: ClassVar[float] = 2.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        difference = outputs.reshape(targets.shape) - targets
        return (difference * difference).reshape(len(targets), -1).sum(-1)


@dataclass(frozen=True)
class Output(Loss):
    """The model's output itself, one number a sample: a model of one's own may be any objective. Targets are not looked at."""

    classes: ClassVar[bool] = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.reshape(len(outputs), -1)[:, 0]


@dataclass(frozen=True)
class Logistic(Loss):
    """log(1 + exp(-y z)) of the one output z and y = -1 or 1, the first or second of two classes, and a penalty of the parameters x.

    Penalties: strength x sum x_j^2 / (1 + x_j^2), the nonconvex one of papers on compressed gradients, or strength / 2 x sum x_j^2.
    """

    curvature: ClassVar[float] = 1 / 4

    penalty: Literal["none", "l2", "nonconvex"] = setting("none", "what the parameters themselves cost")
    strength: float = setting(0.1, "times the penalty (lambda)", gt=0)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return softplus((1 - 2 * targets).to(outputs.dtype) * outputs[..., 0])

    def outputs(self, classes: int) -> int:
        if classes != 2:
            raise SettingError("task.loss", f"`logistic` tells two classes apart, and there are {classes}; `cross_entropy` takes more")
        return 1

    def penalty_of(self, params: Mapping[str, Tensor]) -> Tensor | None:
        if self.penalty == "none":
            return None
        squares = [x * x for x in params.values()]
        if self.penalty == "nonconvex":
            return self.strength * torch.stack([(one / (1 + one)).sum() for one in squares]).sum()
        return self.strength / 2 * torch.stack([one.sum() for one in squares]).sum()

    @property
    def penalty_curvature(self) -> float:
        return {"none": 0.0, "l2": self.strength, "nonconvex": 2 * self.strength}[self.penalty]

    def predicted(self, outputs: Tensor) -> Tensor:
        return (outputs[..., 0] > 0).to(torch.int64)

    def probabilities(self, outputs: Tensor) -> Tensor:
        second = outputs[..., 0].double().sigmoid()
        return torch.stack([1 - second, second], -1)
