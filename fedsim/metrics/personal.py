"""Clients' own models: what methods that keep some are judged by, and what a little training of one's own would bring."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.base.errors import SettingError
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.metrics.metrics import Metric, worst_tenth
from fedsim.metrics.view import RIGHT, View
from fedsim.settings.part import setting
from fedsim.settings.values import Constant, Curve, Every
from fedsim.task.outputs import outputs
from fedsim.task.task import Task, decoded, picked

# n: clients that are judged, k: those judged together, T: test samples of each, C: classes

Models = Callable[[Tensor], tuple[Tensor, Tensor]]  # of nodes [k]: their own models [k, d] and running statistics [k, b]
PERSONAL = "personal"  # what nodes say of the models that they keep
TUNED = "finetuned"  # and of those that they would have after some more training
TOGETHER = 100  # models
ROOM = 1 << 24  # numbers of outputs and activations, about


def keeps_personal(strategy: Strategy) -> bool:
    """Has a client a model of its own under this method?"""
    return type(strategy).personal is not Strategy.personal


@dataclass(frozen=True)
class Personal(Metric):
    """Accuracy over clients, each by its own model, on test data like its own: mean, worst tenth, spread, and gain over the shared model.

    Test data are as for `clients`; of over 10,000 clients, of as many. Without classes the mean loss. Measured beside the scenario's
    metrics wherever a method keeps personal models; on real machines workers say what their nodes have. `personal/gain` is the mean of a
    client's own accuracy less that of the shared model, where there is one.
    """

    sums: ClassVar[bool] = True

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if not keeps_personal(strategy):
            raise SettingError(
                key, f"`{strategy.name}` keeps no model of a client's own; ditto, fedper, fedrep, pfedme, apfl, fedbn, ifca, fedmd do"
            )

    def measure(self, view: View) -> dict[str, float]:
        if view.personal is None and PERSONAL not in view.told:
            return {}
        return summary(view, view.personal or view.told[PERSONAL], PERSONAL)


@dataclass(frozen=True)
class Finetuned(Metric):
    """What clients would have after some more training on their own samples, from the model that they keep or hear; nobody keeps it.

    Measured as `personal` is, by default at the first evaluation and in the end; on real machines workers train, and say what came of
    it. What is not set is as in `train`.
    """

    sums: ClassVar[bool] = True

    every: Every | None = setting(Every(rounds=10**9), "only at the first evaluation of each such interval, and in the end")
    epochs: float = setting(1.0, "passes over the client's samples", gt=0, le=1e6)
    lr: float | None = setting(None, "learning rate; by default that of `train` in the first round", gt=0)
    batch: int | Literal["all"] | None = setting(None, "samples a step; by default that of `train`", ge=1)

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        if task.architectures:
            raise SettingError(key, "trains all clients' models as one stack, and groups have models of their own (`task.models`)")
        whole = any(not getattr(layer, "differentiable", True) for layer in task.model.modules())
        if whole or not task.loss.differentiable:
            raise SettingError(key, f"trains along a gradient, and {'the model' if whole else f'`{task.loss.name}`'} has none")

    def measure(self, view: View) -> dict[str, float]:
        view.say("fine-tuning clients' models")
        if view.ask:
            return summary(view, view.ask(self), TUNED)
        return summary(view, partial(view.tuned, self.of(view.strategy.train)), TUNED) if view.tuned else {}

    def of(self, train: Train) -> Train:
        """How clients train here, where jobs do as `train` says."""
        rate = train.lr if self.lr is None else Constant(self.lr)
        rate = Constant(float(rate.at(np.zeros(1, dtype=np.int64))[0])) if isinstance(rate, Curve) else rate
        return replace(train, epochs=self.epochs, steps=None, lr=rate, batch=train.batch if self.batch is None else self.batch)


def summary(view: View, models: Models | Tensor, name: str) -> dict[str, float]:
    """Numbers about clients that are judged by models of their own, under names that begin with `name`; where these lie with nodes, by
    what all of them say, float64 [3, n] as in `view.told`."""
    task, nodes = view.task, view.task.some()
    if isinstance(models, Tensor):
        count, *sums = models[:, nodes]
        losses, right = (one / count for one in sums)
    else:
        found = [judged(view, models, some) for some in torch.split(nodes, TOGETHER)]
        losses, right = (torch.cat(parts) for parts in zip(*found, strict=True))
    if not task.classes:
        return {f"{name}/loss": float(losses.nanmean())}
    there = ~right.isnan()
    if not bool(there.any()):
        return {}
    values = right[there].sort().values
    numbers = {f"{name}/accuracy": float(values.mean()), f"{name}/accuracy_worst_10": worst_tenth(values)}
    numbers[f"{name}/accuracy_std"] = float(values.std(correction=0))
    if view.strategy.shared and not task.architectures:
        shared = view.clients if len(view.clients) == len(nodes) else view.clients[nodes]
        numbers[f"{name}/gain"] = float((right - shared).nanmean())
    for group, ids in task.groups.items():
        mine = (nodes >= ids.start) & (nodes < ids.stop)
        numbers[f"{name}/groups/{group}/accuracy"] = float(right[mine].nanmean())
    return {key: value for key, value in numbers.items() if not math.isnan(value)}


class OfClients(View):
    """Where a method leaves all models with the clients, theirs answer: of a test sample the mean over clients (of very many, `some`)."""

    @cached_property
    def tests(self) -> tuple[Tensor, Tensor]:
        nodes = self.task.some()
        total = [torch.zeros(len(self.task.test_targets), dtype=torch.float64, device=nodes.device) for _ in range(2)]
        for some in torch.split(nodes, TOGETHER):
            for task, rows, buffers, _ in _by_architecture(self, self._own, some):
                total = [one + found.sum(0) for one, found in zip(total, _on_all(task, rows, buffers), strict=True)]
        return total[0][None] / len(nodes), total[1][None] / len(nodes)

    def by_labels(self, nodes: Tensor, which: int = RIGHT) -> Tensor:
        return torch.cat([judged(self, self._own, some)[which] for some in torch.split(nodes, TOGETHER)])

    def _over(self, which: int) -> Tensor:
        task = self.task
        return self.by_labels(task.some() if task.test_owner is None else torch.arange(task.nodes, device=task.starts.device), which)

    def _own(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        assert self.personal is not None
        return self.personal(nodes)


def _by_architecture(view: View, models: Models, nodes: Tensor) -> Iterator[tuple[Task, Tensor, Tensor, Tensor]]:
    """For each architecture that nodes [k] have: its task, their models [i, d] and running statistics [i, b], and their places [i]."""
    kinds = torch.from_numpy(view.task.home[nodes.cpu().numpy()]).to(nodes.device)
    for kind, task in enumerate(view.task.stacks):
        if len(mine := (kinds == kind).nonzero()[:, 0]):
            rows, buffers = models(nodes[mine])
            yield task, rows[:, : task.layout.size], buffers, mine


@torch.no_grad()
def judged(view: View, models: Models, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Of nodes [k]: loss and accuracy of each by its own model, float64 [k]; nan for one without test data like its own."""
    found = torch.empty(2, len(nodes), dtype=torch.float64, device=nodes.device)
    for task, rows, buffers, mine in _by_architecture(view, models, nodes):
        found[:, mine] = torch.stack(_judged(view, task, rows, buffers, nodes[mine]))
    return found[0], found[1]


def _judged(view: View, task: Task, rows: Tensor, buffers: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The same where all have models [k, d] of the task's one architecture."""
    if task.test_owner is not None and not task.shifts:
        return _on_own(task, rows, buffers, nodes)
    alone = View(task, rows, view.round, view.slab, buffers, view.strategy, view.key, view.say, nodes=nodes)
    alone.tests = losses, right = _on_all(task, rows, buffers)
    if not task.classes:
        return losses.mean(1), right.mean(1)
    return losses.mean(1), alone.by_labels(nodes) if task.test_owner is None else alone.clients[nodes]


def _on_all(task: Task, rows: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and right or wrong of each model on all test samples, float64 [k, M] each."""
    found, step = list[tuple[Tensor, Tensor]](), _samples(task, len(rows))
    for inputs, targets in zip(torch.split(task.test_inputs, step), torch.split(task.test_targets, step), strict=True):
        made = outputs(task, rows, buffers, decoded(inputs), shared=True)
        found.append(_scored(task, made, targets.expand(len(rows), *targets.shape)))
    losses, right = zip(*found, strict=True)
    return torch.cat(losses, 1), torch.cat(right, 1)


def _on_own(task: Task, rows: Tensor, buffers: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of each model on its client's own test samples, float64 [k]; nan where it has none."""
    owner = task.test_owner
    assert owner is not None
    place = torch.full((task.nodes,), -1, device=rows.device).index_copy_(0, nodes, torch.arange(len(nodes), device=rows.device))
    mine = ((owner >= 0) & (place[owner.clamp(min=0)] >= 0)).nonzero()[:, 0]
    who = place[owner[mine]]
    order = who.argsort(stable=True)
    mine, who = mine[order], who[order]
    count = who.bincount(minlength=len(nodes))
    sums = [torch.zeros(len(nodes), dtype=torch.float64, device=rows.device) for _ in range(2)]
    nth = torch.arange(len(mine), device=rows.device) - (count.cumsum(0) - count)[who]  # of its client
    step = _samples(task, len(rows))
    for first in range(0, int(count.max()) if len(count) else 0, step):
        part = (nth >= first) & (nth < first + step)
        width = min(step, int(count.max()) - first)
        table = torch.zeros(len(nodes), width, dtype=torch.int64, device=rows.device)
        weight = torch.zeros(len(nodes), width, dtype=torch.float64, device=rows.device)
        table[who[part], nth[part] - first], weight[who[part], nth[part] - first] = mine[part], 1.0
        made = outputs(task, rows, buffers, picked(task.test_inputs, table), shared=False)
        for total, one in zip(sums, _scored(task, made, task.test_targets[table]), strict=True):
            total += one.where(weight > 0, 0.0).sum(1)
    return sums[0] / count, sums[1] / count


def _scored(task: Task, made: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and right or wrong (nan without classes), float64 [k, T] each."""
    shape = targets.shape[:2]
    flat, wanted = made.flatten(0, 1), targets.flatten(0, 1)
    losses, correct = task.loss(flat, wanted).double().view(shape), task.loss.correct(flat, wanted)
    return losses, torch.full_like(losses, torch.nan) if correct is None else correct.double().view(shape)


def _samples(task: Task, models: int) -> int:
    """Test samples of each model at a time."""
    return max(1, min(4096, ROOM // max(1, models * 8 * (task.inputs[0].numel() + task.places * max(1, task.classes)))))
