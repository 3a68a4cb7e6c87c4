"""What is measured of a federation at an evaluation."""

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.base.errors import RunError
from fedsim.base.keys import fold, permutation
from fedsim.method.attacks import Attack, Pgd
from fedsim.method.strategy import Strategy
from fedsim.metrics.view import LOSS, RIGHT, TESTS, View
from fedsim.settings.part import Part, setting
from fedsim.settings.values import Every
from fedsim.task.statistics import BATCHES, recomputed
from fedsim.task.task import Task, decoded

# h: hearers, M: test samples, n: nodes, C: classes, k: test samples as some nodes have them


@dataclass(frozen=True, kw_only=True)
class Metric(Part):
    """Numbers by name from a view; a metric without meaning for the task gives none."""

    slot: ClassVar[str] = "metric"
    modules: ClassVar[tuple[str, ...]] = (
        "fedsim.privacy.leakage",
        "fedsim.metrics.objective",
        "fedsim.metrics.barrier",
        "fedsim.metrics.personal",
        "fedsim.metrics.classes",
        "fedsim.metrics.regression",
        "fedsim.metrics.clients",
        "fedsim.metrics.pixels",
        "fedsim.metrics.episodes",
        "fedsim.metrics.packaged",
    )
    abstract: ClassVar[bool] = True
    # Does it need no more of test samples than sums of losses and right answers? Then clients' own models may stand for a shared one, and
    # nodes that alone have test samples may answer.
    sums: ClassVar[bool] = False

    every: Every | None = setting(None, "only at the first evaluation of each such interval, and in the end; by default at each evaluation")

    def check(self, task: Task, strategy: Strategy, key: str) -> None:
        """Raises SettingError, with the metric's key in the scenario, where it can't be measured of the task under the strategy."""

    def measure(self, view: View) -> dict[str, float]:
        raise NotImplementedError


def known(values: Mapping[str, float]) -> dict[str, float]:
    """Without nan, and as floats what no int64 holds."""
    return {name: value if abs(value) < 2**63 else float(value) for name, value in values.items() if not math.isnan(value)}


def worst_tenth(values: Tensor) -> float:
    """Mean of the first tenth, rounded up, of values [k] in order from the worst."""
    return float(values[: -(-len(values) // 10)].mean())


def numbers(metric: Metric, view: View, taken: Container[object]) -> dict[str, float]:
    """What a metric finds; a tensor or array of one number is that number.

    Raises RunError where that is no mapping of names to numbers, or a name is one of those `taken` by what each record has.
    """
    found: Any = metric.measure(view)
    if not isinstance(found, Mapping):
        raise RunError(f"metric `{metric.name}` returns {type(found).__name__}; numbers by name are due, such as {{'my/number': 0.5}}")
    for name, value in found.items():
        if name in taken or not isinstance(name, str):
            why = "each record has that already" if name in taken else "a text is due as a name"
            raise RunError(f"metric `{metric.name}` returns `{name}`: {why}")
        if not isinstance(value, int | float) and math.prod(getattr(value, "shape", (0,))) != 1:
            raise RunError(f"metric `{metric.name}` returns {type(value).__name__} as `{name}`; one number is due")
    return {name: value if isinstance(value, int | float) else value.item() for name, value in found.items()}


@dataclass(frozen=True)
class Accuracy(Metric):
    """Share of test samples that are classified rightly; with peers the mean over their models, the worst, and that of their mean.

    Where a method leaves all models with the clients, the mean over theirs.
    """

    sums: ClassVar[bool] = True

    def measure(self, view: View) -> dict[str, float]:
        if not view.task.classes or view.silent:
            return {}
        if len(view.models) == 1 or TESTS in view.told:
            return {"test/accuracy": view.mean(RIGHT)}
        peers = {"nodes/accuracy_worst": float(view.tests[1].mean(1).min()), "average/accuracy": view.averaged[1]}
        return {"test/accuracy": view.mean(RIGHT)} | peers


@dataclass(frozen=True)
class TestLoss(Metric):
    """Mean loss of the test samples; with peers, the mean over their models."""

    name: ClassVar[str] = "loss"
    __test__: ClassVar[bool] = False
    sums: ClassVar[bool] = True

    def measure(self, view: View) -> dict[str, float]:
        return {} if view.silent else {"test/loss": view.mean(LOSS)}


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
    """Accuracy over clients on test data like their own: the mean, and the mean of the worst tenth; of over 10,000 clients, of as many.

    Without classes the loss; where test samples then belong to no client, a server's one model has none.
    """

    sums: ClassVar[bool] = True

    def measure(self, view: View) -> dict[str, float]:
        name, of = ("accuracy", view.clients) if view.task.classes else ("loss", view.client_losses)
        values = of[~of.isnan()].sort(descending=name == "loss").values
        if not len(values):
            return {}
        return {f"clients/{name}_mean": float(values.mean()), f"clients/{name}_worst_10": worst_tenth(values)}


@dataclass(frozen=True)
class EachClient(Metric):
    """Keeps the accuracy of each client in clients/; without it that is done of the last evaluation only. No numbers of its own."""

    sums: ClassVar[bool] = True

    def measure(self, view: View) -> dict[str, float]:
        view.keeps_clients = bool(view.task.classes)
        return {}


@dataclass(frozen=True)
class Groups(Metric):
    """Mean accuracy of each group's clients on test data like their own; without classes their mean loss."""

    sums: ClassVar[bool] = True

    def measure(self, view: View) -> dict[str, float]:
        name, which = ("accuracy", RIGHT) if view.task.classes else ("loss", LOSS)
        return {f"groups/{group}/{name}": float(view.clients_of(ids, which).nanmean()) for group, ids in view.task.groups.items()}


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
            buffers = renewed(view, model, buffers, self.batches)
        loss, right = (float(values.mean()) for values in view.predict(model, buffers))
        found = {"mergeability/loss": loss}
        return found | (
            {"mergeability/accuracy": right, "mergeability/gap": right - float(view.tests[1].mean())} if view.task.classes else {}
        )


def renewed(view: View, model: Tensor, before: Tensor, batches: int) -> Tensor:
    """Running statistics [b] of a model [d] that nobody has, from so many batches of 128 training samples of all nodes by lot."""
    ends = view.task.counts.cumsum(0)
    place = permutation(fold(0, "statistics"), int(ends[-1]))[: 128 * batches].to(ends.device)
    node = torch.searchsorted(ends, place, right=True)
    return recomputed(view.task, model, before, node, place - (ends - view.task.counts)[node], 128, view.round)
