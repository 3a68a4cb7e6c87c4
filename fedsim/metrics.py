"""What is measured of a federation at an evaluation."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedsim.attacks import Attack, Pgd
from fedsim.buffers import BATCHES, recomputed
from fedsim.data.shift import Gathered, shifted
from fedsim.keys import below, fold, permutation
from fedsim.models.pure import evaluation
from fedsim.part import Part, setting
from fedsim.strategy import Strategy
from fedsim.task import SOME, Task, decoded
from fedsim.values import Every

# h: hearers, M: test samples, n: nodes, C: classes, k: test samples as some nodes have them

PROBES = 100  # test samples on which a client is judged whose own data are shifted


class View:
    """The models [h, d] at one evaluation (a server's one, or one a peer), with what several metrics need computed once.

    `buffers` [h, b] are the models' running statistics, by default the first ones; `round` is what shifts that change go by. `strategy`
    with its codecs and privacy is what messages about these models go through, `key` (int64 [1]) the one that their jobs share. What
    takes long says where it is (`say`). `arrays` are what metrics leave for the run's folder, by file and name.
    """

    def __init__(
        self,
        task: Task,
        models: Tensor,
        round: int = 0,
        slab: int = 4096,
        buffers: Tensor | None = None,
        strategy: Strategy | None = None,
        key: Tensor | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.task, self.models, self.round, self.slab, self.say = task, models, round, slab, say
        self.buffers = task.first_buffers.expand(len(models), -1) if buffers is None else buffers
        self.strategy = Strategy() if strategy is None else strategy
        self.key = torch.zeros(1, dtype=torch.int64, device=models.device) if key is None else key
        self.arrays: dict[str, dict[str, NDArray[np.float64]]] = {}

    @torch.no_grad()
    def predict(self, model: Tensor, buffers: Tensor) -> tuple[Tensor, Tensor]:
        """Of one model [d] with its statistics [b] on the test samples: loss and right or wrong (nan without classes), float64 [M]."""
        losses, right = [], []
        slab = -(-self.slab // self.task.places)
        for inputs, targets in zip(torch.split(self.task.test_inputs, slab), torch.split(self.task.test_targets, slab), strict=True):
            outputs = self.outputs(model, buffers, inputs)
            losses.append(self.task.loss(outputs, targets).double())
            correct = self.task.loss.correct(outputs, targets)
            right.append(torch.full_like(losses[-1], torch.nan) if correct is None else correct.double())
        return torch.cat(losses), torch.cat(right)

    def outputs(self, model: Tensor, buffers: Tensor, inputs: Tensor) -> Tensor:
        """What one model [d] with its statistics [b] makes of samples, in evaluation mode."""
        task = self.task
        with evaluation(task.model):
            found: Tensor = functional_call(task.model, task.layout.views(model) | task.buffers.views(buffers), (decoded(inputs),))
        return found

    @cached_property
    def tests(self) -> tuple[Tensor, Tensor]:
        """Loss and right or wrong of each hearer's model, [h, M] each."""
        losses, right = zip(*(self.predict(*one) for one in zip(self.models, self.buffers, strict=True)), strict=True)
        return torch.stack(losses), torch.stack(right)

    @cached_property
    def averaged(self) -> tuple[float, float]:
        """Mean loss and accuracy (nan without classes) of the mean of the hearers' models."""
        loss, right = self.predict(self.models.mean(0), self.buffers.mean(0))
        return float(loss.mean()), float(right.mean())

    @cached_property
    def clients(self) -> Tensor:
        """[n]: accuracy that each client gets from the model it hears, on test data like its own.

        Where test samples belong to clients, on those; otherwise the model's test accuracy of each class, weighted by the client's share
        of it: what held-out samples with the client's label mix would give on average, and [k] of `some` clients where they are very
        many. nan for clients without such samples, and where samples have no one class.
        Test samples are seen as the client's own shifts make them in this round: its own, or PROBES drawn by its label mix.
        """
        right, task = self.tests[1], self.task
        if task.test_owner is not None:
            own = (task.test_owner >= 0).nonzero()[:, 0]
            who = task.test_owner[own]
            hits = self._seen_by(own, who) if task.shifts else right[who if len(right) > 1 else who * 0, own]
            total = torch.zeros(task.nodes, dtype=torch.float64, device=who.device).index_add_(0, who, hits)
            return total / who.bincount(minlength=task.nodes)
        return self._by_labels(range(task.nodes))

    def clients_of(self, ids: range) -> Tensor:
        """The same of the clients with these ids, or of `some` of them."""
        by_labels = self.task.test_owner is None and self.task.nodes > SOME
        return self._by_labels(ids) if by_labels else self.clients[ids.start : ids.stop]

    def _by_labels(self, ids: range) -> Tensor:
        right, task = self.tests[1], self.task
        if not task.labelled:
            return right.new_full((len(task.some(ids)),), torch.nan)
        hits = right.new_zeros(len(right), task.classes).index_add_(1, task.test_targets, right)
        seen = task.test_targets.bincount(minlength=task.classes)
        mix = task.label_counts(ids).double() * (seen > 0)
        accuracy = hits / seen.clamp(min=1)
        nodes = task.some(ids)
        found = (mix * (accuracy if len(right) == 1 else accuracy[nodes])).sum(1) / mix.sum(1)
        for at in torch.split(self._shifted(nodes, mix), 4096) if task.shifts else ():
            found[at] = self._probed(nodes[at], mix[at], seen)
        return found

    def _shifted(self, nodes: Tensor, mix: Tensor) -> Tensor:
        """int64: which of the nodes (mix [n, C]) have samples, and shifted ones."""
        where = torch.zeros_like(mix[:, 0], dtype=torch.bool)
        for one in self.task.shifts:
            where |= one.nodes[nodes]
        return (where & (mix.sum(1) > 0)).nonzero()[:, 0]

    def _probed(self, nodes: Tensor, mix: Tensor, seen: Tensor) -> Tensor:
        """float64 [nodes]: accuracy on PROBES test samples each, whose labels are spread as mix [nodes, C], drawn by key."""
        task, probe = self.task, torch.arange(PROBES, device=mix.device)
        ends = mix.cumsum(1) / mix.sum(1, keepdim=True)
        middle = ((probe.double() + 0.5) / PROBES).expand(len(nodes), -1).contiguous()
        label = torch.searchsorted(ends, middle, right=True).clamp(max=mix.shape[1] - 1)
        by_class, first = task.test_targets.argsort(stable=True), seen.cumsum(0) - seen
        lot = below(fold(task.shifts[0].key, "probe", nodes[:, None], probe), 1, seen[label])[..., 0]
        return self._seen_by(by_class[first[label] + lot].flatten(), nodes.repeat_interleave(PROBES)).view(-1, PROBES).mean(1)

    @torch.no_grad()
    def _seen_by(self, tests: Tensor, nodes: Tensor) -> Tensor:
        """float64 [k]: right or wrong of test samples as their nodes have them, each by the model that its node hears."""
        task, right = self.task, torch.empty(len(tests), dtype=torch.float64, device=tests.device)
        for hearer, (model, buffers) in enumerate(zip(self.models, self.buffers, strict=True)):
            mine = (nodes == hearer if len(self.models) > 1 else nodes >= 0).nonzero()[:, 0]
            for at in torch.split(mine, self.slab) if len(mine) else ():
                inputs, targets = decoded(task.test_inputs[tests[at]])[:, None], task.test_targets[tests[at]][:, None]
                # After those of training, so that no test sample has the number of a training sample
                number, rounds = len(task.inputs) + tests[at][:, None], torch.full_like(at, self.round)
                seen = shifted(task.shifts, Gathered(inputs, targets, number, nodes[at], rounds))
                correct = task.loss.correct(self.outputs(model, buffers, seen.inputs[:, 0]), seen.targets[:, 0])
                right[at] = torch.nan if correct is None else correct.double()
        return right


@dataclass(frozen=True, kw_only=True)
class Metric(Part):
    """Numbers by name from a view; a metric without meaning for the task gives none."""

    slot: ClassVar[str] = "metric"
    modules: ClassVar[tuple[str, ...]] = ("fedsim.leakage", "fedsim.objective")
    abstract: ClassVar[bool] = True

    every: Every | None = setting(None, "only at the first evaluation of each such interval, and in the end; by default at each evaluation")

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        """Raises SettingError, with the metric's key in the scenario, where it can't be measured of the task under the strategy."""

    def measure(self, view: View) -> dict[str, float]:
        raise NotImplementedError


def known(values: Mapping[str, float]) -> dict[str, float]:
    """Without nan."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Accuracy(Metric):
    """Share of test samples that are classified rightly; with peers the mean over their models, the worst, and that of their mean."""

    def measure(self, view: View) -> dict[str, float]:
        if not view.task.classes:
            return {}
        peers = {"nodes/accuracy_worst": float(view.tests[1].mean(1).min()), "average/accuracy": view.averaged[1]}
        return {"test/accuracy": float(view.tests[1].mean())} | (peers if len(view.models) > 1 else {})


@dataclass(frozen=True)
class TestLoss(Metric):
    """Mean loss of the test samples; with peers, the mean over their models."""

    name: ClassVar[str] = "loss"
    __test__: ClassVar[bool] = False

    def measure(self, view: View) -> dict[str, float]:
        return {"test/loss": float(view.tests[0].mean())}


@dataclass(frozen=True)
class Robust(Metric):
    """Accuracy and loss on test samples attacked at the model, with random starts that are always the same; with peers, their mean."""

    attack: Attack = setting(Pgd(steps=20), "what moves the samples")
    samples: int = setting(500, "test samples by lot, always the same; each costs the attack's gradients at every evaluation", ge=1)
    label: str = setting("", "ends the names, where several attacks are measured: `fgsm` gives test/robust_accuracy_fgsm")

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        self.attack.check(task, f"{key}.attack")

    def measure(self, view: View) -> dict[str, float]:
        chosen = permutation(fold(0, "robust"), len(view.task.test_targets))[: self.samples].to(view.models.device)
        measured = [
            self._attacked(view, model, buffers, at)
            for model, buffers in zip(view.models, view.buffers, strict=True)
            for at in torch.split(chosen, 100)
        ]
        losses, right = (torch.cat(found).double() for found in zip(*measured, strict=True))
        end = f"_{self.label}" if self.label else ""
        return {f"test/robust_loss{end}": float(losses.mean())} | (
            {f"test/robust_accuracy{end}": float(right.mean())} if view.task.classes else {}
        )

    def _attacked(self, view: View, model: Tensor, buffers: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and right or wrong (the loss again without classes) of one model on its attacks on these test samples, [k] each."""
        targets, key = view.task.test_targets[at], fold(0, "robust", at)[None]

        def slopes(inputs: Tensor) -> tuple[Tensor, Tensor]:
            given = inputs[0].detach().requires_grad_()
            with torch.enable_grad():
                losses = view.task.loss(view.outputs(model, buffers, given), targets)
                return losses.detach()[None], torch.autograd.grad(losses.sum(), given)[0][None]

        with torch.no_grad():
            found = self.attack.of(view.task, decoded(view.task.test_inputs[at])[None], slopes, key)[0]
            outputs = view.outputs(model, buffers, found)
            losses, right = view.task.loss(outputs, targets), view.task.loss.correct(outputs, targets)
        return losses, losses if right is None else right


@dataclass(frozen=True)
class Clients(Metric):
    """Accuracy over clients on test data like their own: the mean, and the mean of the worst tenth; of over 10,000 clients, of as many."""

    def measure(self, view: View) -> dict[str, float]:
        if not view.task.classes:
            return {}
        values = view.clients[~view.clients.isnan()].sort().values
        worst = values[: -(-len(values) // 10)]
        return {"clients/accuracy_mean": float(values.mean()), "clients/accuracy_worst_10": float(worst.mean())}


@dataclass(frozen=True)
class Groups(Metric):
    """Mean accuracy of each group's clients on test data like their own."""

    def measure(self, view: View) -> dict[str, float]:
        if not view.task.classes:
            return {}
        return {f"groups/{name}/accuracy": float(view.clients_of(ids).nanmean()) for name, ids in view.task.groups.items()}


@dataclass(frozen=True)
class Nodes(Metric):
    """Test accuracy over peers' models: mean and worst."""

    def measure(self, view: View) -> dict[str, float]:
        if not view.task.classes:
            return {}
        accuracy = view.tests[1].mean(1)
        return {"nodes/accuracy_mean": float(accuracy.mean()), "nodes/accuracy_worst": float(accuracy.min())}


@dataclass(frozen=True)
class Consensus(Metric):
    """Mean squared distance of peers' models to their mean; 0 with a server."""

    def measure(self, view: View) -> dict[str, float]:
        return {"nodes/consensus": float((view.models - view.models.mean(0)).double().square().sum(1).mean())}


@dataclass(frozen=True)
class Average(Metric):
    """Test accuracy and loss of the mean of peers' models, which no peer has."""

    def measure(self, view: View) -> dict[str, float]:
        loss, right = view.averaged
        return {"average/loss": loss} | ({"average/accuracy": right} if view.task.classes else {})


@dataclass(frozen=True)
class Mergeability(Metric):
    """Test accuracy and loss if all nodes' models were merged into their mean now, and by how much that beats the mean of the nodes.

    Nobody is touched and nothing is sent: it is what a merge would give. Running statistics of normalisation layers are the merged
    model's own, from training samples of all nodes by lot.
    """

    source: ClassVar[str] = "Zhu et al. 2026"

    batches: int = setting(BATCHES, "of 128 training samples, that running statistics are taken from", ge=1)

    def measure(self, view: View) -> dict[str, float]:
        model, buffers = view.models.mean(0), view.buffers.mean(0)
        if len(buffers):
            buffers = self._statistics(view, model, buffers)
        loss, right = (float(values.mean()) for values in view.predict(model, buffers))
        found = {"mergeability/loss": loss}
        return found | (
            {"mergeability/accuracy": right, "mergeability/gap": right - float(view.tests[1].mean())} if view.task.classes else {}
        )

    def _statistics(self, view: View, model: Tensor, before: Tensor) -> Tensor:
        ends = view.task.counts.cumsum(0)
        place = permutation(fold(0, "statistics"), int(ends[-1]))[: 128 * self.batches].to(ends.device)
        node = torch.searchsorted(ends, place, right=True)
        return recomputed(view.task, model, before, node, place - (ends - view.task.counts)[node], 128, view.round)
