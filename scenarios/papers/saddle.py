"""An objective as a model of one's own: the loss of a sample is F(x, y) + sample . (x, y), so that samples are the noise of gradients."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsim import Metric, View


def agents(count: int = 4, apart: float = 1.0, noise: float = 0.5) -> dict[str, np.ndarray]:
    """Agents that pull along x, each its own way, in sum nowhere; the four samples of each differ by noise, whose mean is 0."""
    corners = noise * np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    pull = apart * np.stack([np.linspace(-1, 1, count), np.zeros(count)], 1)
    x = (pull[:, None] + corners).reshape(-1, 2)
    return {"x": x, "y": np.zeros(len(x)), "agent": np.repeat(np.arange(count), 4), "x_test": np.zeros((1, 2)), "y_test": np.zeros(1)}


class Landscape(nn.Module):
    """F = (x^2 - y^2) / 2 + y^4 / 4 + tilt y, less its least value: a saddle between two wells, of which a tilt makes one deeper."""

    def __init__(self, start: tuple[float, ...] = (1.0, 0.0), tilt: float = 0.0) -> None:
        super().__init__()
        self.tilt, wells = tilt, np.roots([1, 0, -1, tilt]).real
        self.least = float((-(wells**2) / 2 + wells**4 / 4 + tilt * wells).min())
        self.at = nn.Parameter(torch.tensor(start))

    def forward(self, samples: Tensor) -> Tensor:
        x, y = self.at
        return (x**2 - y**2) / 2 + y**4 / 4 + self.tilt * y - self.least + samples @ self.at


@dataclass(frozen=True)
class Wells(Metric):
    """Where the agents are along y: the mean of all, and the share of those in the deeper well, y < 0."""

    def measure(self, view: View) -> dict[str, float]:
        y = view.models[:, 1]
        return {"wells/y": float(y.mean()), "wells/height": float(y.abs().mean()), "wells/deep": float((y < 0).double().mean())}
