"""What nodes say of models where their test samples, or what they remember, lie with them: sums, never data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.base.rows import BUFFERS, Rows, parted
from fedsim.method.contract import memory_of, received_of
from fedsim.method.moments import beside
from fedsim.method.strategy import Strategy
from fedsim.metrics.personal import PERSONAL, TOGETHER, judged, keeps_personal
from fedsim.metrics.view import TESTS, View
from fedsim.task.task import Task

# n: nodes, k: nodes that are asked together, d: parameters, b: running statistics

KINDS = (TESTS, PERSONAL)


@dataclass(frozen=True)
class Question:
    """What is asked of all nodes at an evaluation: `kinds` of sums, of the model [1, d] and its running statistics [1, b] (`shared`).

    `heard` gives what nodes int64 [k] hear, parts [k, ...]; only where the kinds need that.
    """

    kinds: Sequence[str]
    round: int
    shared: tuple[Tensor, Tensor]
    heard: Callable[[Tensor], Rows]


def kinds_of(task: Task, strategy: Strategy) -> list[str]:
    """What has to be asked, where what nodes remember lies with them."""
    known = task.apart or not task.elsewhere  # else nobody has test samples like a node's own
    return [TESTS] * task.apart + [PERSONAL] * (known and keeps_personal(strategy))


def personal_models(strategy: Strategy, task: Task, heard: Rows, memory: Rows, shared: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What nodes would use themselves who heard and remember this [k, ...]: models [k, d] and running statistics [k, b]; what is not
    theirs alone is that of `shared`."""
    mine, own = parted(memory)
    found = strategy.personal(received_of(heard), memory_of(beside(mine)), task)
    models, buffers = shared
    return models if found is None else found, own.get(BUFFERS, buffers)


def sums(task: Task, strategy: Strategy, question: Question, remembered: Callable[[Tensor], Rows], nodes: Tensor) -> dict[str, Tensor]:
    """By kind, float64 [3, k]: of each node [k] how many test samples, and the sums of their losses and of those that are right (nan
    without classes). Of models of their own these are means, and count 1, or 0 where a node has no test sample like its own."""
    models, buffers = question.shared
    view = View(task, models, question.round, buffers=buffers, strategy=strategy)
    found = {TESTS: _of_tests(view, nodes)} if TESTS in question.kinds else {}
    if PERSONAL in question.kinds:

        def own(some: Tensor) -> tuple[Tensor, Tensor]:
            shared = models.expand(len(some), -1), buffers.expand(len(some), -1)
            return personal_models(strategy, task, question.heard(some), remembered(some), shared)

        found[PERSONAL] = torch.cat([_means(*judged(view, own, some)) for some in torch.split(nodes, TOGETHER)], 1)
    return found


def _of_tests(view: View, nodes: Tensor) -> Tensor:
    """float64 [3, k]: of nodes' own test samples, by the model that all hear."""
    owner = view.task.test_owner
    assert owner is not None
    place = torch.full((view.task.nodes,), -1, device=nodes.device).index_copy_(0, nodes, torch.arange(len(nodes), device=nodes.device))
    mine = ((owner >= 0) & (place[owner.clamp(min=0)] >= 0)).nonzero()[:, 0]
    found = torch.zeros(3, len(nodes), dtype=torch.float64, device=nodes.device)
    if not len(mine):
        return found
    mine = mine[place[owner[mine]].argsort(stable=True)]
    part = replace(view.task, test_inputs=view.task.test_inputs[mine], test_targets=view.task.test_targets[mine], test_owner=owner[mine])
    losses, right = View(part, view.models, view.round, view.slab, view.buffers, view.strategy).tests
    return found.index_add_(1, place[owner[mine]], torch.stack([torch.ones_like(losses[0]), losses[0], right[0]]))


def _means(losses: Tensor, right: Tensor) -> Tensor:
    """float64 [3, k] of means [k], nan where there are none."""
    there = ~(losses.isnan() & right.isnan())
    return torch.stack([there.double(), losses.where(there, 0.0), right.where(there, 0.0)])
