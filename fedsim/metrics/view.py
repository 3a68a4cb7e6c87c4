"""What an evaluation looks at, computed once for all metrics."""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from fedsim.base.keys import below, fold
from fedsim.data.shift import Gathered, shifted
from fedsim.method.strategy import Strategy
from fedsim.method.train import Train
from fedsim.models.pure import evaluation
from fedsim.task.task import SOME, Task, decoded

PROBES = 100  # test samples on which a client is judged whose own data are shifted


class View:
    """The models [h, d] at one evaluation (a server's one, or one a peer), with what several metrics need computed once.

    `buffers` [h, b] are the models' running statistics, by default the first ones; `round` is what shifts that change go by. `strategy`
    with its codecs and privacy is what messages about these models go through, `key` (int64 [1]) the one that their jobs share. What
    takes long says where it is (`say`). `nodes` [h]: whose models these are, where some peers are lost. `personal` gives the models
    [k, d] that nodes [k] keep for themselves, and their running statistics [k, b]; None: none, or they lie elsewhere. `tuned` gives
    those models, or the one that nodes hear, after training of their own, which nobody keeps. `arrays` are what metrics
    leave for the run's folder, by file and name.
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
        nodes: Tensor | None = None,
        personal: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        tuned: Callable[[Train, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.task, self.models, self.round, self.slab, self.say = task, models, round, slab, say
        self.personal, self.tuned = personal, tuned
        self.buffers = task.first_buffers.expand(len(models), -1) if buffers is None else buffers
        self.strategy = Strategy() if strategy is None else strategy
        self.key = torch.zeros(1, dtype=torch.int64, device=models.device) if key is None else key
        self.place: Tensor | None = None  # of each node's model, -1: none
        if nodes is not None:
            self.place = torch.full((task.nodes,), -1, device=models.device).index_copy_(
                0, nodes, torch.arange(len(nodes), device=nodes.device)
            )
        self.keeps_clients = False  # also where a later evaluation follows
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

    def _of(self, nodes: Tensor) -> Tensor:
        """The places of these nodes' models, -1: none."""
        return nodes if self.place is None else self.place[nodes]

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
            own = own[self._of(task.test_owner[own]) >= 0]
            who = task.test_owner[own]
            hits = self._seen_by(own, who) if task.shifts else right[self._of(who) if len(right) > 1 else who * 0, own]
            total = torch.zeros(task.nodes, dtype=torch.float64, device=who.device).index_add_(0, who, hits)
            return total / who.bincount(minlength=task.nodes)
        return self._by_labels(range(task.nodes))

    @property
    def each_client(self) -> tuple[Tensor, Tensor] | None:
        """Nodes and their `clients`, [k] each, without nan; None where no metric has asked for these, or there are none."""
        if not self.keeps_clients and "clients" not in vars(self):
            return None
        accuracy = self.clients.cpu()
        nodes = torch.arange(self.task.nodes) if len(accuracy) == self.task.nodes else self.task.some().cpu()
        known = ~accuracy.isnan()
        return (nodes[known], accuracy[known]) if known.any() else None

    def clients_of(self, ids: range) -> Tensor:
        """The same of the clients with these ids, or of `some` of them."""
        by_labels = self.task.test_owner is None and self.task.nodes > SOME
        return self._by_labels(ids) if by_labels else self.clients[ids.start : ids.stop]

    def _by_labels(self, ids: range) -> Tensor:
        right, task = self.tests[1], self.task
        if not task.labelled or task.elsewhere:
            return right.new_full((len(task.some(ids)),), torch.nan)
        hits = right.new_zeros(len(right), task.classes).index_add_(1, task.test_targets, right)
        seen = task.test_targets.bincount(minlength=task.classes)
        mix = task.label_counts(ids).double() * (seen > 0)
        accuracy = hits / seen.clamp(min=1)
        nodes = task.some(ids)
        found = (mix * (accuracy if len(right) == 1 else accuracy[self._of(nodes)])).sum(1) / mix.sum(1)
        for at in torch.split(self._shifted(nodes, mix), 4096) if task.shifts else ():
            found[at] = self._probed(nodes[at], mix[at], seen)
        return found.where(self._of(nodes) >= 0, torch.nan)

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
        task, right = self.task, torch.zeros(len(tests), dtype=torch.float64, device=tests.device)
        for hearer, (model, buffers) in enumerate(zip(self.models, self.buffers, strict=True)):
            mine = (self._of(nodes) == hearer if len(self.models) > 1 else nodes >= 0).nonzero()[:, 0]
            for at in torch.split(mine, self.slab) if len(mine) else ():
                inputs, targets = decoded(task.test_inputs[tests[at]])[:, None], task.test_targets[tests[at]][:, None]
                # After those of training, so that no test sample has the number of a training sample
                number, rounds = len(task.inputs) + tests[at][:, None], torch.full_like(at, self.round)
                seen = shifted(task.shifts, Gathered(inputs, targets, number, nodes[at], rounds))
                correct = task.loss.correct(self.outputs(model, buffers, seen.inputs[:, 0]), seen.targets[:, 0])
                right[at] = torch.nan if correct is None else correct.double()
        return right
