"""What nodes say of models where their test samples, or what they remember, lie with them: sums, never data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.base.keys import fold
from fedsim.base.rows import BUFFERS, Rows, parted
from fedsim.engines.local import Worker
from fedsim.method.contract import memory_of, received_of
from fedsim.method.local import Local
from fedsim.method.moments import beside
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.metrics.personal import PERSONAL, TOGETHER, TUNED, Finetuned, Models, judged, keeps_personal
from fedsim.metrics.view import TESTS, View
from fedsim.task.task import Task

# n: nodes, k: nodes that are asked together, d: parameters, b: running statistics

KINDS = (TESTS, PERSONAL, TUNED)


@dataclass(frozen=True)
class Question:
    """What is asked of all nodes at an evaluation: `kinds` of sums, of the model [1, d] and its running statistics [1, b] (`shared`).

    `heard` gives what nodes int64 [k] hear, parts [k, ...]; only where the kinds need that. `finetuned` says how nodes train first.
    """

    kinds: Sequence[str]
    round: int
    shared: tuple[Tensor, Tensor]
    heard: Callable[[Tensor], Rows]
    finetuned: Finetuned | None = None


def kinds_of(task: Task, strategy: Strategy) -> list[str]:
    """What has to be asked, where what nodes remember lies with them."""
    return [TESTS] * task.apart + [PERSONAL] * (tested(task) and keeps_personal(strategy))


def tested(task: Task) -> bool:
    """Has anybody test samples like a node's own?"""
    return task.apart or not task.elsewhere


def personal_models(strategy: Strategy, task: Task, heard: Rows, memory: Rows, shared: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What nodes would use themselves who heard and remember this [k, ...]: models [k, d] and running statistics [k, b]; what is not
    theirs alone is that of `shared`."""
    mine, own = parted(memory)
    found = strategy.personal(received_of(heard), memory_of(beside(mine)), task)
    models, buffers = shared
    return models if found is None else found, own.get(BUFFERS, buffers)


def tuned_models(worker: Worker, round: int, given: Models, train: Train, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The models that nodes [k] are given, after training of their own in a round, [k, d], and their running statistics [k, b]."""
    task = worker.task
    order = train.plan(task.counts[nodes], train.batch_size(task), nodes)[0].argsort(descending=True, stable=True)
    models, buffers = (rows[order].clone() for rows in given(nodes))
    key, rounds = fold(fold(worker.seed, "tuned"), nodes[order]), np.full(len(nodes), round)
    local = Local(worker.plan, task, train, nodes[order], key, rounds, buffers if task.buffers.size else None)
    back = order.argsort()
    return local.descend(models)[back], buffers[back]


def sums(worker: Worker, question: Question, remembered: Callable[[Tensor], Rows], nodes: Tensor) -> dict[str, Tensor]:
    """By kind, float64 [3, k]: of each node [k] how many test samples, and the sums of their losses and of those that are right (nan
    without classes). Of models of their own these are means, and count 1, or 0 where a node has no test sample like its own."""
    task, strategy, (models, buffers) = worker.task, worker.strategy, question.shared
    view = View(task, models, question.round, buffers=buffers, strategy=strategy)

    def own(some: Tensor) -> tuple[Tensor, Tensor]:
        shared = models.expand(len(some), -1), buffers.expand(len(some), -1)
        if not keeps_personal(strategy):
            return shared
        return personal_models(strategy, task, question.heard(some), remembered(some), shared)

    def of(models: Models) -> Tensor:
        return torch.cat([_means(*judged(view, models, some)) for some in torch.split(nodes, TOGETHER)], 1)

    found = {TESTS: _of_tests(view, nodes)} if TESTS in question.kinds else {}
    if PERSONAL in question.kinds:
        found[PERSONAL] = of(own)
    if question.finetuned and TUNED in question.kinds:
        found[TUNED] = of(partial(tuned_models, worker, question.round, own, question.finetuned.of(strategy.train)))
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


def of_peers(task: Task, models: Tensor, buffers: Tensor, nodes: Sequence[int]) -> Tensor:
    """float64 [3, n]: of these peers' own test samples, each peer's by its own model of [n, d] and running statistics of [n, b] alone, so
    that it is the same in bits wherever that is measured; 0 of all others."""
    found, owner = torch.zeros(3, task.nodes, dtype=torch.float64, device=models.device), task.test_owner
    assert owner is not None
    for node in nodes:
        if len(mine := (owner == node).nonzero()[:, 0]):
            part = replace(task, test_inputs=task.test_inputs[mine], test_targets=task.test_targets[mine], test_owner=None)
            losses, right = View(part, models).predict(models[node], buffers[node])
            found[:, node] = torch.stack([torch.ones_like(losses), losses, right]).sum(1)
    return found


def _means(losses: Tensor, right: Tensor) -> Tensor:
    """float64 [3, k] of means [k], nan where there are none."""
    there = ~(losses.isnan() & right.isnan())
    return torch.stack([there.double(), losses.where(there, 0.0), right.where(there, 0.0)])
