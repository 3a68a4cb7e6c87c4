"""EGGROLL on whole numbers: Sarkar, Fellows, Duque et al. 2025, "Evolution Strategies at the Hyperscale", https://arxiv.org/abs/2511.16652,
and its code nano-egg: int8 weights that move by one where the sum of comparisons is further from 0 than chance explains."""

# a x b: a matrix, Q: pairs merged

from dataclasses import dataclass, field
from functools import lru_cache
from math import floor, isqrt
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim import Inbox, Rows, setting
from fedsim.base.errors import SettingError
from fedsim.base.keys import bits, fold
from fedsim.base.rows import Layout
from fedsim.codecs import Codec
from fedsim.codecs.scalar import SignBit
from fedsim.method.evolution import Evolution
from fedsim.method.inbox import State
from fedsim.method.population import Noise
from fedsim.models.integer import ONE, IntegerLinear, saturated
from fedsim.settings.values import Constant, Curve
from fedsim.task.task import Task


@lru_cache
def _table() -> Tensor:
    """float32 [2^16]: round(16 z) at equally likely z of the standard normal distribution."""
    normal = NormalDist()
    return torch.tensor([float(round(ONE * normal.inv_cdf((place + 0.5) / (1 << 16)))) for place in range(1 << 16)])


class IntegerNoise(Noise):
    """A and B are round(16 z), looked up by a key's bits: no arithmetic whose last bit a device decides."""

    def factors(self, name: str, key: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.layout.shapes[name]
        rows = _table().to(key.device)[bits(fold(key, name), a + b) & 0xFFFF][..., None]
        return rows[:, b:], rows[:, :b]


@dataclass(frozen=True)
class EggrollInt8(Evolution):
    """Whole-number weights move by one where the comparisons of pairs of members sum up to more than chance explains.

    Members are W + s 2^-shift A B'/16; F is 1, 0 or -1, which of a pair is better, and Z = sum over pairs of F A B'. An entry moves by
    the sign of its Z where 16 |Z| >= floor(16 z) floor(sqrt(Q)) 256; a standard normal number is beyond z or -z with chance alpha.
    Weights stay from -127 to 127 and sums are exact, so replicas are equal on unlike devices and in any order of summation. With the
    loss `error_rate` fitness is a count too. Noise has rank 1; the model is `integer_mlp`.
    """

    name: ClassVar[str] = "eggroll_int8"
    source: ClassVar[str] = "Sarkar et al. 2025 (code nano-egg)"

    uplink: Codec = field(default_factory=SignBit)
    shift: int = setting(4, "the noise's size is 2^-shift (sigma_shift)", ge=0, le=16)
    alpha: Curve = setting(Constant(0.5), "share of entries that would move if no member were better (alpha), by round if it changes")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.trained(self.population, self.batch, Constant(1.0))
        if not 0 < (first := self._share(0)) <= 1:
            raise SettingError("strategy.alpha", f"{first:g} is no share above 0")

    def start(self, x: Tensor, task: Task) -> State:
        whole = {f"{path}.weight" for path, layer in task.model.named_modules() if isinstance(layer, IntegerLinear)}
        if other := [name for name in task.layout.names if name not in whole]:
            raise SettingError(
                "task.model", f"has `{other[0]}`, which is no integer layer's; `{self.name}` needs a model such as `integer_mlp`"
            )
        return super().start(x, task)

    @property
    def size(self) -> float:
        return 0.5**self.shift

    def noise(self, layout: Layout) -> Noise:
        return IntegerNoise(layout, 1)

    def loss(self, task: Task, outputs: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return super().loss(task, outputs, targets, (weight > 0).to(weight.dtype))  # a sum, not a mean: of errors it is a whole number

    def said(self, fitness: Tensor) -> Rows:
        return {"better": (fitness[..., 0] - fitness[..., 1]).sign()}

    def _share(self, round: int) -> float:
        return float(self.alpha.at(np.array([round]))[0])

    def merge(self, state: Rows, inbox: Inbox) -> Rows:
        x, better = state["model"], inbox["better"].flatten().double()
        z = self.noise(inbox.layout).sum(self.keys(inbox.shared, inbox.sender).flatten(), better)
        share = self._share(inbox.round)
        if share <= 0:
            return state
        least = floor(ONE * NormalDist().inv_cdf(1 - min(share, 1) / 2)) * isqrt(len(better)) * ONE**2
        return state | {"model": saturated(x + (z.sign() * (ONE * z.abs() >= least)).to(x.dtype))}
