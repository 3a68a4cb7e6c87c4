"""MyTopology: authors, year, title, link, if there are any.

A topology says how much each peer takes of whom in a step. `fedsim list topology` shows those that are there.
"""

# n: nodes

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim import setting
from fedsim.topology import Topology


@dataclass(frozen=True)
class MyTopology(Topology):
    """A ring on which each node hears the `reach` nodes before it and the `reach` after it, all with the same weight."""

    reach: int = setting(2, "how many nodes it hears on each side", ge=1)

    def matrix(self, nodes: int, step: int, key: Tensor) -> Tensor:
        """Weights [n, n]: row i says how much node i takes of whom; rows sum to 1. Symmetric ones keep the mean of all models.

        Where the graph changes, set `changes = True` and use `step`; chance is a function of `key`.
        """
        if nodes <= 2 * self.reach:
            raise ValueError(f"a reach of {self.reach} needs {2 * self.reach + 1} nodes; there are {nodes}")
        first = torch.zeros(nodes, dtype=torch.float64)
        first[torch.arange(-self.reach, self.reach + 1)] = 1 / (2 * self.reach + 1)
        return torch.stack([first.roll(i) for i in range(nodes)])
