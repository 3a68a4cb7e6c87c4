"""How smooth a task's objective is, exact for linear models: what theoretical steps are made of."""

# n: nodes, k: some of them, m: samples of a node, p: numbers that each output of the model weighs

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.data.shift import Drift
from fedsim.task.task import Task

TOGETHER = 1 << 24  # numbers that are in memory at once


@dataclass(frozen=True)
class Smoothness:
    """Lipschitz constants of gradients: `each` float64 [n] of the nodes' objectives f_i (L_i), `whole` of their uniform mean f (L).

    Where features are rare: `rare` is the largest, over features, of 1/n times the sum of L_i of the nodes that have it, at most L_AM;
    `features` is how many a node has at most (r). A penalty of the parameters makes every node have all.
    """

    each: Tensor
    whole: float
    rare: float
    features: int

    @property
    def mean(self) -> float:
        """L_AM."""
        return float(self.each.mean())

    @property
    def quadratic_mean(self) -> float:
        """L_QM."""
        return float(self.each.square().mean().sqrt())

    @property
    def cloned(self) -> float:
        """L_QM if each node were ceil(L_i / L_AM) clones of its share of f, fewer than 2n together: at most sqrt 2 L_AM."""
        clones = (self.each / self.mean).ceil().clamp(min=1)
        return float((clones.sum() * (self.each.square() / clones).sum()).sqrt() / len(self.each))

    @property
    def variance(self) -> float:
        """L_var = L_QM^2 - L_AM^2."""
        return float(self.each.var(correction=0))

    def numbers(self) -> dict[str, float]:
        """By the names that a run's metrics have."""
        means = {"mean": self.mean, "quadratic_mean": self.quadratic_mean, "variance": self.variance, "rare": self.rare}
        return {f"smoothness/{name}": value for name, value in ({"whole": self.whole} | means).items()}


def smoothness(task: Task) -> Smoothness:
    """Of a task, which never changes: worked out once, and kept with it. Raises ValueError where the constants aren't known."""
    kept = vars(task)
    if "_smoothness" not in kept:
        kept["_smoothness"] = _smoothness(task)
    found: Smoothness = kept["_smoothness"]
    return found


def _smoothness(task: Task) -> Smoothness:
    """Of one linear layer on the flat sample: L_i = c largest eigenvalue of A_i' A_i / m_i + what the penalty adds.

    A_i has the samples of node i as rows, with a 1 for a bias, and c is the loss's greatest second derivative: 1/4 of logistic and 2 of
    squared error, where L_i is exact; 1/2 of cross entropy, an upper bound (Böhning 1992). Raises ValueError for other models and
    losses, and where samples change.
    """
    curvature = task.loss.curvature
    if curvature is None or not _linear(task.model):
        raise _unknown("the model `logistic` with the loss `logistic`, `squared_error` or `cross_entropy`")
    if task.tokens or any(isinstance(one.shift, Drift) for one in task.shifts + task.poison):
        raise _unknown("samples that are numbers and stay as they are, without drift")
    bias, side = "bias" in task.layout.names[-1], task.inputs[0].numel()
    each, has = torch.empty(task.nodes, dtype=torch.float64), torch.empty(task.nodes, side + bias, dtype=torch.bool)
    total = torch.zeros(side + bias, side + bias, dtype=torch.float64)
    for at in torch.split(torch.arange(task.nodes), max(1, TOGETHER // (task.most * (side + bias)))):
        rows = _rows(task, at.to(task.starts.device), bias)
        gram = rows.transpose(1, 2) @ rows
        total += gram.sum(0) / task.nodes
        has[at] = (rows != 0).any(1)
        each[at] = torch.linalg.eigvalsh(gram if gram.shape[1] <= rows.shape[1] else rows @ rows.transpose(1, 2))[:, -1]
    more = task.loss.penalty_curvature
    each = curvature * each + more
    has |= more > 0
    rare = float((each @ has.double()).max()) / task.nodes
    return Smoothness(each, curvature * float(torch.linalg.eigvalsh(total)[-1]) + more, rare, int(has.sum(1).max()))


def _rows(task: Task, nodes: Tensor, bias: bool) -> Tensor:
    """float64 [k, most samples of a node, p]: A_i / sqrt(m_i), and rows of zeros where a node has fewer."""
    counts = task.counts[nodes][:, None]
    place = torch.arange(int(counts.max()), device=counts.device)
    rows = task.seen(nodes, torch.minimum(place, counts - 1), 0).inputs.double().flatten(2)
    if bias:
        rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
    return (rows * ((place < counts) / counts.double().sqrt())[..., None]).cpu()


def _linear(model: nn.Module) -> bool:
    layers = [part for part in model.modules() if not any(True for _ in part.children())]
    return sum(isinstance(part, nn.Linear) for part in layers) == 1 and all(isinstance(part, nn.Linear | nn.Flatten) for part in layers)


def _unknown(need: str) -> ValueError:
    return ValueError(f"smoothness constants are known for {need}")
