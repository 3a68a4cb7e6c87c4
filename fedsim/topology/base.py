"""Who talks to whom among peers."""

from functools import lru_cache
from typing import Any, ClassVar

from torch import Tensor

from fedsim.settings.part import Part
from fedsim.topology.mixing import Keep, Mixing


class Topology(Part):
    """A graph over the nodes with weights; where it `changes`, another one in each step."""

    slot: ClassVar[str] = "topology"
    default: ClassVar[str] = "ring"
    modules: ClassVar[tuple[str, ...]] = (
        "fedsim.topology.graphs",
        "fedsim.topology.random",
        "fedsim.topology.changing",
        "fedsim.topology.given",
    )
    changes: ClassVar[bool] = False
    at_end: ClassVar[bool] = False  # one last step is due when the run ends
    renews: ClassVar[bool] = False  # after it, running statistics are those of the models of then

    def matrix(self, nodes: int, step: int, key: Tensor) -> Any:
        """Weights [nodes, nodes] as a float64 tensor, array or scipy sparse matrix: row i says how much node i takes of whom.

        `key` is the run's for graphs. Raises ValueError where there is no such graph of so many nodes.
        """
        raise NotImplementedError

    def mixing(self, nodes: int, step: int, key: Tensor) -> Mixing:
        """The same, ready to use; computed once where it does not change."""
        return _mixing(self, nodes, step if self.changes else 0, int(key))

    def last(self, nodes: int, step: int, key: Tensor) -> Mixing:
        """Of the step when the run ends, where one is due."""
        return self.mixing(nodes, step, key)

    def check(self, nodes: int, key: Tensor) -> None:
        """Raises ValueError where it does not suit so many nodes."""
        mixing = self.mixing(nodes, 0, key)
        if mixing.size != nodes:
            raise ValueError(f"a matrix for {mixing.size} nodes; there are {nodes}")
        if not (mixing.averages or mixing.keeps_sums):
            raise ValueError("neither the rows nor the columns of its weights sum to 1")

    def suits(self, nodes: int, key: Tensor, stochastic: Keep, symmetric: bool) -> None:
        """Raises ValueError where weights that were given are not such as a method needs; those by formula are told of by the schedule."""


@lru_cache(maxsize=256)
def _mixing(topology: Topology, nodes: int, step: int, key: int) -> Mixing:
    import torch

    return Mixing(topology.matrix(nodes, step, torch.tensor(key)))
