"""Gamma and Dirichlet numbers from keys."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.base.keys import fold, normal, uniform


def log_gamma(key: Tensor, alpha: float, count: int) -> NDArray[np.float64]:
    """float64 [count]: logarithms of Gamma(alpha, 1) numbers (Marsaglia & Tsang 2000); alpha > 0, also where the number underflows."""
    keys = fold(key, torch.arange(count))
    third = alpha + 1 - 1 / 3  # for alpha + 1, from which U^(1/alpha) leads to alpha
    out, waiting, attempt = torch.empty(count, dtype=torch.float64), torch.arange(count), 0
    while len(waiting):
        drawn = fold(keys[waiting], attempt)
        x, u = normal(drawn, 1)[:, 0].double(), _open(fold(drawn, "accept"))
        cube = (1 + x / (9 * third) ** 0.5).clamp(min=0) ** 3
        good = (cube > 0) & (u.log() < 0.5 * x * x + third * (1 - cube + cube.log()))
        out[waiting[good]] = (third * cube[good]).log()
        waiting, attempt = waiting[~good], attempt + 1
    logs: NDArray[np.float64] = (out + _open(fold(keys, "power")).log() / alpha).numpy()
    return logs


def _open(keys: Tensor) -> Tensor:
    """float64, as keys: uniform in (0, 1), never an end."""
    return uniform(keys, 1)[..., 0].double() + 2.0**-25


def dirichlet(key: Tensor, alpha: float, count: int) -> NDArray[np.float64]:
    """float64 [count]: shares that add up to 1, from Dirichlet(alpha, ..., alpha)."""
    logs = log_gamma(key, alpha, count)
    shares: NDArray[np.float64] = np.exp(logs - logs.max())
    shares /= shares.sum()
    return shares
