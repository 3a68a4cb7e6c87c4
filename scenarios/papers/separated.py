"""Two Gaussian classes a given distance apart; the test set is the training set, so that losses on it are training losses."""

import torch
from torch import Tensor

from fedsim.keys import fold, normal


def gaussians(gap: float, samples: int = 400, features: int = 10, sigma: float = 0.2) -> dict[str, Tensor]:
    """Means -gap/2 and gap/2 on the first axis, deviation sigma on each; x [samples, features]."""
    y = torch.arange(samples) % 2
    x = sigma * normal(fold(0, "separated", torch.arange(samples)), features)
    x[:, 0] += gap * (y - 0.5)
    return {"x": x, "y": y, "x_test": x, "y_test": y}
