"""Gradient leakage: from what a message tells of a gradient back to the image that made it (Zhu, Liu & Han 2019, "Deep Leakage from
Gradients", arXiv 1906.08935), also where only a sketch of the gradient is sent (Song et al. 2023, arXiv 2210.08371).

Who listens knows the model, the method with its settings, the keys that a round shares, and the message of one local step on an image or
a batch of them, of one round or of several; not the images, their labels, or noise. It looks for images whose messages are the same: min
over x, v of |message(x, softmax(v)) - heard|^2, summed over rounds.
"""

# d: parameters, s: numbers of a message, C: classes, B: images of a batch

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, ClassVar, Literal, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.base.errors import SettingError
from fedsim.base.keys import fold, normal, permutation
from fedsim.method.optimizers import Sgd
from fedsim.method.privacy import Privacy
from fedsim.method.strategy import Strategy
from fedsim.metrics.metrics import Metric
from fedsim.metrics.view import View
from fedsim.models.pure import evaluation
from fedsim.privacy.gaussian import Gaussian
from fedsim.privacy.noisy import shrink
from fedsim.settings.part import setting
from fedsim.settings.values import Curve, PerNode
from fedsim.task.loss import CrossEntropy
from fedsim.task.task import Task

MEMORY = 50  # pairs that L-BFGS remembers


@dataclass(frozen=True)
class Tap:
    """The message about one model [d], float64, as who listens knows it; `key` int64 [1] is that of the round, `lr` of its step."""

    task: Task
    model: Tensor
    strategy: Strategy
    key: Tensor
    lr: float = 1.0

    @classmethod
    def of(cls, view: View) -> "Tap":
        """On messages of jobs that begin from the model of a view."""
        task = copy.copy(view.task)
        task.model = copy.deepcopy(task.model).double()
        rates = view.strategy.train.lr
        assert isinstance(rates, Curve), "`check` refuses others"
        lr = float(rates.at(np.array([view.round]))[0])
        return cls(task, view.models[0].double(), view.strategy, view.key, lr)

    def gradient(self, image: Tensor, label: Tensor) -> Tensor:
        """[1, d]: of the mean cross entropy of images [B, ...] whose labels are distributions [B, C]; to be differentiated once more."""
        layout = self.task.layout
        params = {name: view.detach().requires_grad_() for name, view in layout.views(self.model).items()}
        with torch.enable_grad(), evaluation(self.task.model):
            outputs = functional_call(self.task.model, params, (image,))
            loss = -(label * outputs.log_softmax(-1)[:, : label.shape[1]]).sum() / len(image)
            slopes = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        return layout.join({name: slope[None] for name, slope in zip(params, slopes, strict=True)})

    def gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """What a message of images [B, ...] with labels [B, C] is made of: [B, d] where each is clipped, else their mean [1, d]."""
        if not _of_samples(self.strategy.privacy):
            return self.gradient(images, labels)
        return torch.cat([self.gradient(*one) for one in zip(torch.split(images, 1), torch.split(labels, 1), strict=True)])

    def message(self, gradient: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """[1, s] of the mean of gradients [k, d] as it arrives; `noise` is what privacy of samples adds to their sum.

        Slopes flow through linear codecs as they should, and through others as if these delivered what they are given.
        """
        privacy, uplink = self.strategy.privacy, self.strategy.uplink
        if _of_samples(privacy) and not privacy.plain:
            gradient = gradient * shrink({"gradient": gradient}, privacy.clip)[:, None] + noise / len(gradient)
        gradient = gradient.mean(0, keepdim=True)
        told = self.strategy.exposed(gradient, self.key)
        if privacy is not None and privacy.at_server:  # the server, which listens, adds its noise afterwards
            told = privacy.clipped({"update": self.lr * told})["update"]
        if uplink.lossless:
            return told
        parts = {"update": told.float() if uplink.linear else told.detach().float()}
        arrived = uplink.carry(parts, uplink.init(parts), fold(self.key, "uplink"))[0]["update"].to(told)
        return arrived if uplink.linear else told + (arrived - told).detach()

    def labels(self, heard: Tensor, count: int = 1) -> Tensor:
        """int64 [B]: the class whose output has the least slope, by an estimate R'y of the gradient (iDLG: Zhao et al. 2020).

        Each of several images takes 1/B off the slope of its class; what it adds to all by its probabilities is taken to be level (as LLG
        does: Wainakh et al. 2022), which is nearly so at the first model.
        """
        gradient = torch.zeros(1, len(self.model), dtype=heard.dtype, device=heard.device, requires_grad=True)
        with torch.enable_grad():
            told = self.strategy.exposed(gradient, self.key)
        [estimate] = torch.autograd.grad(told, gradient, heard.to(told))
        slopes, found = estimate[:, -self.task.classes :].clone(), []
        for _ in range(count):
            found.append(slopes.argmin(1))
            slopes[0, found[-1]] += 1 / count
        return torch.cat(found)

    def later(self, images: Tensor, labels: Tensor, number: int) -> "Tap":
        """The same so many rounds later, if the message had moved the model alone, unclipped and whole."""
        return replace(self, model=self.model - self.lr * self.gradient(images, labels)[0].detach(), key=fold(self.key, "later", number))


def _of_samples(privacy: Privacy | None) -> TypeGuard[Gaussian]:
    return isinstance(privacy, Gaussian) and privacy.unit == "sample"


def recovered(
    tap: Tap,
    heard: Tensor,
    image: Tensor,
    logits: Tensor,
    steps: int,
    known: bool = False,
    more: Sequence[tuple[Tap, Tensor]] = (),
) -> tuple[Tensor, float]:
    """The images [B, ...] whose message is nearest to the one heard [1, s], and to `more` of them about the same, from a first guess of
    them and of their labels' logits [B, C], by so many steps of L-BFGS with a line search; and the squared distance that is left, as a
    share of the message's, the mean over messages. `known`: the labels are right."""
    image, logits = image.detach().clone().requires_grad_(), logits.detach().clone().requires_grad_(not known)
    guess = [image] if known else [image, logits]
    messages = [(tap, heard), *more]
    scales = [1 / one.square().sum().clamp(min=1e-30) / len(messages) for _, one in messages]
    optimizer = torch.optim.LBFGS(
        guess, max_iter=steps, history_size=MEMORY, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def distance() -> Tensor:
        left = torch.zeros((), dtype=heard.dtype, device=heard.device)
        for (line, one), scale in zip(messages, scales, strict=True):
            found = line.message(line.gradients(image, logits.softmax(-1)))
            left = left + (found - one).square().sum() * scale
        for part, slope in zip(guess, torch.autograd.grad(left, guess), strict=True):
            part.grad = slope
        return left.detach()

    with torch.enable_grad():
        optimizer.step(distance)  # type: ignore[no-untyped-call]
        return image.detach(), float(distance())


def psnr(mse: float, span: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, of images whose numbers have this span."""
    return float(10 * np.log10(span**2 / max(mse, 1e-30)))


def ssim(one: NDArray[np.float64], other: NDArray[np.float64], span: float = 1.0) -> float:
    """Structural similarity of two images [..., height, width], the mean over channels: Wang, Bovik, Sheikh & Simoncelli 2004, with even
    windows of 7 x 7 (smaller ones in smaller images), covariances of samples, K1 = 0.01 and K2 = 0.03."""
    from scipy.ndimage import uniform_filter

    side = min(7, *one.shape[-2:])
    side -= 1 - side % 2
    axes, edge = (one.ndim - 2, one.ndim - 1), side // 2
    height, width = one.shape[-2:]

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = uniform_filter(values, side, axes=axes)
        return means[..., edge : height - edge, edge : width - edge]

    unbiased = side**2 / max(1, side**2 - 1)
    a, b = mean(one), mean(other)
    aa, bb, ab = ((mean(x * y) - u * v) * unbiased for x, y, u, v in ((one, one, a, a), (other, other, b, b), (one, other, a, b)))
    low, high = (0.01 * span) ** 2, (0.03 * span) ** 2
    return float(np.mean((2 * a * b + low) * (2 * ab + high) / ((a * a + b * b + low) * (aa + bb + high))))


@dataclass(frozen=True)
class Leakage(Metric):
    """How well images of node 0 are recovered from messages of one local step on each at the server's model: PSNR in dB, SSIM and MSE.

    Means over images; what is recovered is cut to the span of the data. Of a `batch` those are compared that are most alike, each with
    one. Messages of several `rounds` are about the same images; models between them move by these alone, keys and noise are new. The
    strategy's own sketch, the uplink's codec and privacy are in the messages; a codec with memory counts as fresh. With privacy of
    clients it is the server that listens, which gets them clipped but without noise. Strong on smooth models
    (`leaky_lenet`), weak on ReLU and pooling.
    """

    source: ClassVar[str] = "Zhu, Liu & Han 2019; Song et al. 2023"

    images: int = setting(4, "training images, by lot, always the same", ge=1)
    steps: int = setting(300, "of L-BFGS", ge=1)
    batch: int = setting(1, "images that a message is about, together", ge=1)
    rounds: int = setting(1, "messages about the same images that who listens puts together", ge=1)
    starts: int = setting(1, "random first guesses, of which the one counts whose message comes nearest", ge=1)
    labels: Literal["joint", "analytic"] = setting(
        "joint", "found together with the image, or before, from the slopes of the last bias (iDLG: Zhao et al. 2020)"
    )

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if problem := self._unfit(task, strategy):
            raise SettingError(key, problem)

    def _unfit(self, task: Task, strategy: Strategy) -> str:
        shape, last = tuple(task.inputs.shape[1:]), list(task.layout.shapes.values())[-1]
        if task.elsewhere:
            return "nodes' samples, which it would recover, are not here"
        if task.tokens or len(shape) not in (2, 3):
            return f"`{self.name}` recovers images, not samples of {'tokens' if task.tokens else f'shape {list(shape)}'}"
        if strategy.schedule.peers:
            return f"`{self.name}` listens to messages to a server, and under `{strategy.schedule.name}` there is none"
        if not isinstance(strategy.train.optimizer, Sgd):
            return f"`{self.name}` reads gradients out of messages, and steps of `{strategy.train.optimizer.name}` are not along them"
        if isinstance(strategy.train.lr, PerNode):
            return f"`{self.name}` knows one learning rate, and `train.lr` differs by node"
        if strategy.forward_only:
            return f"`{self.name}` looks for gradients, and `{strategy.name}` sends none"
        if type(task.loss) is not CrossEntropy or not task.labelled:
            return f"`{self.name}` needs the loss `{CrossEntropy.name}`, not `{task.loss.name}`"
        if type(strategy).loss is not Strategy.loss:
            return f"`{self.name}` needs gradients of one sample's cross entropy, and `{strategy.name}` has a loss of its own"
        if getattr(strategy.privacy, "adapt", None):
            return f"`{self.name}` looks at messages that clients clip, and with `privacy.adapt` the server clips them"
        if task.buffers.size or task.keyed:
            return f"`{self.name}` needs a model whose gradient follows from one image alone: without BatchNorm and dropout"
        if self.batch > int(task.counts[0]):
            return f"`{self.name}` attacks batches of {self.batch}, and node 0 has {int(task.counts[0])} samples"
        if self.labels == "analytic" and tuple(last) != (task.classes,):
            return f"`labels: analytic` reads the bias of the last layer, but the model's last parameter has the shape {list(last)}"
        return ""

    def measure(self, view: View) -> dict[str, float]:
        tap = Tap.of(view)
        places = permutation(fold(0, "leakage"), int(view.task.counts[0]))[: self.images].to(view.models.device)
        low, high = view.task.span
        found = []
        for number, some in enumerate(torch.split(places, self.batch)):
            view.say(f"leakage: image {number * self.batch + 1} of {len(places)}")
            images, labels = (torch.cat(parts) for parts in zip(*(_sample(view, place) for place in some), strict=True))
            guesses = _matched(images, self._attack(tap, images, labels, number).clamp(low, high))
            found += [_compared(*both, low, high) for both in zip(torch.split(images, 1), torch.split(guesses, 1), strict=True)]
        arrays = {name: np.array([one[name] for one in found]) for name in found[0]}
        view.arrays["leakage"] = arrays | {"round": np.array(view.round)}
        return {f"leakage/{name}": float(arrays[name].mean()) for name in ("psnr", "ssim", "mse")}

    def _heard(self, tap: Tap, images: Tensor, labels: Tensor, key: Tensor) -> Tensor:
        """float64 [1, s]: the message about images [B, ...] with labels [B, C], noise and all."""
        privacy, noise = tap.strategy.privacy, torch.zeros(())
        if _of_samples(privacy) and privacy.noise:
            noise = privacy.noise * privacy.clip * normal(fold(key, "noise"), len(tap.model)).double()
        return tap.message(tap.gradients(images, labels), noise).detach().float().double()

    def _attack(self, tap: Tap, image: Tensor, label: Tensor, number: int) -> Tensor:
        """[B, ...]: what is made of the messages about images [B, ...] and their labels, distributions [B, C]."""
        key = fold(tap.key, "leakage", number)
        heard, more, later = self._heard(tap, image, label, key), list[tuple[Tap, Tensor]](), tap
        for round in range(1, self.rounds):
            later = later.later(image, label, round)
            more.append((later, self._heard(later, image, label, fold(key, "round", round))))
        known = self.labels == "analytic"
        ends = []
        for start in range(self.starts):
            guess = normal(fold(key, "image", start), image.numel()).view_as(image).double()
            logits = normal(fold(key, "label", start), label.numel()).view_as(label).double()
            if known:
                logits = 1e3 * _one_hot(tap.labels(heard, len(image)), tap.task)
            ends.append(recovered(tap, heard, guess, logits, self.steps, known, more))
        return min(ends, key=lambda end: (isnan(end[1]), end[1]))[0]


def _matched(originals: Tensor, found: Tensor) -> Tensor:
    """What was found of images, [B, ...] each, in the order of the originals: so that squared distances are least together."""
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(originals.flatten(1), found.flatten(1)).square()
    return found[torch.from_numpy(linear_sum_assignment(distances.cpu().numpy())[1]).to(found.device)]


def _compared(image: Tensor, found: Tensor, low: float, high: float) -> dict[str, Any]:
    """An image [1, ...] of numbers from low to high, what was found, cut to that span, and how alike they are."""
    original, other = (one[0].cpu().numpy().astype(np.float64) for one in (image, found.clamp(low, high)))
    mse, span = float(np.square(original - other).mean()), high - low
    return {"original": original, "found": other, "mse": mse, "psnr": psnr(mse, span), "ssim": ssim(original, other, span)}


def _sample(view: View, place: Tensor) -> tuple[Tensor, Tensor]:
    """The image [1, ...] at this place of node 0 as the node has it, and its label as a distribution [1, C]; float64."""
    task, node = view.task, torch.zeros(1, dtype=torch.int64, device=place.device)
    seen = task.seen(node, place.view(1, 1), view.round)
    return seen.inputs[0].double(), _one_hot(seen.targets[0], task)


def _one_hot(labels: Tensor, task: Task) -> Tensor:
    """float64 [B, C]"""
    return nn.functional.one_hot(labels, task.classes).double()
